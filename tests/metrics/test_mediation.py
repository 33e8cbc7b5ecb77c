"""Mediated shares: by hand, and unknown where there is no total effect to have a share in."""

import numpy as np
import pytest

from jsae import metrics


def test_a_share_is_a_ratio_of_sums_and_the_error_path_is_what_is_left():
    totals = np.array([-1.0, -2.0, -3.0])
    effects = np.array([[-1.0, -1.0, -1.0], [0.0, 0.0, -6.0]])
    np.testing.assert_allclose(metrics.mediated_share(effects, totals), [0.5, 1.0])
    rest = metrics.error_path(totals, effects[0])
    assert metrics.mediated_share(rest, totals) == pytest.approx(0.5)


def test_a_total_effect_below_two_standard_errors_has_no_shares():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=100)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # mean 0, standard error of the mean 0.1
    for shift, clear in ((0.199, False), (0.201, True), (-0.201, True), (-0.199, False)):
        assert metrics.total_effect_is_clear(noise + shift) == clear
        assert np.isfinite(metrics.mediated_share(noise, noise + shift)) == clear
    for totals in ([], [3.0], [0.0, 0.0]):
        assert not metrics.total_effect_is_clear(totals)
    assert metrics.total_effect_is_clear([2.0, 2.0])
    assert np.isnan(metrics.mediated_share(np.ones((4, 2)), [1.0, -1.0])).all()
