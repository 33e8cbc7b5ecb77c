"""Sums of batches joined into those of a whole set on the host, and divided once at the end."""

import math
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

Sums = TypeVar("Sums", bound=tuple)


def add_sums(a: Sums | None, b: Sums) -> Sums:
    """Join the sums of two disjoint sets, on the host: counts as int64, the rest as float64.

    Args:
      a: SaeSums, Moments or ClassifierSums, or None for the empty set.
      b: the same type.
    """
    b = type(b)(*(_host(value) for value in b))
    if a is None:
        return b
    a = type(b)(*(_host(value) for value in a))
    with np.errstate(invalid="ignore", over="ignore"):  # activations that are not finite stay so
        return _joined(a, b)


def _joined(a: Any, b: Any) -> Any:
    joined = type(b)(*(u + v for u, v in zip(a, b, strict=True)))
    if "mean" not in b._fields:
        return joined
    n = max(int(a.n + b.n), 1)
    delta = b.mean - a.mean  # [C]
    mean = a.mean + delta * (float(b.n) / n)
    weight = float(a.n) * float(b.n) / n
    if "scatter" in b._fields:
        return joined._replace(mean=mean, scatter=joined.scatter + weight * np.outer(delta, delta))
    return joined._replace(mean=mean, m2=joined.m2 + weight * float(delta @ delta))


def _host(value: ArrayLike) -> np.ndarray:
    value = np.asarray(value)
    return value.astype(np.int64 if value.dtype.kind in "iub" else np.float64)


def ratio(numerator: Any, denominator: Any) -> float | None:
    """numerator / denominator; None where the denominator is 0 or either is not finite."""
    numerator, denominator = float(numerator), float(denominator)
    if denominator == 0 or not (math.isfinite(numerator) and math.isfinite(denominator)):
        return None
    return numerator / denominator


def divide(numerator: ArrayLike, denominator: ArrayLike) -> np.ndarray:
    """Elementwise ratio in float64, NaN where the denominator is 0 or either is not finite."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    valid = (denominator != 0) & np.isfinite(denominator) & np.isfinite(numerator)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=valid)
