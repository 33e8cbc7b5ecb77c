"""Insertion and deletion of pixels in the order of a map, and the maps that a pixel map has to beat.

activation_map   the feature's own map on the grid, up-sampled to pixels: what is drawn without gradients
centre           pixels near the middle of the image first
random           whole cells in random order
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jsae import metrics
from jsae.analysis.pixel_maps.attribution import at_peaks
from jsae.sae import dealt

RIVALS = ("activation_map", "centre", "random")


def rivals(sae: Any, acts: jax.Array, features: jax.Array, rows: jax.Array, sides: tuple[int, int]) -> dict:
    """The `RIVALS` as scores [B, S, T] of B (image, feature) pairs.

    Args:
      sae: the SAE.
      acts: activations [B, H, W, C].
      features: int [B]; rows: int [B], numbers of the pairs, which the random order is drawn from.
      sides: (S, T).
    """
    b, height, width, _ = acts.shape
    cells = dealt.map_per_image(sae, sae.encode(acts), features)  # [B, H, W]
    y, x = ((jnp.arange(n) + 0.5) / n - 0.5 for n in sides)
    centre = -(y[:, None] ** 2 + x[None, :] ** 2)
    draws = jax.vmap(
        lambda row: jax.random.uniform(jax.random.fold_in(jax.random.key(0), row), (height, width))
    )
    return {
        "activation_map": jax.image.resize(cells, (b, *sides), "linear"),
        "centre": jnp.broadcast_to(centre[None], (b, *sides)),
        "random": jax.image.resize(draws(rows), (b, *sides), "nearest"),
    }


def areas(
    value: Callable[[jax.Array], jax.Array], images: jax.Array, blurred: jax.Array, scores: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Areas under the insertion and the deletion curve of scores [B, S, T]: [B] each; NaN without a change.

    Takes 2 * (N_STEPS - 1) forward passes beyond those of the two ends.

    Args:
      value: images float32 [B, S, T, 3], normalised -> the feature [B] at its peak.
      images, blurred: float32 [B, S, T, 3], normalised.
    """
    n_px, steps = scores[0].size, metrics.N_STEPS
    order = jax.random.permutation(jax.random.key(0), n_px)
    ranks = metrics.pixel_ranks(scores, order)[..., None]

    def at(step):
        better = ranks < step * n_px // steps
        return lax.map(value, jnp.where(better[None], jnp.stack([images, blurred]), other))

    other = jnp.stack([blurred, images])
    base, clean = lax.map(value, other)  # one trace of the network serves all
    inserted, deleted = jnp.moveaxis(lax.map(at, jnp.arange(1, steps)), 1, 0)
    inserted = jnp.concatenate([base[None], inserted, clean[None]])
    deleted = jnp.concatenate([clean[None], deleted, base[None]])

    def area(values):
        return metrics.area_under(metrics.pixel_progress(values.T, base, clean))

    return area(inserted), area(deleted)


def peak_value(acts_of: Callable, sae: Any, features: jax.Array, peaks: jax.Array) -> Callable:
    """images -> features int [B], as they are after gate and competition, at cells int [B, 2]: [B]."""

    def value(images):
        vectors = at_peaks(acts_of(images), peaks)[:, None, None, :]
        return dealt.map_per_image(sae, sae.encode(vectors), features)[:, 0, 0]

    return value
