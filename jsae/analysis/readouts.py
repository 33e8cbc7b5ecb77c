"""Directions that know the masks or the labels: what a dictionary without labels could find at best.

Two directions per part, fitted on the cells of train that count for it (`jsae.analysis.cells`):

    mean_difference  from the mean of the other cells on the foreground to the mean of the part's cells: the
                     direction along which the activations differ most plainly between the two
    probe            the weights of a ridge regression of "the part covers this cell": the direction that
                     tells best

and for classes the same of whole images (`of_labels`).

They are ceilings and no nulls: if no direction with labels finds a part, no SAE need. A probe is a filter,
which reads; what is removed of the activations lies along its pattern (`metrics.pattern`), so the dictionary
of `as_dictionary` encodes by the one and decodes by the other.
"""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from jsae import metrics
from jsae.analysis.cells import PartCells
from jsae.analysis.directions import Directions

KINDS = ("mean_difference", "probe")
RIDGE = 1e-3  # of the mean squared activation


@dataclasses.dataclass(frozen=True)
class Cells:
    """Vectors of the cells of some images, and which count for which part.

    Attributes:
      acts: raw activations [n * H * W, C], float64.
      positive, negative: bool [n * H * W, P].
    """

    acts: np.ndarray
    positive: np.ndarray
    negative: np.ndarray

    def of_part(self, part: int) -> tuple[np.ndarray, np.ndarray]:
        """(acts [m, C], is part [m]) of the cells that count for a part."""
        at = self.positive[:, part] | self.negative[:, part]
        return self.acts[at], self.positive[at, part]


def read(store: Any, part_cells: PartCells, images: np.ndarray) -> Cells:
    """The cells of image numbers [n] of a store."""
    acts = [store.read(i, i + 1).reshape(-1, store.n_channels) for i in np.asarray(images).tolist()]
    masks = (array.reshape(-1, array.shape[-1]) for array in part_cells(images))
    return Cells(np.concatenate(acts).astype(np.float64), *masks)


def fit(train: Cells) -> dict[str, np.ndarray]:
    """Rows [P, C] of both KINDS, raw units, not normalised; NaN for a part that train does not show."""
    from sklearn.linear_model import Ridge  # a second to import, which most starts do not need

    n_parts = train.positive.shape[1]
    rows = {kind: np.full((n_parts, train.acts.shape[1]), np.nan) for kind in KINDS}
    for part in range(n_parts):
        acts, is_part = train.of_part(part)
        if is_part.all() or not is_part.any():
            continue
        rows["mean_difference"][part] = acts[is_part].mean(0) - acts[~is_part].mean(0)
        centred = acts - acts.mean(0)[None, :]
        ridge = Ridge(RIDGE * np.square(centred).sum() / centred.shape[1])
        rows["probe"][part] = ridge.fit(centred, is_part.astype(np.float64)).coef_
    return rows


def patterns(rows: np.ndarray, train: Cells) -> np.ndarray:
    """The pattern of each filter [P, C] over the train cells that count for its part; NaN rows stay NaN."""
    found = np.full(rows.shape, np.nan)
    for part in np.flatnonzero(np.isfinite(rows).all(1)):
        found[part] = metrics.pattern(rows[part], np.cov(train.of_part(int(part))[0].T, bias=True))
    return found


def of_labels(store: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(mean of each class [L, C], its ridge filter [L, C], covariance [C, C]) of images pooled over the grid.

    From sums over one pass over the images with a label, in float64; NaN for a class without any.

    Args:
      store: activation store of train: batches(), mean, class_names, n_channels.
      batch_size: images read at a time.
    """
    n_classes, n_channels = len(store.class_names), store.n_channels
    sums, counts = np.zeros((n_classes, n_channels)), np.zeros(n_classes)
    squares, offset = np.zeros((n_channels, n_channels)), np.asarray(store.mean, np.float64)
    for batch in store.batches(batch_size):
        known = batch.labels >= 0
        pooled = batch.acts[known].mean((1, 2), dtype=np.float64) - offset[None, :]
        one_hot = np.eye(n_classes)[batch.labels[known]]
        sums += one_hot.T @ pooled
        counts += one_hot.sum(0)
        squares += pooled.T @ pooled
    n = max(counts.sum(), 1)
    mean = sums.sum(0) / n
    covariance = squares / n - np.outer(mean, mean)
    ridge = RIDGE * np.trace(covariance) / n_channels
    means = sums / np.where(counts > 0, counts, np.nan)[:, None]
    of_target = (means - mean[None, :]) * (counts / n)[:, None]  # covariance with "is of the class"
    filters = np.linalg.solve(covariance + ridge * np.eye(n_channels), np.nan_to_num(of_target).T).T
    return means + offset[None, :], np.where(counts[:, None] > 0, filters, np.nan), covariance


def as_dictionary(filters: np.ndarray, patterns: np.ndarray, mean: np.ndarray) -> Directions:
    """Features relu((x - mean) . w) along w_dec, w a filter and w_dec its pattern scaled to unit norm.

    filters, patterns: rows [F, C]; rows with NaN give 0.
    """
    norms = np.nan_to_num(np.linalg.norm(patterns, axis=1, keepdims=True))
    rows, reads = np.nan_to_num(patterns) / np.where(norms > 0, norms, 1), np.nan_to_num(filters) * norms
    w_dec, w_enc, mean = (np.asarray(each, np.float32) for each in (rows, reads, mean))
    return Directions(w_dec, jnp.asarray(mean), w_enc=w_enc)


def auroc(rows: np.ndarray, test: Cells) -> np.ndarray:
    """Test part AUROC [P] of the projections on rows [P, C], each for its part; NaN where there is none."""
    area = np.full(len(rows), np.nan)
    for part, row in enumerate(rows):
        acts, is_part = test.of_part(part)
        if np.isnan(row).any() or not len(acts):
            continue
        score = acts @ row
        score = (score - score.min() + 1)[:, None]  # above 0, in the same order
        area[part] = metrics.cell_auroc(score, is_part[:, None], ~is_part[:, None])[0, 0]
    return area
