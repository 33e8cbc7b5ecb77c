"""nearest.parquet: the features most like each feature, by decoder row and by when they fire.

    decoder        cosine of the decoder rows
    coactivation   n_ij / sqrt(n_i n_j), n_ij the test vectors on which both fire (cosine of the two patterns)

The counts [F, F] are taken a block of features at a time, one pass over the split for each, so that memory is
that of a block of rows and a batch.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae.analysis import tables
from jsae.runtime import preemption

FILE = "nearest.parquet"
KINDS = ("decoder", "coactivation")
N_NEAREST = 8
_COUNTS = 2**26  # of a pass over the split: [f, F], 4 bytes each

SCHEMA = tables.schema(
    ("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
    (
        "kind",
        pa.string(),
        "decoder: by cosine of decoder rows; coactivation: by the vectors on which both fire",
    ),
    ("rank", pa.int32(), "0 is the nearest; features with a value above 0 only"),
    ("other", pa.int32(), "the other feature"),
    (
        "value",
        pa.float32(),
        "cosine of the decoder rows, or n_ij / sqrt(n_i n_j) with n_ij the test vectors on which both fire",
    ),
)


def columns(store, sae, *, batch_size: int, on_batch: Callable[[int], None] = lambda n_images: None) -> dict:
    """Columns of `SCHEMA`.

    Args:
      store: an activation store: batches().
      sae: a pytree with encode, n_features and w_dec [F, C].
      batch_size: images at once.
      on_batch: called with the number of images after each batch; the split is passed over once for each
        block of 2^26 / F features.
    """
    n_features = sae.n_features
    k = min(N_NEAREST, n_features - 1)
    size = min(n_features, max(1, _COUNTS // n_features))
    rows = jnp.asarray(sae.w_dec)
    rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    fires, found = None, {kind: [] for kind in KINDS}
    for start in range(0, n_features, size):
        block = np.arange(start, min(start + size, n_features))
        counts, fires = _together(store, sae, block, batch_size, on_batch)
        cosines = np.asarray(jnp.matmul(rows[block], rows.T, precision="float32"))
        shared = counts / np.maximum(np.sqrt(np.outer(fires[block], fires)), 1)
        for kind, likeness in zip(KINDS, (cosines, shared), strict=True):
            likeness = likeness.astype(np.float32)
            likeness[np.arange(len(block)), block] = -np.inf
            order = np.argsort(-likeness, axis=1, kind="stable")[:, :k]
            found[kind].append((block, order, np.take_along_axis(likeness, order, 1)))
    parts = []
    for kind in KINDS:
        features, others, values = (np.concatenate(part) for part in zip(*found[kind], strict=True))
        row, rank = np.nonzero(values > 0)
        parts.append((features[row], np.full(len(row), kind), rank, others[row, rank], values[row, rank]))
    joined = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return dict(zip(SCHEMA.names, [*joined[:1], joined[1].tolist(), *joined[2:]], strict=True))


def _together(store, sae, block, batch_size: int, on_batch) -> tuple[np.ndarray, np.ndarray]:
    """Vectors on which each feature of the block and each of all fire together [f, F], and each fires [F]."""
    counts = np.zeros((len(block), sae.n_features), np.int64)
    fires = np.zeros(sae.n_features, np.int64)
    for _, acts, mask in store.batches(batch_size):
        more = _count(sae, acts, mask, jnp.asarray(block))
        counts += np.asarray(more[0]).astype(np.int64)
        fires += np.asarray(more[1]).astype(np.int64)
        on_batch(int(np.sum(mask > 0)))
        preemption.check_here()
    return counts, fires


@jax.jit
def _count(sae, acts, mask, block):
    with jax.default_matmul_precision("float32"):
        fires = (sae.encode(acts) > 0) & (mask > 0)[:, None, None, None]
        fires = fires.reshape(-1, fires.shape[-1]).astype(jnp.float32)  # [N, F]; counts are exact below 2^24
        return fires[:, block].T @ fires, fires.sum(0)
