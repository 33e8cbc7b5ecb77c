"""Gaussian blur of images, and the soft edge of the areas that it is confined to, both as matrices.

Both act along one axis; `blurred` takes a matrix for the rows and one for the columns.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jsae.data import augment


def blurred(x: jax.Array, rows: jax.Array | np.ndarray, columns: jax.Array | np.ndarray) -> jax.Array:
    """x [B, S, T, channels] with matrices of one axis [S, S] and [T, T] applied; float32 products."""
    return jnp.einsum("sp,tq,bpqc->bstc", rows, columns, x, precision="float32")


def normalised(images: jax.Array) -> jax.Array:
    """Images [B, S, T, 3] as the model sees them: uint8 is normalised, floats are so already."""
    return augment.normalise(images) if images.dtype == jnp.uint8 else images


def blur_matrix(n_px: int, sigma_px: float) -> np.ndarray:
    """Gaussian weights float32 [n_px, n_px], rows sum to 1 (renormalised at the border); sigma 0 is none.

    Raises ValueError if sigma_px is negative.
    """
    if sigma_px < 0:
        raise ValueError(f"sigma_px is at least 0, got {sigma_px}")
    distance = np.arange(n_px)[:, None] - np.arange(n_px)[None, :]
    weights = np.exp(-0.5 * np.square(distance / sigma_px)) if sigma_px else np.eye(n_px)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def feather_matrix(n_px: int, half_px: int) -> np.ndarray:
    """Running mean over 2 * half_px + 1 pixels, float32 [n_px, n_px]; what falls off the end is mirrored.

    Rows and columns sum to 1, so a feathered area has the sum of the area, at the image's edge as well.
    """
    steps = np.arange(n_px)[:, None] + np.arange(-half_px, half_px + 1)[None, :]
    steps = steps % (2 * n_px)
    found = np.zeros((n_px, n_px))
    np.add.at(found, (np.arange(n_px)[:, None], np.minimum(steps, 2 * n_px - 1 - steps)), 1)
    return (found / (2 * half_px + 1)).astype(np.float32)


def half_feather_px(stride_px: int) -> int:
    """How far an area's soft edge reaches to either side: an eighth of a cell, so that it takes a quarter."""
    return stride_px // 8
