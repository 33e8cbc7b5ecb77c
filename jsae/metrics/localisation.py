"""Does a feature fire where a part is? Areas under ROC curves over cells, and the pointing game."""

import numpy as np
from numpy.typing import ArrayLike

from jsae.metrics.sums import divide


def cell_auroc(values: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """AUROC of each feature for each part over cells, values alike counted as half, [F, P].

    The cells of a part need not be those of another: `auroc` would rank every column again for each part,
    this sorts what fires once per feature, and all silent cells are one group.

    Args:
      values: [n, F], >= 0.
      positive, negative: bool [n, P], disjoint; a cell that is neither does not count for that part.

    Returns:
      [F, P]; NaN for a part without positive or without negative cells.
    """
    counted = (positive | negative).any(1)
    values, positive, negative = values[counted], positive[counted], negative[counted]
    n1, n2 = positive.sum(0), negative.sum(0)
    area = np.empty((values.shape[1], positive.shape[1]))
    for feature, column in enumerate(np.ascontiguousarray(values.T)):
        fires = np.flatnonzero(column > 0)
        order = fires[np.argsort(column[fires])]
        first = np.flatnonzero(np.diff(column[order], prepend=-1.0))  # of each group of values alike
        above, below = (_groups(cells[order], first, n) for cells, n in ((positive, n1), (negative, n2)))
        below_or_half = np.cumsum(below, axis=0) - below / 2
        area[feature] = np.einsum("gp,gp->p", above, below_or_half)
    return divide(area, n1 * n2)


def _groups(cells: np.ndarray, first: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Cells in each group of values alike, [1 + groups, P], the silent ones first."""
    if len(first) < len(cells):
        cells = np.add.reduceat(cells, first, axis=0, dtype=np.int32)
    return np.concatenate([(total - cells.sum(0))[None, :], cells]).astype(np.float64)


def pointing(values: ArrayLike, positive: ArrayLike) -> np.ndarray:
    """Share of the images in which a feature's peak lies in the part, [F, P]: the pointing game.

    Args:
      values: [n, cells, F], >= 0.
      positive: bool [n, cells, P]; an image counts for the parts that have a cell in it.

    Returns:
      [F, P]; a feature that is silent in an image misses. NaN for a part that is in no image.
    """
    values, positive = np.asarray(values), np.asarray(positive, bool)
    peak = values.argmax(1)  # [n, F]
    hits = np.zeros((values.shape[2], positive.shape[2]))
    for image in range(len(values)):
        fires = values[image, peak[image], np.arange(values.shape[2])] > 0
        hits += positive[image, peak[image]] & fires[:, None]
    return divide(hits, positive.any(1).sum(0))
