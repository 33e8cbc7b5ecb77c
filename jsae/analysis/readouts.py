"""Directions that know the masks: what a dictionary without labels could find at best.

Two directions per part, fitted on the cells of train that count for it (`jsae.analysis.cells`):

    mean_difference  from the mean of the other cells on the foreground to the mean of the part's cells: the
                     direction along which the activations differ most plainly between the two
    probe            the weights of a ridge regression of "the part covers this cell": the direction that
                     tells best, whether or not anything downstream uses it

They are ceilings and no nulls: if no direction with labels finds a part, no SAE need.
"""

import dataclasses
from typing import Any

import numpy as np
import sklearn.linear_model

from jsae import metrics
from jsae.analysis.cells import PartCells

KINDS = ("mean_difference", "probe")
_RIDGE = 1e-3  # of the mean squared activation


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
    n_parts = train.positive.shape[1]
    rows = {kind: np.full((n_parts, train.acts.shape[1]), np.nan) for kind in KINDS}
    for part in range(n_parts):
        acts, is_part = train.of_part(part)
        if is_part.all() or not is_part.any():
            continue
        rows["mean_difference"][part] = acts[is_part].mean(0) - acts[~is_part].mean(0)
        centred = acts - acts.mean(0)[None, :]
        ridge = sklearn.linear_model.Ridge(_RIDGE * np.square(centred).sum() / centred.shape[1])
        rows["probe"][part] = ridge.fit(centred, is_part.astype(np.float64)).coef_
    return rows


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
