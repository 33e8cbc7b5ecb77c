"""Random crops, flips, TrivialAugment and erasing on the device, and normalisation: uint8 in, float32 out.

Every example has its key, fold_in(key, index): with key = fold_in(seed key, step) the result
depends on (seed, step, index) only, not on the batch's layout, the device count or the process. An image
that is twice in one batch gets the same treatment twice. All functions are pure and can be jitted; the
settings are Python values (static).
"""

import jax
import jax.numpy as jnp
import numpy as np

from jsae.data import mixing
from jsae.data.trivial_augment import trivial_augment

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1, as the published ConvNeXt weights expect
IMAGENET_STD = (0.229, 0.224, 0.225)
CROPS = ("none", "pad", "resized")
_MAX_LOG_ASPECT = float(np.log(4 / 3))
_MAX_LOG_ERASED = float(np.log(3.3))


def normalise(images: jax.Array | np.ndarray) -> jax.Array:
    """uint8 (or float 0..255) [...,3] -> float32 [...,3]: (x / 255 - mean) / std with ImageNet's numbers."""
    scale = jnp.asarray(1.0 / (255.0 * np.asarray(IMAGENET_STD)), jnp.float32)
    shift = jnp.asarray(np.asarray(IMAGENET_MEAN) / np.asarray(IMAGENET_STD), jnp.float32)
    leading = (1,) * (images.ndim - 1)
    return jnp.asarray(images).astype(jnp.float32) * scale.reshape(*leading, 3) - shift.reshape(*leading, 3)


def example_keys(key: jax.Array, index: jax.Array) -> jax.Array:
    """One key per example [B], fold_in(key, its index)."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(index)


def augment(
    key: jax.Array,
    images: jax.Array,
    index: jax.Array,
    *,
    crop: str = "pad",
    pad_px: int = 4,
    min_scale: float = 0.35,
    flip: bool = True,
    trivial: float = 0.0,
    erase: float = 0.0,
    one_by_one: bool = False,
) -> jax.Array:
    """Crop, flip, change, normalise and erase a batch.

    Args:
      key: of this step, i.e. fold_in(seed key, step).
      images: uint8 [B,S,S,3].
      index: int32 [B], each image's row in its split; it picks the example's key.
      crop: "pad" shifts by up to `pad_px` pixels each way, mirrored at the border; "resized" takes a
        window of min_scale..1 of the area and aspect 3/4..4/3 and scales it up to [S,S]; "none".
      pad_px: 0..S-1, of "pad".
      min_scale: in (0, 1], of "resized".
      flip: mirror half of the images left to right.
      trivial: strength 0..1 of TrivialAugment (trivial_augment.py); 0 leaves it out.
      erase: share of images of which a rectangle is erased, i.e. set to ImageNet's mean (arXiv 1708.04896).
      one_by_one: TrivialAugment in a loop over the images, which on one CPU device is faster (`is_serial`).

    Returns float32 [B,S,S,3], normalised. Raises ValueError on unknown or out-of-range settings.
    """
    if crop not in CROPS:
        raise ValueError(f"crop={crop!r} is unknown; valid: {', '.join(CROPS)}")
    for name, value in (("trivial", trivial), ("erase", erase)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} must be in 0..1")
    keys = example_keys(key, index)
    if crop == "pad":
        images = _shift(keys, images, pad_px)
    elif crop == "resized":
        images = jax.vmap(lambda k, image: _resized_crop(k, image, min_scale))(keys, images)
    if flip:
        flips = jax.vmap(lambda k: jax.random.bernoulli(jax.random.fold_in(k, 1)))(keys)
        images = jnp.where(flips[:, None, None, None], images[:, :, ::-1], images)
    if trivial:
        images = _changed(keys, images.astype(jnp.float32), trivial, one_by_one)
    images = normalise(images)
    if erase:
        erased = jax.vmap(lambda k: _erased(jax.random.fold_in(k, 3), images.shape[1], erase))(keys)
        images = jnp.where(erased[:, :, :, None], 0.0, images)
    return images


def is_serial(mesh: jax.sharding.Mesh) -> bool:
    """Whether `augment` is faster with `one_by_one` on this mesh: on one CPU device.

    One by one only the drawn operation runs (ms per image at 96 px: README, "How fast it is"); a loop over a
    batch that is sharded over devices would gather it.
    """
    return mesh.size == 1 and mesh.devices.flat[0].platform == "cpu"


def _changed(keys: jax.Array, images: jax.Array, strength: float, one_by_one: bool) -> jax.Array:
    """One drawn operation on each image."""

    def change(key: jax.Array, image: jax.Array) -> jax.Array:
        return trivial_augment(jax.random.fold_in(key, 2), image, strength)

    if one_by_one:
        return jax.lax.map(lambda each: change(*each), (keys, images))
    return jax.vmap(change)(keys, images)


def _erased(key: jax.Array, size: int, share: float) -> jax.Array:
    """bool [size, size]: true inside a rectangle of 2..33% of the area, or nowhere in 1 - share of cases."""
    on_key, area_key, aspect_key, place_key = jax.random.split(key, 4)
    area = jax.random.uniform(area_key, minval=0.02, maxval=0.33)
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=-_MAX_LOG_ERASED, maxval=_MAX_LOG_ERASED))
    return mixing.rectangle(place_key, size, area, aspect) & jax.random.bernoulli(on_key, share)


def _shift(keys: jax.Array, images: jax.Array, pad_px: int) -> jax.Array:
    """Crop [S,S] out of the images padded by reflection, at a random corner each."""
    size = images.shape[1]
    if not 0 <= pad_px < size:
        raise ValueError(f"pad_px={pad_px}: reflection needs 0 <= pad_px < image size {size}")
    if pad_px == 0:
        return images
    border = (pad_px, pad_px)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)), mode="reflect")
    corners = jax.vmap(lambda k: jax.random.randint(jax.random.fold_in(k, 0), (2,), 0, 2 * pad_px + 1))(keys)

    def cut(image: jax.Array, corner: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(image, (corner[0], corner[1], 0), (size, size, 3))

    return jax.vmap(cut)(padded, corners)


def _resized_crop(key: jax.Array, image: jax.Array, min_scale: float) -> jax.Array:
    """A random window of one image [S,S,3], scaled to [S,S] as float32 0..255 (two small products)."""
    if not 0 < min_scale <= 1:
        raise ValueError(f"min_scale={min_scale} must be in (0, 1]")
    size = image.shape[0]
    area_key, aspect_key, place_key = jax.random.split(jax.random.fold_in(key, 0), 3)
    area = jax.random.uniform(area_key, minval=min_scale, maxval=1.0)
    aspect = jnp.exp(jax.random.uniform(aspect_key, minval=-_MAX_LOG_ASPECT, maxval=_MAX_LOG_ASPECT))
    # sides as shares of S; a window that is too long keeps its area only as far as it fits
    window = jnp.minimum(jnp.sqrt(area) * jnp.stack([aspect**0.5, aspect**-0.5]), 1.0)
    corner = jax.random.uniform(place_key, (2,)) * (1.0 - window) * size
    scale = 1.0 / window
    return jax.image.scale_and_translate(
        image.astype(jnp.float32),
        image.shape,
        (0, 1),
        scale,
        -corner * scale,
        "linear",
        antialias=False,  # windows only grow
    )
