"""What people call a trained classifier on, checked: pixels of another kind give logits that look like any.

    uint8, or integers in 0..255    pixels: normalised here
    floats                          already normalised (`jsae.data.augment.normalise`)
    bool, text, anything else       refused

Floats whose values are hardly those of normalised pixels are refused, with what to do: all in 0..1 or -1..1,
none below 0, or any beyond +-10 (an image normalised with ImageNet's numbers lies in -2.2..2.7). Traced
arrays have no values to check: under jit, grad and vmap their dtype and shape are checked.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae.classifier.model import Model
from jsae.data import augment

_FARTHEST = 10.0  # of a normalised pixel; images that are optimised may leave -2.2..2.7, not by this much
_BRIGHTEST = 2.65  # (1 - mean) / std of blue, the largest value of a normalised image
_TO_DO = "give uint8 (study.preprocess makes it of files), or what jsae.data.augment.normalise makes of that"


def pixels(
    images: Any, image_px: int | None = None, *, normalised: bool = False, any_size: bool = False
) -> jax.Array:
    """The images as `classifier.apply` takes them, float32 [B, S, S, 3], normalised.

    Args:
      images: RGB [B, S, S, 3], of the kinds above.
      image_px: S of the images that the classifier was trained on; None where that is not known.
      normalised: floats are taken as normalised whatever their values.
      any_size: sides other than S are wanted.

    Raises:
      TypeError: no array of numbers.
      ValueError: another shape or side, or values of another kind.
    """
    array = _array(images, "images")
    _check_shape(array, image_px, any_size)
    kind = _kind(array)
    traced = isinstance(array, jax.core.Tracer)
    if kind == "integers":
        if traced and array.dtype != jnp.uint8:
            raise ValueError(f"traced images are uint8 or float32, got {array.dtype}; {_TO_DO}")
        if not traced and array.dtype != np.uint8:
            low, high = _range(array)
            if low < 0 or high > 255:
                raise ValueError(
                    f"images of {array.dtype} with values in {low:g}..{high:g}: pixels are 0..255"
                )
            array = np.asarray(array).astype(np.uint8)
        return augment.normalise(jnp.asarray(array))
    if kind != "floats":
        raise TypeError(f"images are uint8, or float32 already normalised, not {array.dtype}; {_TO_DO}")
    if not normalised and not traced:
        _check_normalised(array)
    return jnp.asarray(array).astype(jnp.float32)


def activations(
    acts: Any, model: Model, site: str, image_px: int | None = None, *, any_size: bool = False
) -> jax.Array:
    """Activations to start from at `site`, float32 [B, H, W, C].

    Raises:
      TypeError: no array of floats.
      ValueError: an unknown site, another number of channels, or a grid that images of `image_px` lack.
    """
    model.check_site(site)
    array = _array(acts, "activations")
    if _kind(array) != "floats":
        raise TypeError(f"start={site!r} takes raw activations, floats [B, H, W, C], not {array.dtype}")
    grid = None if image_px is None or any_size else model.grid(site, (image_px, image_px))
    channels, (height, width) = model.channels(site), grid or ("H", "W")
    if array.ndim != 4 or array.shape[-1] != channels or (grid and array.shape[1:3] != grid):
        raise ValueError(
            f"activations of {site!r} are [B, {height}, {width}, {channels}], got {list(array.shape)}"
            + ("; any_size=True takes another grid" if grid else "")
        )
    return jnp.asarray(array).astype(jnp.float32)


def _array(given, what: str):
    """The input as something with a shape and a dtype; jax arrays and tracers as they are."""
    if isinstance(given, jax.Array):
        return given
    if isinstance(given, str | bytes | os.PathLike):
        raise TypeError(f"{what} are an array, got {given!r}; study.preprocess(paths) reads image files")
    array = np.asarray(given)
    if array.dtype.kind in "OUSM":
        raise TypeError(f"{what} are an array of numbers, got {type(given).__name__} of {array.dtype}")
    return array


def _kind(array) -> str:
    for name, dtype in (("integers", jnp.integer), ("floats", jnp.floating)):
        if jnp.issubdtype(array.dtype, dtype):
            return name
    return "other"


def _check_shape(array, image_px: int | None, any_size: bool) -> None:
    side = image_px or "S"
    expected, shape = f"images are RGB [B, {side}, {side}, 3]", tuple(array.shape)
    if len(shape) == 3 and shape[-1] == 3:
        raise ValueError(f"{expected}, got {list(shape)}: one image is images[None]")
    if len(shape) == 4 and shape[-1] != 3 and shape[1] == 3:
        raise ValueError(f"{expected}, got {list(shape)}: move the channels last, .transpose(0, 2, 3, 1)")
    if len(shape) == 3 or (len(shape) == 4 and shape[-1] == 1):
        raise ValueError(f"{expected}, got {list(shape)}: repeat grey values over three channels")
    if len(shape) != 4 or shape[-1] != 3:
        raise ValueError(f"{expected}, got {list(shape)}")
    if image_px and not any_size and shape[1:3] != (image_px, image_px):
        raise ValueError(
            f"the classifier was trained on {image_px} x {image_px} px, got images of {shape[1]} x "
            f"{shape[2]}: study.preprocess fits files to it; any_size=True takes them as they are"
        )


def _range(array) -> tuple[float, float]:
    """(smallest, largest) value; (0, 0) of an empty array. In numpy: under jit jnp would trace it."""
    values = np.asarray(array)
    return (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)


def _check_normalised(array) -> None:
    low, high = _range(array)
    if not np.asarray(array).size:
        return
    what = None
    if low >= -1 and high <= 1:
        what = "all of them in 0..1 or -1..1, as pixels scaled in another way are"
    elif low >= 0 and high > _BRIGHTEST:
        what = "none below 0, as in pixels of 0..255"
    elif max(-low, high) > _FARTHEST:
        what = "far beyond those of normalised pixels, -2.2..2.7"
    if what:
        raise ValueError(
            f"images of {array.dtype} are taken as normalised, but their values lie in {low:g}..{high:g}, "
            f"{what}: {_TO_DO}; normalised=True takes them as they are"
        )
