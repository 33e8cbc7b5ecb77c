"""Counterfactual pairs: how much of a known change of the input a set of features carries.

A0, A1 are a site's activations of the same drawing without and with one part, l the rest of the network, and
c = e_b - e_a the contrast of the two classes' logits. Totals D_i = c . (l(A1) - l(A0)) are what the part does
in drawing i; effects s_i are what an intervention on some features does of it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

MIN_TWIN_ACCURACY = 0.8
MIN_CEILING = 0.1  # of supervised minus rotation


class TwinGate(NamedTuple):
    """Whether the network tells two twins apart at all; else their pair says nothing of features.

    Attributes:
      accuracy: mean of the shares with c . l(A1) > 0 and with c . l(A0) < 0.
      mean: of the totals D.
      standard_error: of that mean over drawings.
    """

    accuracy: float
    mean: float
    standard_error: float

    @property
    def passed(self) -> bool:
        """Accuracy of at least 0.8 and a mean total of more than two standard errors."""
        return self.accuracy >= MIN_TWIN_ACCURACY and self.mean > 2 * self.standard_error


def twin_gate(without: ArrayLike, with_part: ArrayLike) -> TwinGate:
    """The gate of a pair, from the contrast c . l of n drawings without and with the part [n]."""
    without, with_part = np.asarray(without, np.float64), np.asarray(with_part, np.float64)
    totals = with_part - without
    error = totals.std(ddof=1) / np.sqrt(len(totals)) if len(totals) > 1 else np.inf
    accuracy = ((with_part > 0).mean() + (without < 0).mean()) / 2
    return TwinGate(float(accuracy), float(totals.mean()), float(error))


def carried_share(effects: ArrayLike, totals: ArrayLike) -> np.ndarray:
    """sum_i s_i / sum_i D_i: effects [..., n] of totals [n] -> [...]; NaN where the totals sum to 0."""
    effects, total = np.asarray(effects, np.float64), np.asarray(totals, np.float64).sum()
    return effects.sum(-1) / (total if total else np.nan)


def tracking(effects: ArrayLike, totals: ArrayLike) -> np.ndarray:
    """1 - Var_i(D_i - s_i) / Var_i(D_i), effects [..., n] of totals [n] -> [...]; NaN for constant totals."""
    effects, totals = np.asarray(effects, np.float64), np.asarray(totals, np.float64)
    variance = totals.var()
    return 1 - (totals - effects).var(-1) / (variance if variance else np.nan)


def leak(shares: ArrayLike) -> np.ndarray:
    """Mean |share| over the last axis, the pairs of other parts; NaN entries (closed gates) are left out."""
    return _known_mean(np.moveaxis(np.abs(np.asarray(shares, np.float64)), -1, 0))


def isolated(share: ArrayLike, leaked: ArrayLike) -> np.ndarray:
    """1 - |1 - share| - leak: 1 for features that carry a part and nothing else."""
    return 1 - np.abs(1 - np.asarray(share, np.float64)) - np.asarray(leaked, np.float64)


def ceiling(sae: float, rotation: float, supervised: float) -> float:
    """(sae - rotation) / (supervised - rotation) of means of `isolated`; NaN: a denominator below 0.1."""
    room = supervised - rotation
    return (sae - rotation) / room if room >= MIN_CEILING else float("nan")


def faithfulness(changed: ArrayLike, rendered: ArrayLike) -> float:
    """Mean over drawings of the cosine of two changes of the logits [n, L], each centred over classes.

    Drawings in which one of the changes is 0 count as 0.
    """
    a, b = (np.asarray(x, np.float64) for x in (changed, rendered))
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(-1) / np.where(norms > 0, norms, np.inf)).mean())


class Response(NamedTuple):
    """How selectively a feature answers to a part; NaN where unknown.

    Attributes:
      z: mean change over the standard deviation without the part.
      sensitivity: share of the part's drawings in which the feature changes with its sign by more than
        drawings differ anyway.
      specificity: share of other parts' drawings in which it does not.
    """

    z: float
    sensitivity: float
    specificity: float

    @property
    def balanced_accuracy(self) -> float:
        """Mean of sensitivity and specificity; 0.5 is chance."""
        return (self.sensitivity + self.specificity) / 2


def response(without: ArrayLike, change: ArrayLike, others: Sequence[ArrayLike], sign: float) -> Response:
    """The response of one pooled feature.

    A drawing answers where sign * change lies above the 95th percentile of |differences| between two
    different drawings without the part.

    Args:
      without: the feature in n drawings without the part [n].
      change: what adding the part changes in them [n].
      others: the changes that other parts make, one array for each of their pairs.
      sign: of the mean change, as known from other drawings.
    """
    without, change = np.asarray(without, np.float64), np.asarray(change, np.float64)
    first, second = np.triu_indices(len(without), 1)
    limit = np.percentile(np.abs(without[first] - without[second]), 95) if len(first) else np.nan
    spread = without.std()
    z = float(change.mean() / spread) if spread else float("nan")
    silent = [float((sign * np.asarray(other, np.float64) <= limit).mean()) for other in others]
    return Response(z, float((sign * change > limit).mean()), float(np.mean(silent)) if silent else np.nan)


def mean_of_parts(values: ArrayLike, parts: Sequence[str]) -> np.ndarray:
    """Mean over parts of the mean over their pairs: values [P, ...] of P pairs -> [...]; NaN is left out."""
    values, names = np.asarray(values, np.float64), np.asarray(parts)
    of_parts = [_known_mean(values[names == part]) for part in dict.fromkeys(parts)]
    return _known_mean(np.stack(of_parts) if of_parts else values)


def _known_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN; NaN where nothing is."""
    known = np.isfinite(values)
    n = known.sum(0)
    return np.where(known, values, 0).sum(0) / np.where(n > 0, n, np.nan)
