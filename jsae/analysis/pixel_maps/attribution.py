"""Signed attribution of a feature's peak to pixels, at the image's own resolution.

The value attributed is the pre-activation of the feature at one cell, before any gate, threshold or
competition: after TopK the gradient is 0 wherever the feature is off. The reference is the blurred image, so
what is attributed is what the detail lost to the blur does; a pixel's attribution is the sum over colours.

    occlusion    by how much the pre-activation falls when a window of a cell's size is blurred, in steps of
                 half a cell, averaged over the windows that cover a pixel (arXiv 1311.2901)
    integrated   (x - x_blur) * mean gradient on the straight path between them (arXiv 1703.01365), by the
                 midpoint rule; its sum over pixels is the difference of the two pre-activations
    smooth       (x - x_blur) * mean gradient under Gaussian noise of a tenth of the image's range
                 (arXiv 1706.03825); every image meets the same noise

Cost in forward passes per map: (2 H + 1) * (2 W + 1) for occlusion on a grid of H x W cells, 3 * n_points for
the others, a gradient counted as two more.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jsae import classifier
from jsae.data import blur
from jsae.sae import dealt

METHODS = ("occlusion", "integrated", "smooth")
N_POINTS = 16
_NOISE = 0.1  # of an image's range


def check_method(method: str) -> None:
    """Raise ValueError for a method that is none of `METHODS`."""
    if method not in METHODS:
        raise ValueError(f"there is no method {method!r}; the methods are {', '.join(METHODS)}")


def attribute(
    acts_of: Callable[[jax.Array], jax.Array],
    sae: Any,
    images: jax.Array,
    blurred: jax.Array,
    features: jax.Array,
    peaks: jax.Array,
    *,
    stride_px: int,
    method: str = METHODS[0],
    n_points: int = N_POINTS,
) -> jax.Array:
    """Maps [B, S, T] of B (image, feature, cell) triples, raw units of the feature; traced.

    Args:
      acts_of: images float32 [B, S, T, 3], normalised -> activations [B, H, W, C] of the SAE's site.
      sae: the SAE.
      images, blurred: float32 [B, S, T, 3], normalised.
      features: int [B]; peaks: int [B, 2], cells (y, x).
      stride_px: pixels per cell, the side of occlusion's window.
      method: one of `METHODS`.
      n_points: points of the path, or draws of noise.

    Raises ValueError for an unknown method.
    """
    check_method(method)

    def value(images):
        return dealt.preactivations(sae, at_peaks(acts_of(images), peaks), features)

    with jax.default_matmul_precision("float32"):
        if method == "occlusion":
            return _occlusion(value, images, blurred, stride_px)
        change = images - blurred

        def point(i):
            if method == "integrated":
                return blurred + (i + 0.5) / n_points * change
            noise = jax.random.normal(jax.random.fold_in(jax.random.key(0), i), images.shape[1:])
            spread = images.max((1, 2, 3)) - images.min((1, 2, 3))
            return images + _NOISE * spread[:, None, None, None] * noise[None]

        def add(i, total):
            return total + jax.grad(lambda images: value(images).sum())(point(i))

        total = lax.fori_loop(0, n_points, add, jnp.zeros_like(images))
        return (change * total).sum(-1) / n_points


@functools.partial(jax.jit, static_argnums=4)
def at_peak(
    params: classifier.Params, sae: Any, images: jax.Array, features: jax.Array, how: tuple
) -> jax.Array:
    """Maps [B, S, T] of a feature int [B] at its peak on each image [B, S, T, 3], normalised.

    how: site, pixels per cell, method and n_points, static.
    """
    site, stride_px, method, n_points = how

    def acts_of(images):
        return classifier.apply(params, images)[1][site]

    with jax.default_matmul_precision("float32"):
        acts = acts_of(images)
        cells = dealt.map_per_image(sae, sae.encode(acts), features)  # [B, H, W]
        peaks = jnp.stack(jnp.unravel_index(cells.reshape(len(cells), -1).argmax(1), cells.shape[1:]), 1)
        matrices = [blur.blur_matrix(n, stride_px) for n in images.shape[1:3]]
        blurred = blur.blurred(images, *matrices)
    return attribute(
        acts_of, sae, images, blurred, features, peaks, stride_px=stride_px, method=method, n_points=n_points
    )


def at_peaks(acts: jax.Array, peaks: jax.Array) -> jax.Array:
    """The activation vectors [B, C] of one cell per image, peaks int [B, 2], out of acts [B, H, W, C]."""
    return acts[jnp.arange(len(acts)), peaks[:, 0], peaks[:, 1]]


def _occlusion(value, images, blurred, stride_px: int) -> jax.Array:
    """The mean fall over the windows that cover each pixel, [B, S, T]."""
    half = max(stride_px // 2, 1)
    clean = value(images)
    starts = [jnp.arange(-1, -(-n // half)) * half for n in images.shape[1:3]]  # from half a cell outside

    def window(start, n):
        at = jnp.arange(n)
        return ((at >= start) & (at < start + 2 * half)).astype(jnp.float32)

    def add(carry, start):
        total, count = carry
        rows, columns = (window(s, n) for s, n in zip(start, images.shape[1:3], strict=True))
        inside = rows[:, None] * columns[None, :]
        fall = clean - value(jnp.where(inside[None, :, :, None] > 0, blurred, images))
        return (total + fall[:, None, None] * inside[None], count + inside), None

    grid = jnp.stack(jnp.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 2)
    empty = jnp.zeros(images.shape[:3]), jnp.zeros(images.shape[1:3])
    (total, count), _ = lax.scan(add, empty, grid)
    return total / count[None]
