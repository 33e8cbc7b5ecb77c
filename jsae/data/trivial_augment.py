"""TrivialAugment (arXiv 2103.10158) on the device: one random operation of 14 on each image.

Each operation is one of five things with other numbers: nothing, an affine map of the grid (shear, translate,
rotate), a table of 256 tones per channel (brightness, contrast, posterize, solarize, autocontrast, equalize),
a blend with the grey image (colour) or with the smoothed image (sharpness). The five are the branches of one
switch, so a batch is one program in one trace. Under vmap all five run and one is selected, which on
accelerators is a few loops over the batch; mapped image by image only the drawn one runs
(`augment.is_serial`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_AFFINE = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
_TONAL = ("brightness", "contrast", "posterize", "solarize", "autocontrast", "equalize")
OPERATIONS = ("identity", *_AFFINE, *_TONAL, "colour", "sharpness")
_BRANCH = np.repeat(np.arange(5, dtype=np.int32), (1, len(_AFFINE), len(_TONAL), 1, 1))  # of each operation
_FILL = 255 * np.array((0.485, 0.456, 0.406))  # outside the image: 0 once normalised
_LUMA = np.array((0.299, 0.587, 0.114))


def trivial_augment(key: jax.Array, image: jax.Array, strength: jax.Array | float) -> jax.Array:
    """One random operation on one image, float32 [S, S, 3] in 0..255, to the same.

    `strength` in 0..1 scales the published wide range: shear 0.99, translation S / 7, rotation by 135
    degrees, factors of 1 +- 0.99, down to 2 bits, all tones inverted.
    """
    op_key, level_key, sign_key = jax.random.split(key, 3)
    op = jax.random.randint(op_key, (), 0, len(OPERATIONS))
    level = strength * jax.random.uniform(level_key)
    return apply_operation(image, op, level, jnp.where(jax.random.bernoulli(sign_key), level, -level))


def apply_operation(
    image: jax.Array, op: jax.Array | int, level: jax.Array | float, signed: jax.Array | float
) -> jax.Array:
    """Operation number `op` of OPERATIONS at `level` in 0..1; `signed` is the level or its negative."""

    def only(name: str, value: jax.typing.ArrayLike, otherwise: jax.typing.ArrayLike = 0.0) -> jax.Array:
        return jnp.where(op == OPERATIONS.index(name), value, otherwise)

    angle = only("rotate", np.deg2rad(135) * signed)
    shift = image.shape[0] / 7 * signed
    turn = jnp.stack([jnp.cos(angle), -jnp.sin(angle), jnp.sin(angle), jnp.cos(angle)]).reshape(2, 2)
    shear = jnp.stack([1.0, only("shear_y", 0.99 * signed), only("shear_x", 0.99 * signed), 1.0]).reshape(
        2, 2
    )
    moved = jnp.stack([only("translate_y", shift), only("translate_x", shift)])

    def toned(image: jax.Array) -> jax.Array:
        table = _tones(image, only, level, signed)
        rows = jnp.clip(jnp.round(image), 0, 255).astype(jnp.int32)
        return jnp.stack([table[:, c][rows[:, :, c]] for c in range(3)], -1)

    factor = 1 + 0.99 * signed
    branches = (
        lambda image: image,
        lambda image: warp(image, turn @ shear, moved),
        toned,
        lambda image: _blend(_grey(image), image, factor),
        lambda image: _blend(_smooth(image), image, factor),
    )
    return jnp.clip(jax.lax.switch(jnp.asarray(_BRANCH)[op], branches, image), 0, 255)


def warp(image: jax.Array, matrix: jax.Array, shift: jax.Array) -> jax.Array:
    """Bilinear resampling of [S, S, 3]: the output at p is the input at matrix @ p + shift.

    Positions are (y, x) from the centre; what lies outside gets ImageNet's mean colour.
    """
    height, width = image.shape[:2]
    fill = jnp.asarray(_FILL, image.dtype)
    padded = jnp.pad(image - fill[None, None, :], ((1, 1), (1, 1), (0, 0))).reshape(-1, 3)
    y, x = jnp.meshgrid(
        jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
    )
    source_y = matrix[0, 0] * y + matrix[0, 1] * x + shift[0] + (height + 1) / 2  # in the padded image
    source_x = matrix[1, 0] * y + matrix[1, 1] * x + shift[1] + (width + 1) / 2
    source_y, source_x = jnp.clip(source_y, 0, height + 1), jnp.clip(source_x, 0, width + 1)
    top = jnp.minimum(jnp.floor(source_y), height).astype(jnp.int32)
    left = jnp.minimum(jnp.floor(source_x), width).astype(jnp.int32)
    down, right = (source_y - top)[:, :, None], (source_x - left)[:, :, None]
    at = top * (width + 2) + left

    def pixel(row: int, column: int) -> jax.Array:
        return jnp.take(padded, at + row * (width + 2) + column, axis=0)

    upper = (1 - right) * pixel(0, 0) + right * pixel(0, 1)
    lower = (1 - right) * pixel(1, 0) + right * pixel(1, 1)
    return (1 - down) * upper + down * lower + fill[None, None, :]


def _tones(
    image: jax.Array,
    only: Callable[..., jax.Array],
    level: jax.Array | float,
    signed: jax.Array | float,
) -> jax.Array:
    """The table [256, 3] of the drawn tonal operation, unchanged tones for any other."""
    tones = jnp.broadcast_to(jnp.arange(256.0)[:, None], (256, 3))
    factor = 1 + 0.99 * signed
    step = jnp.exp2(jnp.round(6 * level))  # 8 bits to 2
    mean = _grey(image).mean()
    low, high = image.min((0, 1))[None, :], image.max((0, 1))[None, :]
    spread = jnp.where(high > low, 255 / jnp.maximum(high - low, 1e-3), 1.0)
    base = jnp.where(high > low, low, 0.0)
    pixels = jnp.clip(jnp.round(image[::2, ::2]), 0, 255).astype(jnp.int32)  # a quarter of them is enough
    counts = jax.lax.platform_dependent(pixels, cpu=_scattered_counts, default=_compared_counts)
    below = counts.cumsum(0) - counts
    rest = jnp.where(counts > 0, below, 0).max(0)[None, :]  # all pixels but those of the brightest tone
    equal = jnp.where(rest > 0, 255 * below / jnp.maximum(rest, 1), tones)
    table = only("brightness", tones * factor, tones)
    table = only("contrast", _blend(mean, tones, factor), table)
    table = only("posterize", jnp.floor(tones / step) * step, table)
    table = only("solarize", jnp.where(tones >= 256 * (1 - level), 255 - tones, tones), table)
    table = only("autocontrast", (tones - base) * spread, table)
    return jnp.clip(only("equalize", equal, table), 0, 255)


def _scattered_counts(pixels: jax.Array) -> jax.Array:
    """How often each tone occurs in each channel, int32 [256, 3], of pixels [H, W, 3]."""
    channel = jnp.broadcast_to(jnp.arange(3)[None, None, :], pixels.shape)
    return jnp.zeros((256, 3), jnp.int32).at[pixels, channel].add(1)


def _compared_counts(pixels: jax.Array) -> jax.Array:
    """The same as one sum; on a TPU a scatter adds its numbers one after the other."""
    tones = jnp.arange(256)[None, None, :, None]
    return (pixels[:, :, None, :] == tones).sum((0, 1), dtype=jnp.int32)


def _grey(image: jax.Array) -> jax.Array:
    return (image * jnp.asarray(_LUMA, image.dtype)[None, None, :]).sum(-1, keepdims=True)


def _smooth(image: jax.Array) -> jax.Array:
    """Mean over 3x3 with weight 5 in the middle; the border stays."""
    total = 4 * image[1:-1, 1:-1]
    for i in range(3):
        for j in range(3):
            total += image[i : image.shape[0] - 2 + i, j : image.shape[1] - 2 + j]
    return image.at[1:-1, 1:-1].set(total / 13)


def _blend(a: jax.Array, b: jax.Array, factor: jax.Array | float) -> jax.Array:
    return a + (b - a) * factor
