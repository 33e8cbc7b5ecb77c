"""Ranks, curves and masses against loops."""

import numpy as np
import pytest

from jsae import metrics

RNG = np.random.default_rng(0)


def test_ranks_put_the_largest_first_and_ties_in_the_given_order():
    scores = RNG.integers(0, 4, (3, 4, 5)).astype(np.float32)
    order = RNG.permutation(20)
    found = np.asarray(metrics.pixel_ranks(scores, order))
    for image, ranks in zip(scores.reshape(3, -1), found.reshape(3, -1), strict=True):
        place = {pixel: i for i, pixel in enumerate(order)}
        wanted = sorted(range(20), key=lambda pixel: (-image[pixel], place[pixel]))
        assert [wanted.index(pixel) for pixel in range(20)] == ranks.tolist()


def test_progress_is_clipped_and_unknown_without_a_change():
    values = np.array([[0.0, 3.0, 9.0], [1.0, 1.0, 1.0]], np.float32)
    found = np.asarray(metrics.pixel_progress(values, np.array([1.0, 2.0]), np.array([5.0, 2.0])))
    np.testing.assert_allclose(found[0], [0, 0.5, 1])
    assert np.isnan(found[1]).all()


def test_areas_are_trapezoids():
    curve = RNG.uniform(size=(2, 21)).astype(np.float32)
    np.testing.assert_allclose(
        metrics.area_under(curve), np.trapezoid(curve, dx=1 / 20, axis=1), rtol=1e-6
    )  # float32 sums


def test_mass_is_of_what_is_positive():
    scores = np.array([[[3.0, -9.0], [1.0, 0.0]], [[-1.0, 0.0], [0.0, 0.0]]], np.float32)
    inside = np.array([[[True, True], [False, False]]] * 2)
    found = np.asarray(metrics.positive_mass(scores, inside))
    assert found[0] == pytest.approx(0.75) and np.isnan(found[1])
