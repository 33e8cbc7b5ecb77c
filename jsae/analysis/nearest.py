"""nearest.parquet: the features most like each feature, by decoder row and by when they fire.

    decoder        cosine of the decoder rows
    coactivation   n_ij / sqrt(n_i n_j), n_ij the test vectors on which both fire (cosine of the two patterns)

The counts [F, F] are taken a block of features at a time, one pass over the split for each, so that memory is
that of a block of rows and a batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae.activations import Encoded, Reducer
from jsae.runtime import mesh as meshes
from jsae.runtime.pytrees import pytree
from jsae.tables import Column, Table

KINDS = ("decoder", "coactivation")
N_NEAREST = 8
_COUNTS = 2**26  # of a pass over the split: [f, F], 4 bytes each

TABLE = Table(
    "nearest",
    (
        Column("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
        Column(
            "kind",
            pa.string(),
            "decoder: by cosine of decoder rows; coactivation: by the vectors on which both fire",
        ),
        Column("rank", pa.int32(), "0 is the nearest; features with a value above 0 only"),
        Column("other", pa.int32(), "the other feature"),
        Column(
            "value",
            pa.float32(),
            "cosine of the decoder rows, or n_ij / sqrt(n_i n_j) with n_ij the test vectors on which "
            "both fire",
        ),
    ),
)


@pytree
class CountTogether(Reducer):
    """(vectors on which each feature of `block` and each of all fire together [f, F], and each fires [F])."""

    block: jax.Array | np.ndarray

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        n_features = dictionary.n_features
        return np.zeros((len(self.block), n_features), np.int64), np.zeros(n_features, np.int64)

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        fires = (batch.feats > 0).reshape(-1, batch.feats.shape[-1]).astype(jnp.float32)  # [N, F]
        chosen = fires if self.block.shape[0] == fires.shape[1] else fires[:, self.block]
        return carry, (chosen.T @ fires, fires.sum(0))  # counts are exact below 2^24

    def add(self, total: tuple, part: tuple, rows: slice, n: int) -> tuple:
        return tuple(old + new.astype(np.int64) for old, new in zip(total, part, strict=True))


def columns(
    pass_over: Callable[[dict[str, Reducer]], dict[str, Any]], w_dec: jax.Array
) -> dict[str, np.ndarray | list[str]]:
    """Columns of nearest.parquet.

    Args:
      pass_over: reducers -> results of a pass over the split; called once for each block of 2^26 / F
        features.
      w_dec: decoder rows [F, C], perhaps dealt over devices.
    """
    n_features = w_dec.shape[0]
    k = min(N_NEAREST, n_features - 1)
    mesh = getattr(getattr(w_dec, "sharding", None), "mesh", None)
    share = n_features if mesh is None else n_features // mesh.shape["model"]  # a device has no more rows
    size = min(share, max(1, _COUNTS // n_features))
    found = {kind: [] for kind in KINDS}
    for start in range(0, n_features, size):
        block = np.arange(start, min(start + size, n_features))
        counts, fires = pass_over({"together": CountTogether(block)})["together"]
        cosines = meshes.collect(_cosines(w_dec, block))
        shared = counts / np.maximum(np.sqrt(np.outer(fires[block], fires)), 1)
        for kind, likeness in zip(KINDS, (cosines, shared), strict=True):
            likeness = likeness.astype(np.float32)
            likeness[np.arange(len(block)), block] = -np.inf
            order = np.stack([_largest(row, k) for row in likeness])
            found[kind].append((block, order, np.take_along_axis(likeness, order, 1)))
    parts = []
    for kind in KINDS:
        features, others, values = (np.concatenate(part) for part in zip(*found[kind], strict=True))
        row, rank = np.nonzero(values > 0)
        parts.append((features[row], np.full(len(row), kind), rank, others[row, rank], values[row, rank]))
    feature, kind, rank, other, value = (np.concatenate(part) for part in zip(*parts, strict=True))
    return {"feature": feature, "kind": kind.tolist(), "rank": rank, "other": other, "value": value}


def _largest(row: np.ndarray, k: int) -> np.ndarray:
    """Where the k largest values of a row are, falling, equal ones in their order; k below its length."""
    if not k:
        return np.zeros(0, np.int64)
    candidates = np.flatnonzero(row >= np.partition(row, len(row) - k)[len(row) - k])
    return candidates[np.argsort(-row[candidates], kind="stable")][:k]


@jax.jit
def _cosines(w_dec, block):
    """Cosines of the decoder rows of the block and of all, [f, F]."""
    rows = w_dec / jnp.maximum(jnp.linalg.norm(w_dec, axis=-1, keepdims=True), 1e-12)
    return jnp.matmul(rows[block], rows.T, precision="float32")
