"""Dictionaries compared: how alike the rows of two are, beside random ones."""

from typing import Any

import numpy as np
import scipy
from numpy.typing import ArrayLike

N_MATCHED = 8192  # largest dictionary that is matched one to one


def _unit(rows: ArrayLike) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def max_cosine(rows: ArrayLike, others: ArrayLike) -> np.ndarray:
    """Largest cosine of each row [F, C] with any row of `others` [G, C] -> [F]; signed, zero rows give 0."""
    return (_unit(rows) @ _unit(others).T).max(axis=1, initial=-1.0)


def mean_max_cosine(rows: np.ndarray, others: np.ndarray) -> float | None:
    """Mean over the rows [F, C] of their largest cosine with `others` [G, C]; None if either is empty."""
    return float(max_cosine(rows, others).mean()) if len(rows) and len(others) else None


def matched_cosine(rows: np.ndarray, others: np.ndarray) -> float | None:
    """Mean cosine of the one-to-one matching of rows [F, C] and [G, C] with the largest sum (Hungarian).

    The smaller set is matched whole. None if one is empty or has more than N_MATCHED rows.
    """
    if not len(rows) or not len(others) or max(len(rows), len(others)) > N_MATCHED:
        return None
    cosines = _unit(rows) @ _unit(others).T  # [F, G]
    matched = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
    return float(cosines[matched].mean())


def stability(rows: np.ndarray, others: np.ndarray, *, seed: int = 0) -> dict[str, float | None]:
    """How alike two dictionaries are, beside random ones of the same sizes.

    Args:
      rows, others: decoder rows of the alive features of two SAEs, [F, C] and [G, C].
      seed: of the random dictionaries, whose rows are normal and therefore uniform on the sphere.

    Returns:
      mean_max_cosine (mean of both directions), matched_cosine, and both with the prefix random_.
    """
    rng = np.random.default_rng(seed)
    random = rng.normal(size=np.shape(rows)), rng.normal(size=np.shape(others))
    found = {}
    for prefix, (a, b) in {"": (rows, others), "random_": random}.items():
        one, other = mean_max_cosine(a, b), mean_max_cosine(b, a)
        found[f"{prefix}mean_max_cosine"] = None if one is None or other is None else (one + other) / 2
        found[f"{prefix}matched_cosine"] = matched_cosine(a, b)
    return found


def recovery(learned: np.ndarray, true: np.ndarray, *, above: float = 0.9) -> dict[str, Any]:
    """What of a known dictionary was found.

    Args:
      learned: decoder rows [F, C]; true: the known directions [G, C].
      above: the cosine from which a direction counts as found.

    Returns:
      recovered [G] bool: true features that some learned row points along; share_true: share of the learned
      rows that point along some true feature.
    """
    return {
        "recovered": max_cosine(true, learned) > above,
        "share_true": float((max_cosine(learned, true) > above).mean()),
    }
