"""Means with bootstrap intervals and p-values for effects paired by image; on the host, seeded.

One feature: the mean over its active images, a 95% percentile bootstrap interval over those images, and a
two-sided p-value of "each image's difference is as likely to have the other sign" (the sign-flip test of
the mean). The test is exact where at most 16 differences are not zero; beyond that its tail is Student's t.
With n differences that are not zero no p below 2^(1-n) is possible, and none is reported.

Many features: the mean over features, each feature's value its mean over its images, with an interval from
resampling *images*: two features that fire on the same image are not independent, so resampling the pairs
would make intervals too narrow. All intervals of one call come from the same resamples, as weights, which
scipy.stats.bootstrap cannot do.
"""

import numpy as np
import scipy
from numpy.typing import ArrayLike

from jsae.analysis.features import MIN_ACTIVE_IMAGES

MIN_ACTIVE = MIN_ACTIVE_IMAGES  # of test; fewer: no effect is reported
BOOTSTRAP = "95% bootstrap interval over images"
EXACT_UP_TO = 16


def bootstrap_weights(n: int, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n rows is drawn in each of the resamples: float64 [n_bootstrap, n], rows sum to n."""
    drawn = rng.integers(n, size=(n_bootstrap, n))
    flat = (drawn + n * np.arange(n_bootstrap)[:, None]).ravel()
    return np.bincount(flat, minlength=n_bootstrap * n).reshape(n_bootstrap, n).astype(np.float64)


def mean_interval(
    values: np.ndarray, n_bootstrap: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over rows with its 95% bootstrap interval.

    Args:
      values: [m, ...]; all columns are resampled together. A column with NaN gives NaN.
      n_bootstrap: number of resamples.
      rng: the source of the resamples.

    Returns:
      (mean, low, high), each [...]; NaN if m is 0.
    """
    values = np.asarray(values, np.float64)
    shape = values.shape[1:]
    if not len(values):
        return np.full(shape, np.nan), np.full(shape, np.nan), np.full(shape, np.nan)
    flat = values.reshape(len(values), -1)
    means = bootstrap_weights(len(values), n_bootstrap, rng) @ flat / len(values)  # [n_bootstrap, columns]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return flat.mean(0).reshape(shape), low.reshape(shape), high.reshape(shape)


def paired_p(differences: np.ndarray) -> np.ndarray:
    """Two-sided p of the mean difference, by exact sign-flip or its t tail.

    Args:
      differences: [m, ...], rows are images.

    Returns:
      p [...]; NaN where a column has NaN or m is 0, 1 where all differences are 0.
    """
    differences = np.asarray(differences, np.float64)
    shape = differences.shape[1:]
    if not len(differences):
        return np.full(shape, np.nan)
    flat = differences.reshape(len(differences), -1)
    return np.array([_one_p(column) for column in flat.T]).reshape(shape)


def _one_p(differences: np.ndarray) -> float:
    if np.isnan(differences).any():
        return np.nan
    changed = differences[differences != 0]  # a zero is the same with either sign
    if len(changed) < 2:
        return 1.0
    if len(changed) <= EXACT_UP_TO:
        flips = scipy.stats.permutation_test(
            (changed,), np.sum, permutation_type="samples", n_resamples=np.inf
        )
        return float(flips.pvalue)
    m, floor = len(differences), 2.0 ** (1 - len(changed))
    error = differences.std(ddof=1) / np.sqrt(m)
    if error == 0:
        return floor
    return max(2 * float(scipy.stats.t.sf(abs(differences.mean()) / error, m - 1)), floor)


def mean_over_features(
    values: np.ndarray,
    features: np.ndarray,
    images: np.ndarray,
    n_bootstrap: int,
    rng: np.random.Generator,
    *,
    per: np.ndarray | None = None,
) -> tuple[float, float, float] | None:
    """Mean over features of each feature's mean over its images, interval by resampling images.

    Args:
      values: [M], one per (feature, image) pair; NaN pairs are left out.
      features: [M] feature numbers.
      images: [M] image numbers.
      per: [M], > 0; of each feature the sum of its values is divided by the sum of these, not by its images.

    Returns:
      (mean, low, high); None without any pair.
    """
    values, features, images = (np.asarray(a) for a in (values, features, images))
    known = ~np.isnan(values)
    per = np.ones(len(values)) if per is None else np.asarray(per)
    per = per[known].astype(np.float64)
    values, features, images = values[known].astype(np.float64), features[known], images[known]
    if not len(values):
        return None
    names, column = np.unique(features, return_inverse=True)
    clusters, row = np.unique(images, return_inverse=True)
    totals = np.zeros((len(clusters), len(names)))
    counts = np.zeros_like(totals)
    np.add.at(totals, (row, column), values)
    np.add.at(counts, (row, column), per)
    mean = float(np.mean(totals.sum(0) / counts.sum(0)))
    weights = bootstrap_weights(len(clusters), n_bootstrap, rng)
    n = weights @ counts  # [n_bootstrap, features]
    means = np.divide(weights @ totals, n, out=np.full(n.shape, np.nan), where=n > 0)
    low, high = np.nanpercentile(np.nanmean(means, axis=1), [2.5, 97.5])
    return mean, float(low), float(high)


def spearman_interval(
    x: ArrayLike, y: ArrayLike, n_bootstrap: int, rng: np.random.Generator
) -> tuple[float, float] | None:
    """95% bootstrap interval of Spearman's rank correlation of x and y [n], resampling the rows.

    Returns (low, high), or None with fewer than 3 rows or if hardly any resample has a correlation.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if len(x) < 3:
        return None
    drawn = rng.integers(len(x), size=(n_bootstrap, len(x)))
    ranks = [scipy.stats.rankdata(v[drawn], axis=1) for v in (x, y)]
    a, b = (r - r.mean(1, keepdims=True) for r in ranks)
    size = np.sqrt((a * a).sum(1) * (b * b).sum(1))
    known = size > 0  # a resample of equal values has no correlation
    if known.sum() < n_bootstrap / 2:
        return None
    low, high = np.percentile((a * b).sum(1)[known] / size[known], [2.5, 97.5]).tolist()
    return low, high
