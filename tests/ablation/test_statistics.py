"""Intervals and p-values against scipy, naive loops and random sign flips."""

import itertools

import numpy as np
import pytest
import scipy.stats

from jsae.ablation import statistics


def test_bootstrap_weights_count_draws():
    w = statistics.bootstrap_weights(7, 500, np.random.default_rng(0))
    assert w.shape == (500, 7)
    np.testing.assert_array_equal(w.sum(1), 7)
    np.testing.assert_allclose(w.var(), 6 / 7, rtol=0.1)  # binomial(7, 1/7)


def test_mean_interval_equals_scipys_bootstrap():
    values = np.random.default_rng(1).exponential(size=(60, 2))
    mean, low, high = statistics.mean_interval(values, 4000, np.random.default_rng(2))
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=4000, method="percentile", rng=np.random.default_rng(3)
    ).confidence_interval
    np.testing.assert_allclose(mean, values.mean(0))
    width = theirs.high - theirs.low
    # two runs of 4000 resamples: their ends scatter by about 3% of the width
    np.testing.assert_array_less(np.abs(low - theirs.low), 0.1 * width)
    np.testing.assert_array_less(np.abs(high - theirs.high), 0.1 * width)


def test_mean_interval_is_seeded_and_survives_nothing():
    values = np.arange(30.0)
    a = statistics.mean_interval(values, 200, np.random.default_rng(5))
    assert a == statistics.mean_interval(values, 200, np.random.default_rng(5))
    assert all(
        np.isnan(v).all() for v in statistics.mean_interval(np.zeros((0, 3)), 100, np.random.default_rng(0))
    )


def test_the_interval_covers():
    rng, hits = np.random.default_rng(4), 0
    for _ in range(200):
        _, low, high = statistics.mean_interval(rng.normal(size=40) + 1, 400, rng)
        hits += low <= 1 <= high
    assert 0.88 <= hits / 200 <= 0.99  # percentile intervals of 40 rows cover a little less than 95%


def test_few_differences_are_tested_exactly():
    rng = np.random.default_rng(0)
    for n in (2, 5, 9):
        d = rng.normal(size=n) + 0.5
        signs = np.array(list(itertools.product([-1, 1], repeat=n)))
        expected = np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12)
        assert float(statistics.paired_p(d)) == pytest.approx(expected)
    assert float(statistics.paired_p([1.0, 1.0, 1.0])) == 0.25
    assert float(statistics.paired_p([3.0])) == 1.0


def test_the_t_tail_agrees_with_random_flips_on_fifty_features():
    rng = np.random.default_rng(6)
    for i in range(50):
        d = rng.normal(size=20 + 4 * i) * rng.exponential() + 0.3 * rng.normal()
        d *= rng.exponential(size=len(d))  # heavier tails than normal
        p = float(statistics.paired_p(d))
        n_flips = 100_000 if i < 5 else 10_000
        signs = rng.integers(0, 2, size=(n_flips, len(d)), dtype=np.int8) * 2.0 - 1.0
        flips = (1 + np.sum(np.abs(signs @ d) >= abs(d.sum()))) / (1 + n_flips)
        # Monte Carlo error of 1e4 flips is 0.005; the rest is what the tail gets wrong
        assert abs(p - flips) < 0.03, (i, p, flips)


def test_few_differences_that_are_not_zero_are_tested_exactly():
    d = np.zeros(100)
    d[:3] = [1.0, 2.0, 3.0]
    assert float(statistics.paired_p(d)) == 0.25
    assert float(statistics.paired_p(np.zeros(50))) == 1.0
    assert float(statistics.paired_p(np.ones(30))) == pytest.approx(2.0**-29)
    assert np.isnan(statistics.paired_p(np.array([1.0, np.nan])))
    columns = statistics.paired_p(np.stack([d, np.zeros(100)], 1))
    np.testing.assert_array_equal(columns, [0.25, 1.0])


def test_p_is_uniform_without_an_effect():
    rng = np.random.default_rng(8)
    p = statistics.paired_p(rng.normal(size=(60, 800)))
    assert scipy.stats.kstest(p, "uniform").pvalue > 0.01


def test_mean_over_features_is_the_mean_of_means_with_an_interval_over_images():
    rng = np.random.default_rng(3)
    features = np.repeat(np.arange(6), 40)
    images = np.concatenate([rng.choice(100, 40, replace=False) for _ in range(6)])
    shared = rng.normal(size=100)  # an image moves all features alike
    values = shared[images] + features
    mean, low, high = statistics.mean_over_features(values, features, images, 2000, rng)
    n_images = len(np.unique(images))
    assert mean == pytest.approx(np.mean([values[features == f].mean() for f in range(6)]))
    naive = []
    for _ in range(1000):
        drawn = rng.choice(np.unique(images), n_images)
        counts = np.bincount(drawn, minlength=100)[images]
        naive.append(
            np.mean([np.average(values[features == f], weights=counts[features == f]) for f in range(6)])
        )
    naive_low, naive_high = np.percentile(naive, [2.5, 97.5])
    assert abs(low - naive_low) < 0.1 * (high - low) and abs(high - naive_high) < 0.1 * (high - low)
    by_pairs = statistics.mean_interval(shared[images], 1000, rng)
    assert high - low > 1.3 * (by_pairs[2] - by_pairs[1])  # resampling pairs would be too sure


def test_mean_over_features_leaves_unknown_pairs_out():
    rng = np.random.default_rng(0)
    found = statistics.mean_over_features([1.0, np.nan, 3.0], [0, 0, 1], [0, 1, 2], 50, rng)
    assert found[0] == 2.0 and np.isfinite(found).all()
    assert statistics.mean_over_features([np.nan], [0], [0], 50, rng) is None


def test_spearman_interval_brackets_the_correlation():
    rng = np.random.default_rng(1)
    x = rng.normal(size=60)
    y = x + 0.5 * rng.normal(size=60)
    low, high = statistics.spearman_interval(x, y, 500, rng)
    assert low < scipy.stats.spearmanr(x, y).statistic < high and low > 0.6
    assert statistics.spearman_interval(x[:2], y[:2], 100, rng) is None
    assert statistics.spearman_interval(np.ones(9), y[:9], 100, rng) is None
