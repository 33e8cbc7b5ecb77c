"""receptive.parquet: how much of what a feature's peak depends on lies inside the cell it is drawn as.

A cell is a stride of the grid, not a receptive field. erf_share is the share of |d f(y, x) / d image|, summed
over colours, that falls inside the cell's own stride; a feature that read all pixels alike would have the
share of the image that the cell covers. Measured at the peaks of the feature's top patches.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae.runtime.batches import map_rows
from jsae.tables import Column, Table

N_PATCHES = 8  # top patches of each feature

TABLE = Table(
    "receptive",
    (
        Column("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
        Column("n_patches", pa.int32(), "top patches that erf_share is over"),
        Column(
            "erf_share",
            pa.float64(),
            "mean over the patches of the share of |d f(y, x) / d image| inside the cell's own stride",
        ),
        Column(
            "uniform_share",
            pa.float64(),
            "share of the image that a cell covers: erf_share if all pixels counted alike",
        ),
    ),
)


def shares(
    acts_of: Callable[[jax.Array], jax.Array],
    sae: Any,
    images: jax.Array,
    features: jax.Array,
    peaks: jax.Array,
    *,
    stride_px: int,
) -> jax.Array:
    """erf_share of B (image, feature, cell) triples, [B]; NaN where the gradient is 0 everywhere.

    Args:
      acts_of: images float32 [B, S, S, 3], normalised -> activations [B, H, W, C] of the SAE's site.
      sae: a pytree with encode.
      images: float32 [B, S, S, 3], normalised.
      features: int [B]; peaks: int [B, 2], cells (y, x).
      stride_px: pixels per cell.
    """

    def feature_sum(images):
        feats = sae.encode(acts_of(images))
        return feats[jnp.arange(len(images)), peaks[:, 0], peaks[:, 1], features].sum()

    with jax.default_matmul_precision("float32"):
        size = jnp.abs(jax.grad(feature_sum)(images)).sum(-1)  # [B, S, S]
    rows, columns = (
        jnp.arange(n)[None, :] // stride_px == peaks[:, axis][:, None]
        for axis, n in enumerate(size.shape[1:])
    )
    inside = (size * rows[:, :, None] * columns[:, None, :]).sum((1, 2))
    total = size.sum((1, 2))
    return jnp.where(total > 0, inside / jnp.where(total > 0, total, 1), jnp.nan)


def columns(
    measure: Callable[[dict[str, jax.Array]], jax.Array],
    read_images: Callable[[np.ndarray], np.ndarray],
    patches: dict[str, np.ndarray],
    features: Sequence[int],
    *,
    image_px: int,
    stride_px: int,
    **settings: Any,
) -> dict[str, np.ndarray]:
    """Columns of receptive.parquet, one row for each of the features.

    Args:
      measure: jitted, {"images", "features", "peaks"} -> `shares`, with the rest given.
      read_images: image numbers [n] -> uint8 [n, S, S, 3].
      patches: columns of top_patches.parquet as arrays.
      features: which, in order.
      image_px, stride_px: S and pixels per cell.
      settings: of `map_rows`: batch_size, mesh, context, label.
    """
    rows = [np.flatnonzero(patches["feature"] == feature)[:N_PATCHES] for feature in features]
    which = np.concatenate(rows) if rows else np.zeros(0, np.int64)

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        at = which[numbers]
        return {
            "images": read_images(patches["image"][at]),
            "features": patches["feature"][at].astype(np.int32),
            "peaks": np.stack([patches["y"][at], patches["x"][at]], 1).astype(np.int32),
        }

    found = map_rows(measure, read, len(which), unit="patch", **settings)
    found = np.zeros(0) if found is None else found
    ends = np.cumsum([0, *(len(each) for each in rows)])
    means = [found[a:b].astype(np.float64) for a, b in itertools.pairwise(ends)]
    means = [np.nanmean(each) if np.isfinite(each).any() else np.nan for each in means]
    return {
        "feature": np.asarray(features, np.int32),
        "n_patches": np.array([len(each) for each in rows]),
        "erf_share": np.array(means),
        "uniform_share": np.full(len(rows), (stride_px / image_px) ** 2),
    }
