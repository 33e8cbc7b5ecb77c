"""Statistics of many features at once: q-values, rank correlation, means over images with their intervals."""

import statistics
from collections.abc import Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike

from jsae.metrics.sums import divide

Z95 = statistics.NormalDist().inv_cdf(0.975)  # a normal 95% interval is the mean -+ Z95 standard errors


def benjamini_hochberg(p: ArrayLike, eligible: ArrayLike | None = None) -> np.ndarray:
    """q-values [F] of p [F]; only eligible entries with a p count as tests, the others get NaN."""
    p = np.asarray(p, np.float64)
    tested = np.isfinite(p) & (True if eligible is None else np.asarray(eligible, bool))
    q = np.full(p.shape, np.nan)
    q[tested] = scipy.stats.false_discovery_control(p[tested]) if tested.any() else []
    return q


def holm(p: ArrayLike) -> np.ndarray:
    """p [n] adjusted so that the chance of any false rejection is kept (Holm's steps); NaN stays NaN."""
    p = np.asarray(p, np.float64)
    order = np.argsort(p)  # NaN last
    factors = np.isfinite(p).sum() - np.arange(len(p))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * factors), 1)
    return adjusted


def spearman(a: ArrayLike, b: ArrayLike) -> float | None:
    """Rank correlation of a and b [n], ties by mean rank; None below 3 finite pairs or if one is constant."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3 or np.ptp(a[both]) == 0 or np.ptp(b[both]) == 0:
        return None
    return float(scipy.stats.spearmanr(a[both], b[both]).statistic)


def join_moments(a: Sequence[ArrayLike], b: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Moments (n, mean, m2) of two disjoint sets joined, on the host in float64 (Chan et al.).

    n counts, mean is the mean (anything finite where n is 0), m2 the sum of squares about it; the arrays of
    a set broadcast against each other, and NaN stays NaN.
    """
    n_a, mean_a, m2_a = (np.asarray(array, np.float64) for array in a)
    n_b, mean_b, m2_b = (np.asarray(array, np.float64) for array in b)
    n = n_a + n_b
    share = n_b / np.maximum(n, 1)
    delta = mean_b - mean_a
    return n, mean_a + delta * share, m2_a + m2_b + delta**2 * n_a * share


def standard_error(n: ArrayLike, m2: ArrayLike) -> np.ndarray:
    """Standard error of a mean of n values whose squares about it sum to m2; NaN below 2 values."""
    return np.sqrt(divide(m2, np.asarray(n, np.float64) * (np.asarray(n) - 1)))


def t_interval(n: ArrayLike, mean: ArrayLike, m2: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of a mean: mean -+ t_(n-1) times the standard error; NaN below 2 values."""
    low, high = scipy.stats.t.interval(0.95, np.maximum(np.asarray(n) - 1, 1))
    error = standard_error(n, m2)  # scipy takes no scale of 0, where the interval is the mean alone
    return mean + low * error, mean + high * error


def wilson(share: float | None, n: int | None) -> tuple[float, float] | None:
    """95% Wilson score interval of a share of `n` independent cases; None where either is unknown."""
    if share is None or not n:
        return None
    found = scipy.stats.binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)
