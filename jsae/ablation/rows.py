"""Effects of single features as rows of a long table: means, intervals, tests, and families of tests."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation import statistics
from jsae.tables import Column, interval

MEASURE = Column(
    "measure",
    pa.string(),
    "of the target: logit, margin (minus the best other), confidence (softmax), log_confidence",
)
KEYS = (
    Column(
        "target", pa.string(), "which class: label, the clean prediction, or the feature's top class on train"
    ),
    MEASURE,
)


def comparison(name: str, end: str, control: str) -> tuple[Column, ...]:
    """The columns of a paired difference to a control: `name`, p and q, their names ending in `end`."""
    return (
        Column(
            name,
            pa.float64(),
            f"mean over images of effect - effect of {control}",
            interval=statistics.BOOTSTRAP,
        ),
        Column(
            f"p{end}",
            pa.float64(),
            f"two-sided p of the difference to {control}: exact sign-flip, or its t tail",
        ),
        Column(
            f"q{end}",
            pa.float64(),
            "Benjamini-Hochberg q over the ablated features of the same kind of row",
        ),
    )


@dataclasses.dataclass(frozen=True)
class Means:
    """Means over the images of one feature; NaN with fewer than `least` of them.

    Attributes:
      n_bootstrap, rng: of the intervals, which are drawn in the order of the calls.
      least: images that a number needs.
    """

    n_bootstrap: int
    rng: np.random.Generator
    least: float

    def _enough(self, values: np.ndarray) -> np.ndarray:
        return values if len(values) >= self.least else values[:0]

    def of(self, values: np.ndarray) -> np.ndarray:
        """Mean over the rows of values [m, ...]."""
        return values.mean(0) if len(values) >= self.least else np.full(values.shape[1:], np.nan)

    def with_interval(self, name: str, values: np.ndarray) -> dict[str, np.ndarray]:
        """Mean over the rows of values [m, ...] and its interval, as three columns."""
        found = statistics.mean_interval(self._enough(values), self.n_bootstrap, self.rng)
        return interval(name, *found)

    def compared(self, name: str, end: str, differences: np.ndarray) -> dict[str, np.ndarray]:
        """Mean and interval of paired differences [m, ...], and their p."""
        p = statistics.paired_p(self._enough(differences))
        return self.with_interval(name, differences) | {f"p{end}": p}


def mean_of_known(values: np.ndarray) -> float:
    """Mean of the values [m] that are not NaN; NaN if there is none."""
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def long_columns(
    names: Sequence[str], of_features: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Columns with one row per feature and entry of the axes, features slowest.

    Args:
      names: of the table's columns; a "q..." is made from its "p...", over the features of each entry.
      of_features: for each feature numbers by column, each broadcasting to the shape of the axes.
      axes: column -> the names of its entries.
    """
    shape = tuple(len(entries) for entries in axes.values())
    full = {
        name: np.array([np.broadcast_to(each[name], shape) for each in of_features]).reshape(-1, *shape)
        for name in names
        if name not in axes and not name.startswith("q")
    }
    for name in names:
        if name.startswith("q"):
            p = full["p" + name[1:]].reshape(len(of_features), math.prod(shape))  # [feature, entries]
            q = [metrics.benjamini_hochberg(column) for column in p.T]
            full[name] = np.stack(q, axis=1)
    grid = np.meshgrid(*axes.values(), indexing="ij")
    keys = dict(zip(axes, (np.tile(each.ravel(), len(of_features)) for each in grid), strict=True))
    return {name: keys[name].tolist() if name in keys else full[name].ravel() for name in names}
