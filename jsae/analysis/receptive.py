"""receptive.parquet: how much of what a feature's peak depends on lies inside the cell it is drawn as.

A cell is a stride of the grid, not a receptive field. erf_share is the share of |d f(y, x) / d image|, summed
over colours, that falls inside the cell's own stride; a feature that read all pixels alike would have the
share of the image that the cell covers. Measured at the peaks of the feature's top patches.
"""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae.analysis import tables
from jsae.runtime import preemption

FILE = "receptive.parquet"
N_PATCHES = 8  # top patches of each feature

SCHEMA = tables.schema(
    ("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
    ("n_patches", pa.int32(), "top patches looked at"),
    (
        "erf_share",
        pa.float64(),
        "mean over the patches of the share of |d f(y, x) / d image| inside the cell's own stride",
    ),
    (
        "uniform_share",
        pa.float64(),
        "share of the image that a cell covers: erf_share if all pixels counted alike",
    ),
)


def shares(acts_of: Callable, sae, images, features, peaks, *, stride_px: int) -> jax.Array:
    """erf_share of B (image, feature, cell) triples, [B]; NaN where the gradient is 0 everywhere.

    Args:
      acts_of: images float32 [B, S, S, 3], normalised -> activations [B, H, W, C] of the SAE's site.
      sae: a pytree with encode.
      images: float32 [B, S, S, 3], normalised.
      features: int [B]; peaks: int [B, 2], cells (y, x).
      stride_px: pixels a cell.
    """

    def total(images):
        feats = sae.encode(acts_of(images))
        return feats[jnp.arange(len(images)), peaks[:, 0], peaks[:, 1], features].sum()

    with jax.default_matmul_precision("float32"):
        size = jnp.abs(jax.grad(total)(images)).sum(-1)  # [B, S, S]
    rows, columns = (
        jnp.arange(n)[None, :] // stride_px == peaks[:, axis][:, None]
        for axis, n in enumerate(size.shape[1:])
    )
    inside = (size * rows[:, :, None] * columns[:, None, :]).sum((1, 2))
    everywhere = size.sum((1, 2))
    return jnp.where(everywhere > 0, inside / jnp.where(everywhere > 0, everywhere, 1), jnp.nan)


def columns(
    measure: Callable,
    read_images: Callable,
    patches: dict,
    features,
    *,
    image_px: int,
    stride_px: int,
    batch_size: int,
) -> dict:
    """Columns of SCHEMA, one row for each of the features.

    Args:
      measure: jitted (images, features, peaks) -> shares, as `shares` with the rest given.
      read_images: image numbers [n] -> float32 [n, S, S, 3], normalised.
      patches: columns of top_patches.parquet as arrays.
      features: which, in order.
      image_px, stride_px: S and pixels a cell.
      batch_size: triples at once.
    """
    rows = [np.flatnonzero(patches["feature"] == feature)[:N_PATCHES] for feature in features]
    which = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    found = np.zeros(len(which))
    for start in range(0, len(which), batch_size):
        at = np.resize(
            which[start : start + batch_size], batch_size
        )  # filled up by repetition: one compilation
        peaks = np.stack([patches["y"][at], patches["x"][at]], 1).astype(np.int32)
        values = measure(read_images(patches["image"][at]), patches["feature"][at].astype(np.int32), peaks)
        found[start : start + batch_size] = np.asarray(values)[: len(which) - start]
        preemption.check_here()
    ends = np.cumsum([0, *(len(each) for each in rows)])
    means = [found[a:b] for a, b in itertools.pairwise(ends)]
    means = [np.nanmean(each) if np.isfinite(each).any() else np.nan for each in means]
    return {
        "feature": np.asarray(features, np.int32),
        "n_patches": np.array([len(each) for each in rows]),
        "erf_share": np.array(means),
        "uniform_share": np.full(len(rows), (stride_px / image_px) ** 2),
    }
