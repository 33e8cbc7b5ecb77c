"""What purity16 is by chance: the level that a feature blind to classes reaches with its 16 top images."""

import functools

import numpy as np

_N_DRAWS = 4000  # random sets of 16 images


@functools.cache
def _purity_by_chance(sizes: tuple[int, ...]) -> float | None:
    if not sum(sizes):
        return None
    drawn = np.random.default_rng(0).multivariate_hypergeometric(
        sizes, min(16, sum(sizes)), _N_DRAWS
    )  # [n, L]
    return float((drawn.max(axis=1) / drawn.sum(axis=1)).mean())


def purity_by_chance(class_sizes) -> float | None:
    """Mean purity16 of 16 test images drawn at random, from the number of test images of each class."""
    return None if class_sizes is None else _purity_by_chance(tuple(int(n) for n in class_sizes))
