"""Means with bootstrap intervals and p-values for effects paired by image; numpy on the host, seeded.

One feature: the mean over its active images, a 95% percentile bootstrap interval over those images, and a
two-sided p-value of "each image's difference is as likely to have the other sign" (the sign-flip test of
the mean). The test is exact where at most 16 differences are not zero; beyond that its tail is Student's t,
which `sign_flip_p` checks with random flips. With n differences that are not zero no p below 2^(1-n) is
possible, and none is reported.

Many features: the mean over features, each feature's value its mean over its images, with an interval from
resampling *images*: two features that fire on the same image are not independent, so resampling the pairs
would make intervals too narrow.
"""

import numpy as np
import scipy.stats

MIN_ACTIVE = 20  # fewer active images: no effect is reported
EXACT_UP_TO = 16
_CHUNK = 10_000


def bootstrap_weights(n: int, n_bootstrap: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of n rows is drawn in each of the resamples: float64 [n_bootstrap, n], rows sum to n."""
    drawn = rng.integers(n, size=(n_bootstrap, n))
    flat = (drawn + n * np.arange(n_bootstrap)[:, None]).ravel()
    return np.bincount(flat, minlength=n_bootstrap * n).reshape(n_bootstrap, n).astype(np.float64)


def mean_interval(values: np.ndarray, n_bootstrap: int, rng: np.random.Generator):
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
        return tuple(np.full(shape, np.nan) for _ in range(3))
    flat = values.reshape(len(values), -1)
    means = bootstrap_weights(len(values), n_bootstrap, rng) @ flat / len(values)  # [n_bootstrap, columns]
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return flat.mean(0).reshape(shape), low.reshape(shape), high.reshape(shape)


def difference_interval(a, b, n_bootstrap: int, rng: np.random.Generator):
    """Mean of a [m] minus mean of b [n] with its 95% bootstrap interval, each set resampled by itself.

    Returns (difference, low, high); NaN if either set is empty.
    """
    a, b = (np.asarray(values, np.float64) for values in (a, b))
    if not len(a) or not len(b):
        return np.nan, np.nan, np.nan
    drawn = [bootstrap_weights(len(values), n_bootstrap, rng) @ values / len(values) for values in (a, b)]
    low, high = np.percentile(drawn[0] - drawn[1], [2.5, 97.5])
    return float(a.mean() - b.mean()), float(low), float(high)


def exact_sign_flip_p(differences: np.ndarray) -> float:
    """Two-sided p of the mean under all 2^m flips of sign; differences [m], m <= 16."""
    differences = np.asarray(differences, np.float64)
    if len(differences) > EXACT_UP_TO:
        raise ValueError(f"exact sign flips take at most {EXACT_UP_TO} differences, got {len(differences)}")
    sums = np.zeros(1)
    for d in differences:
        sums = np.concatenate([sums + d, sums - d])
    tolerance = 1e-12 * np.abs(differences).sum()  # sums that are equal but for their order of addition
    return float(np.mean(np.abs(sums) >= abs(differences.sum()) - tolerance))


def sign_flip_p(differences: np.ndarray, n_flips: int = 100_000, seed: int = 0) -> float:
    """Two-sided p of the mean by random flips of sign, (1 + hits) / (1 + n_flips); differences [m]."""
    differences = np.asarray(differences, np.float64)
    rng, hits = np.random.default_rng(seed), 0
    least = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    for start in range(0, n_flips, _CHUNK):
        n = min(_CHUNK, n_flips - start)
        signs = rng.integers(0, 2, size=(n, len(differences)), dtype=np.int8) * 2.0 - 1.0
        hits += int(np.sum(np.abs(signs @ differences) >= least))
    return (1 + hits) / (1 + n_flips)


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
    if len(changed) <= EXACT_UP_TO:
        return exact_sign_flip_p(changed) if len(changed) else 1.0
    m = len(differences)
    error = differences.std(ddof=1) / np.sqrt(m)
    floor = 2.0 ** (1 - len(changed))
    if error == 0:
        return floor
    return max(2 * float(scipy.stats.t.sf(abs(differences.mean()) / error, m - 1)), floor)


def mean_over_features(values, features, images, n_bootstrap: int, rng: np.random.Generator):
    """Mean over features of each feature's mean over its images, interval by resampling images.

    Args:
      values: [M], one a (feature, image) pair; NaN pairs are left out.
      features: [M] feature numbers.
      images: [M] image numbers.

    Returns:
      (mean, low, high, number of features, number of images); None for the first three without any pair.
    """
    values, features, images = (np.asarray(a) for a in (values, features, images))
    known = ~np.isnan(values)
    values, features, images = values[known].astype(np.float64), features[known], images[known]
    if not len(values):
        return None, None, None, 0, 0
    names, column = np.unique(features, return_inverse=True)
    clusters, row = np.unique(images, return_inverse=True)
    totals = np.zeros((len(clusters), len(names)))
    counts = np.zeros_like(totals)
    np.add.at(totals, (row, column), values)
    np.add.at(counts, (row, column), 1)
    mean = float(np.mean(totals.sum(0) / counts.sum(0)))
    weights = bootstrap_weights(len(clusters), n_bootstrap, rng)
    n = weights @ counts  # [n_bootstrap, features]
    means = np.divide(weights @ totals, n, out=np.full(n.shape, np.nan), where=n > 0)
    low, high = np.nanpercentile(np.nanmean(means, axis=1), [2.5, 97.5])
    return mean, float(low), float(high), len(names), len(clusters)


def spearman_interval(x, y, n_bootstrap: int, rng: np.random.Generator):
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
    return tuple(float(q) for q in np.percentile((a * b).sum(1)[known] / size[known], [2.5, 97.5]))
