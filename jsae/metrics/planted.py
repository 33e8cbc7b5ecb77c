"""Planted directions: what is put into activations, and how much of it some features of a dictionary carry.

    x' = x + sum_p alpha_p 1[part p covers the cell] d_p        d_p orthonormal

A pair is x and x with one direction planted, its head the pooled d_p . x. All of this is linear: the share of
a set of features is the sum of the shares of its members.
"""

import numpy as np
from numpy.typing import ArrayLike

FOUND = 0.8  # the share from which on a planted direction counts as found


def planted_strengths(covered: ArrayLike, total_variance: float, dose: float) -> np.ndarray:
    """alpha [P] with alpha_p^2 q_p (1 - q_p) = dose * tr Cov(x).

    Args:
      covered: q_p, the share of train cells in which a direction is planted, strictly between 0 and 1 [P].
      total_variance: tr Cov(x) over train vectors.
      dose: variance of one planted direction as a share of it.
    """
    q = np.asarray(covered, np.float64)
    return np.sqrt(dose * total_variance / (q * (1 - q)))


def chosen_shares(choose: ArrayLike, score: ArrayLike, m: int) -> tuple[np.ndarray, np.ndarray]:
    """Share and leak of the m features that carry most of each pair, where shares add up.

    Args:
      choose: share of single features in each pair, where they are chosen [P, F] (train).
      score: the same where they are scored [P, F] (test).
      m: how many, at most F.

    Returns:
      share [P], and leak [P], the mean over the other pairs of |share| of the same features.
    """
    choose, score = np.asarray(choose, np.float64), np.asarray(score, np.float64)
    best = np.argsort(-choose, axis=1, kind="stable")[:, :m]  # [P, m]
    carried = score[:, best].sum(-1)  # [P, P]: of pair q by the features of p
    others = ~np.eye(len(carried), dtype=bool)
    n_others = max(len(carried) - 1, 1)
    return np.diagonal(carried).copy(), (np.abs(carried) * others).sum(0) / n_others


def detection_limit(doses: ArrayLike, shares: ArrayLike) -> float:
    """The smallest dose whose mean share at one feature is at least 0.8; NaN if none is."""
    doses, shares = np.asarray(doses, np.float64), np.asarray(shares, np.float64)
    found = doses[shares >= FOUND]
    return float(found.min()) if len(found) else float("nan")
