"""How well a source mixes: the share of a step's vectors that come from one image or one class.

A fair draw from the whole split is the ideal; a shuffle buffer holds only a part of the images at a time, so
more vectors of one image meet in a step.
"""

from typing import Any

import numpy as np

_STEPS = 8  # measured


def shares(source: Any, labels: np.ndarray, cells: int, *, seed: int) -> dict:
    """The largest share of one image, and of one class, in a step: means over the first steps of a run.

    Args:
      source: `Resident` or `Streamed`.
      labels: of the images [n_images].
      cells: vectors of an image.
      seed: of the fair draws beside them.

    Returns:
      {"image_share", "class_share", "ideal_image_share", "ideal_class_share"}; the ideal ones are those of as
      many vectors drawn from the whole split, without replacement.
    """
    rng, found = np.random.default_rng([seed, 3]), {}
    drawn = [source.numbers(step).ravel() for step in range(min(_STEPS, source.shape.steps_per_epoch))]
    drawn = [numbers[numbers >= 0] for numbers in drawn]
    fair = [rng.choice(source.shape.n_vectors, size=len(numbers), replace=False) for numbers in drawn]
    for prefix, batches in (("", drawn), ("ideal_", fair)):
        images = [numbers // cells for numbers in batches if len(numbers)]
        found[f"{prefix}image_share"] = float(np.mean([_largest(i) for i in images]))
        found[f"{prefix}class_share"] = float(np.mean([_largest(labels[i]) for i in images]))
    return found


def _largest(groups: np.ndarray) -> float:
    return np.unique(groups, return_counts=True)[1].max() / len(groups)
