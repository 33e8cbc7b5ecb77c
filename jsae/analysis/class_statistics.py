"""How far a feature follows the classes: chosen on train, reported on test, each index beside its null.

The plain selectivity index is near 1 by chance for a sparse feature. Its null is the same feature with the
test labels permuted: activations, the number of active images and the sizes of the classes stay, only
which image belongs to which class does not. The top class is the one chosen on train throughout.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jsae import metrics
from jsae.runtime import mesh as meshes

INDICES = ("selectivity", "label_entropy")
_BLOCK = 512  # features at once
_VALUES = 4_000_000  # numbers in one temporary array on the host
_ONE_HOT_MIB = 64
_STD_FLOOR = 1e-6  # what float32 class means leave of a null that does not vary


def top_class(class_mean: ArrayLike, alive: ArrayLike) -> np.ndarray:
    """Class with the largest mean, [F], of class_mean [F, L] (NaN: no images); -1 if dead or no class."""
    class_mean = np.asarray(class_mean)
    if class_mean.shape[1] == 0:
        return np.full(len(class_mean), -1, np.int32)
    filled = np.where(np.isfinite(class_mean), class_mean, -np.inf)
    known = np.asarray(alive) & np.isfinite(filled.max(axis=1))
    return np.where(known, filled.argmax(axis=1), -1).astype(np.int32)


def indices(class_mean: np.ndarray, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Selectivity and label entropy [..., F] of class means [..., F, L] for the classes chosen [F]."""
    return {
        "selectivity": metrics.selectivity(class_mean, chosen),
        "label_entropy": metrics.label_entropy(class_mean),
    }


def against_null(
    class_mean: np.ndarray,
    chosen: np.ndarray,
    pooled: np.ndarray,
    labels: np.ndarray,
    *,
    n_permutations: int,
    seed: int,
    on_block: Callable[[int], Any] | None = None,
) -> dict:
    """Selectivity and label entropy on test beside their nulls.

    Args:
      class_mean: test class means of the pooled activation [F, L], NaN for a class without images.
      chosen: top class on train [F], -1 for none.
      pooled: test activations, mean over the grid, float32 [n, F].
      labels: test labels [n], -1 for unknown.
      n_permutations: >= 2. The permutations are the same for all features and depend on the seed only.
      on_block: called with the number of features after each block.

    Returns:
      For each of `INDICES`: the value, `_null` (mean over permutations), `_excess` (value - null) and `_z`
      (excess / standard deviation over permutations; NaN where that is 0), each [F]. NaN where the index
      has no value, and nulls of features that are silent on test.
    """
    n_features, n_classes = class_mean.shape
    values = indices(class_mean, chosen)
    mean, std = np.full((2, len(INDICES), n_features), np.nan)
    permuted = _permutations(labels, n_permutations, seed)
    count = np.bincount(labels[labels >= 0], minlength=n_classes)
    active = np.flatnonzero(np.isfinite(values["selectivity"]) | np.isfinite(values["label_entropy"]))
    size = block_size(len(labels))
    at_once = _VALUES // max(1, size * n_classes)  # permutations
    at_once = max(1, min(at_once, _ONE_HOT_MIB * 2**18 // max(1, len(labels) * n_classes)))
    blocks = [active[start : start + size] for start in range(0, len(active), size)]

    def nulls(number: int) -> np.ndarray:
        """Mean and standard deviation of a block [2, len(INDICES), f]."""
        block = blocks[number]
        columns = np.zeros((len(labels), size), np.float32)  # the last block is filled up: one compilation
        columns[:, : len(block)] = pooled[:, block]
        columns, drawn = jax.device_put(columns), []
        for first in range(0, n_permutations, at_once):
            sums = np.asarray(_class_sums(columns, permuted[first : first + at_once], n_classes=n_classes))
            means = sums[..., : len(block), :] / np.where(count > 0, count, np.nan)[None, None, :]
            drawn.append(indices(means, chosen[block]))  # [permutations, features] each
        if on_block is not None:
            on_block(len(block))
        whole = [np.concatenate([part[name] for part in drawn]) for name in INDICES]
        return np.array([[null.mean(axis=0) for null in whole], [null.std(axis=0, ddof=1) for null in whole]])

    for block, (block_mean, block_std) in zip(blocks, meshes.shared(len(blocks), nulls), strict=True):
        mean[:, block], std[:, block] = block_mean, block_std
    found = {}
    for name, null, spread in zip(INDICES, mean, std, strict=True):
        excess = values[name] - null
        spread = np.where(spread > _STD_FLOOR, spread, np.nan)
        found |= {name: values[name], f"{name}_null": null, f"{name}_excess": excess}
        found[f"{name}_z"] = excess / spread
    return found


def _permutations(labels, n_permutations: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng([seed, 0x6E756C6C])
    return rng.permuted(np.tile(np.asarray(labels, np.int32), (n_permutations, 1)), axis=1)  # [P, n]


@functools.partial(jax.jit, static_argnames="n_classes")
def _class_sums(pooled, labels, *, n_classes: int):
    """Sums of pooled [n, f] by class for each row of labels [P, n]: [P, f, L]."""
    is_class = jax.nn.one_hot(labels, n_classes)  # [P, n, L]
    return jnp.einsum("nf,pnl->pfl", pooled, is_class, precision="float32")


def block_size(n_images: int) -> int:
    """Features to take at once so that [n_images, block] stays small, at most 512."""
    return max(1, min(_BLOCK, _VALUES // max(n_images, 1)))


def class_auroc(pooled: np.ndarray, labels: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of the pooled activation for the chosen class against the rest, and its p, each [F].

    pooled [n, F], labels [n] (images of unknown class, -1, are left out), chosen [F] (-1: NaN). Features
    are taken in blocks; NaN where the class, or every other, has no image.
    """
    known = np.flatnonzero(labels >= 0)
    area, p = np.full((2, pooled.shape[1]), np.nan)
    having = np.flatnonzero(chosen >= 0)
    size = block_size(len(known))
    blocks = [having[start : start + size] for start in range(0, len(having) if len(known) else 0, size)]

    def of_block(number: int) -> np.ndarray:
        block = blocks[number]
        positive = labels[known][:, None] == chosen[block][None, :]
        return np.array(metrics.auroc(pooled[np.ix_(known, block)], positive))

    for block, found in zip(blocks, meshes.shared(len(blocks), of_block), strict=True):
        area[block], p[block] = found
    return area, p
