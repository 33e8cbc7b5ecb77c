"""A shortcut: a value of the image that is tied to the class in training and not in the test.

Groups are class x value. A network that uses the value fails in the groups where the tie is broken.
"""

import numpy as np
from numpy.typing import ArrayLike

MIN_GROUP_IMAGES = 40
MIN_GAP = 0.05  # of the reference's worst group over the worst group before


def group_accuracies(correct: ArrayLike, labels: ArrayLike, values: ArrayLike, n_classes: int) -> np.ndarray:
    """Accuracy in each group of class and value (0 or 1) [L, 2]; NaN for fewer than 40 images.

    Args:
      correct: whether the prediction of an image is right [N].
      labels, values: class and value of each image [N].
      n_classes: L.
    """
    group = 2 * np.asarray(labels) + np.asarray(values)
    n = np.bincount(group, minlength=2 * n_classes)
    right = np.bincount(group, np.asarray(correct, np.float64), minlength=2 * n_classes)
    return np.where(n >= MIN_GROUP_IMAGES, right / np.maximum(n, 1), np.nan).reshape(n_classes, 2)


def worst_group(accuracies: ArrayLike) -> float:
    """The smallest of the known accuracies; NaN if none is known."""
    accuracies = np.asarray(accuracies, np.float64)
    known = accuracies[np.isfinite(accuracies)]
    return float(known.min()) if len(known) else float("nan")


def gap_recovered(before: float, after: float, reference: float) -> float:
    """(after - before) / (reference - before) of worst-group accuracy; NaN: a denominator below 0.05."""
    gap = reference - before
    return (after - before) / gap if gap >= MIN_GAP else float("nan")
