"""Linear probes: a filter reads a quantity out of activations, its pattern says how it lies in them."""

import numpy as np
from numpy.typing import ArrayLike


def pattern(filters: ArrayLike, covariance: ArrayLike) -> np.ndarray:
    """What activations change by when a probe's output changes by 1: Sigma w / (w' Sigma w), [..., C].

    A filter w also cancels what is correlated with its target, so removing along w removes next to nothing of
    the target; its pattern is the regression of the activations on the output (Haufe et al. 2014, eq. 6).

    Args:
      filters: w [..., C].
      covariance: Sigma [C, C] of the activations that the filters were fitted on.

    Returns:
      [..., C], float64; NaN for a filter whose output does not vary.
    """
    filters, covariance = np.asarray(filters, np.float64), np.asarray(covariance, np.float64)
    rows = filters @ covariance
    variance = (rows * filters).sum(-1, keepdims=True)
    return rows / np.where(variance > 0, variance, np.nan)
