"""Many features at once: q-values, rank correlation, means over images with their intervals."""

import numpy as np
import scipy.stats

from jsae.metrics.sums import divide, ratio


def benjamini_hochberg(p, eligible=None) -> np.ndarray:
    """q-values [F] of p [F]; only eligible entries with a p count as tests, the others get NaN."""
    p = np.asarray(p, np.float64)
    tested = np.isfinite(p) & (True if eligible is None else np.asarray(eligible, bool))
    q = np.full(p.shape, np.nan)
    q[tested] = scipy.stats.false_discovery_control(p[tested]) if tested.any() else []
    return q


def spearman(a, b) -> float | None:
    """Rank correlation of a and b [n], ties by mean rank; None below 3 finite pairs or if one is constant."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return None
    ranks = [scipy.stats.rankdata(values[both]) for values in (a, b)]
    ranks = [r - r.mean() for r in ranks]
    return ratio(ranks[0] @ ranks[1], np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))


def join_moments(a, b):
    """Moments (n, mean, m2) of two disjoint sets joined, on the host in float64 (Chan et al.).

    n counts, mean is the mean (anything finite where n is 0), m2 the sum of squares about it; the arrays of
    a set broadcast against each other, and NaN stays NaN.
    """
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = (
        tuple(np.asarray(part, np.float64) for part in each) for each in (a, b)
    )
    n = n_a + n_b
    share = n_b / np.maximum(n, 1)
    delta = mean_b - mean_a
    return n, mean_a + delta * share, m2_a + m2_b + delta**2 * n_a * share


def standard_error(n, m2) -> np.ndarray:
    """Standard error of a mean of n values whose squares about it sum to m2; NaN below 2 values."""
    return np.sqrt(divide(m2, np.asarray(n, np.float64) * (np.asarray(n) - 1)))


def t_interval(n, mean, m2) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of a mean: mean -+ t_(n-1) times the standard error; NaN below 2 values."""
    n = np.asarray(n)
    half = scipy.stats.t.ppf(0.975, np.maximum(n - 1, 1)) * standard_error(n, m2)
    return mean - half, mean + half
