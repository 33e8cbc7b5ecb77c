"""Whether a map of pixels shows what a feature's activation depends on: insertion, deletion and mass.

Pixels are ranked by the map. Insertion puts them, best first, into the blurred image; deletion blurs them out
of the clean one (arXiv 1806.07421). The value on the way is (f - f_base) / (f_clean - f_base), clipped to
0..1, f_base that of the wholly blurred image. A good map inserts early and deletes early: a high area under
the first curve, a low one under the second.
"""

import jax
import jax.numpy as jnp

N_STEPS = 20  # of 5% of the pixels each


def pixel_ranks(scores: jax.Array, order: jax.Array) -> jax.Array:
    """Rank of each pixel, 0 for the largest score, int32 of the shape of scores [B, S, T].

    Args:
      scores: the map; signed.
      order: int [S * T], a permutation: equal scores are ranked in this order.
    """
    flat = scores.reshape(len(scores), -1)[:, order]
    best = jnp.argsort(-flat, axis=1, stable=True)  # positions in `order`, best first
    places = jnp.broadcast_to(jnp.arange(flat.shape[1], dtype=jnp.int32)[None, :], flat.shape)
    at = jax.vmap(lambda row, to, value: row.at[to].set(value))(jnp.zeros_like(places), order[best], places)
    return at.reshape(scores.shape)


def pixel_progress(values: jax.Array, base: jax.Array, clean: jax.Array) -> jax.Array:
    """(f - f_base) / (f_clean - f_base) in 0..1; values [B, n], base and clean [B]; NaN if these agree."""
    gap = (clean - base)[:, None]
    share = (values - base[:, None]) / jnp.where(gap == 0, 1, gap)
    return jnp.where(gap == 0, jnp.nan, jnp.clip(share, 0, 1))


def area_under(curve: jax.Array) -> jax.Array:
    """Area under curves [B, n + 1] over equal steps from 0 to 1, by trapezoids: [B]."""
    return (curve[:, 1:] + curve[:, :-1]).mean(1) / 2


def positive_mass(scores: jax.Array, inside: jax.Array) -> jax.Array:
    """Share of a map's positive mass [B, S, T] that lies inside a mask of the same shape: [B].

    NaN where the map is nowhere positive.
    """
    positive = jnp.maximum(scores, 0)
    total = positive.sum((1, 2))
    return jnp.where(total > 0, (positive * inside).sum((1, 2)) / jnp.where(total > 0, total, 1), jnp.nan)
