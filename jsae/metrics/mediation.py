"""Mediation: how much of what a change of the image does to a target goes by way of some features.

A are a site's activations of the image, A~ of the changed one, f and f~ their features, y a target read off
the rest of the network, and S a set of features with decoder rows w:

    total effect             TE          = y(A~) - y(A)
    natural indirect effect  NIE_S       = y(A + sum_{j in S} (f~ - f)_j w_j) - y(A)
    necessity                necessity_S = y(A~) - y(A~ + sum_{j in S} (f - f~)_j w_j)
    error path               TE - NIE_all, what no feature carries

(Pearl 2001; of networks arXiv 2004.12265.)
"""

import numpy as np
from numpy.typing import ArrayLike

from jsae.metrics.counterfactual import carried_share

MIN_STANDARD_ERRORS = 2.0  # of the mean total effect; below, there is nothing to have a share in


def total_effect_is_clear(totals: ArrayLike) -> bool:
    """Whether |mean TE| of n images [n] is at least two standard errors; never with fewer than two images."""
    totals = np.asarray(totals, np.float64)
    if len(totals) < 2 or not totals.any():
        return False
    return bool(abs(totals.mean()) >= MIN_STANDARD_ERRORS * totals.std(ddof=1) / np.sqrt(len(totals)))


def mediated_share(effects: ArrayLike, totals: ArrayLike) -> np.ndarray:
    """sum_i effect_i / sum_i TE_i: effects [..., n] of totals [n] -> [...]; NaN if the total is not clear.

    The effects are NIE_S, necessity_S or the error path. Shares of single features or of the error path
    add up to 1 only as far as y is linear.
    """
    shares = carried_share(effects, totals)
    return shares if total_effect_is_clear(totals) else np.full_like(shares, np.nan)


def error_path(totals: ArrayLike, of_all_features: ArrayLike) -> np.ndarray:
    """TE - NIE_all of n images [n]: what the SAE's error carries, and what y is not additive in."""
    return np.asarray(totals, np.float64) - np.asarray(of_all_features, np.float64)
