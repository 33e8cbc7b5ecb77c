"""Areas over cells against `auroc` part by part, and the pointing game by hand."""

import numpy as np

from jsae import metrics


def test_cell_auroc_is_auroc_over_the_cells_of_each_part():
    rng = np.random.default_rng(0)
    values = np.round(np.maximum(rng.normal(size=(300, 6)), 0), 1).astype(np.float32)  # silent cells and ties
    values[:, 4] = 0
    values[:, 5] = rng.random(300)
    kind = rng.integers(0, 3, (300, 4))  # positive, negative, not counted
    kind[:, 3] = 2
    found = metrics.cell_auroc(values, kind == 0, kind == 1)
    for part in range(3):
        counted = kind[:, part] < 2
        expected, _ = metrics.auroc(values[counted], kind[counted, part] == 0)
        np.testing.assert_allclose(found[:, part], expected, rtol=1e-12)  # float64 sums in another order
    assert np.isnan(found[:, 3]).all() and (found[4, :3] == 0.5).all()


def test_the_pointing_game_counts_images_whose_peak_is_in_the_part():
    values = np.zeros((3, 4, 2), np.float32)
    values[0, 2, 0], values[0, 1, 0] = 3, 2
    values[1, 0, 0] = 1
    values[2, 3, 1] = 1
    positive = np.zeros((3, 4, 2), bool)
    positive[0, 2, 0] = positive[1, 1, 0] = positive[2, 3, 0] = True  # part 1 is nowhere
    found = metrics.pointing(values, positive)
    np.testing.assert_array_equal(found[:, 0], [1 / 3, 1 / 3])
    assert np.isnan(found[:, 1]).all()


def test_a_silent_feature_points_nowhere():
    positive = np.zeros((1, 2, 1), bool)
    positive[0, 0] = True  # where argmax of nothing lands
    assert metrics.pointing(np.zeros((1, 2, 1)), positive)[0, 0] == 0


def test_monosemanticity_is_the_weighted_mean_over_pairs():
    rng = np.random.default_rng(0)
    pooled, e = np.maximum(rng.normal(size=(12, 3)), 0), rng.normal(size=(12, 5))
    pooled[:, 2] = 0
    pooled[4, 2] = 1  # one image has no pair
    found = metrics.monosemanticity(pooled, e)
    unit = e - e.mean(0)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    for w, value in ((pooled[:, 0], found[0]), (pooled[:, 1], found[1])):
        pairs = [(i, k) for i in range(12) for k in range(12) if i != k]
        weight = np.array([w[i] * w[k] for i, k in pairs])
        cosine = np.array([unit[i] @ unit[k] for i, k in pairs])
        np.testing.assert_allclose(value, (weight * cosine).sum() / weight.sum(), rtol=1e-10)  # float64
    assert np.isnan(found[2])


def test_the_null_of_monosemanticity_has_the_mean_of_all_pairs_and_the_features_own_spread():
    rng = np.random.default_rng(0)
    pooled, e = np.ones((30, 3)), rng.normal(size=(30, 5))
    pooled[:, 0] = rng.random(30)
    pooled[3:, 1] = 0  # fires in three images
    mean, spread = metrics.monosemanticity_null(pooled, e, 2000, 0)
    all_pairs = metrics.monosemanticity(np.ones((30, 1)), e)[0]
    assert (np.abs(mean - all_pairs) <= 4 * spread / 2000**0.5 + 1e-12).all()
    assert spread[1] > 3 * spread[0] > 0 and spread[2] < 1e-12
