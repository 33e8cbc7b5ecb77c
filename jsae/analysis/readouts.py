"""Directions that know the masks: what a dictionary without labels could find at best, and what it would do.

Two directions a part, fitted on the cells of train that count for it (`jsae.analysis.cells`):

    mean_difference  from the mean of the other cells on the aircraft to the mean of the part's cells: the
                     direction along which the activations differ most plainly between the two
    probe            the weights of a ridge regression of "the part covers this cell": the direction that
                     tells best, whether or not anything downstream listens to it

They are controls of the known-answer test and no nulls: if no direction with labels finds a part, no SAE
need; if the probe finds it and removing the probe's direction changes nothing, the part is decodable and not
used (the difference that causal tests of probes are about, arXiv 2006.00995).
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jsae import metrics
from jsae.analysis import directions

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


def read(store, part_cells, images) -> Cells:
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
        x = acts - acts.mean(0)[None, :]
        ridge = _RIDGE * np.square(x).sum() / x.shape[1]
        gram = x.T @ x + ridge * np.eye(x.shape[1])
        rows["probe"][part] = np.linalg.solve(gram, x.T @ (is_part - is_part.mean()))
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


def as_dictionary(rows: np.ndarray, train: Cells) -> directions.Directions:
    """Feature p fires where a vector lies further along row p than the mean cell on the aircraft of train.

    A part without a row gets a feature that never fires.
    """
    on_aircraft = train.positive[:, -1]
    mean = train.acts[on_aircraft].mean(0) if on_aircraft.any() else train.acts.mean(0)
    rows = np.nan_to_num(rows)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    rows = rows / np.where(norms > 0, norms, 1)
    return directions.Directions(jnp.asarray(rows, jnp.float32), jnp.asarray(mean, jnp.float32))
