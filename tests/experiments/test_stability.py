"""Stability of dictionaries: formulas by hand, the random baseline, and two workdirs compared."""

import numpy as np
import pytest

from jsae import metrics
from jsae.experiments import stability
from jsae.runtime import stages, workdirs
from jsae.sae.run import run
from tests.sae import conftest as examples


def test_cosines_by_hand():
    rows = np.array([[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]])
    others = np.array([[1.0, 0.0], [-1.0, 0.0]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(metrics.max_cosine(rows, others), [1, 0, half])
    np.testing.assert_allclose(metrics.max_cosine(others, rows), [1, 0])  # the sign counts
    assert metrics.mean_max_cosine(rows, others) == pytest.approx((1 + half) / 3)
    # one to one: (1,0) with itself, and (-1,0) with (0,3), not with a row that is taken
    assert metrics.matched_cosine(rows, others) == pytest.approx(0.5)
    assert metrics.mean_max_cosine(rows[:0], others) is None
    assert metrics.matched_cosine(rows, others[:0]) is None


def test_matching_is_one_to_one_where_the_maximum_is_not():
    rows = np.array([[1.0, 0.0], [1.0, 0.1], [1.0, -0.1]])  # three copies of one feature
    others = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert metrics.mean_max_cosine(rows, others) > 0.99
    assert metrics.matched_cosine(rows, others) < 0.5


def test_a_permuted_dictionary_is_stable_and_a_random_one_is_not():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 24))
    same = metrics.stability(rows, 3 * rows[rng.permutation(60)])
    assert same["mean_max_cosine"] == pytest.approx(1)
    assert same["matched_cosine"] == pytest.approx(1)
    other = metrics.stability(rows, rng.normal(size=(60, 24)))
    for name in ("mean_max_cosine", "matched_cosine"):
        assert other[name] == pytest.approx(same[f"random_{name}"], abs=0.05)
        assert 0.2 < other[name] < 0.6
    assert metrics.stability(rows, rows) == metrics.stability(rows, rows)


def test_dictionaries_too_large_to_match_say_none(monkeypatch):
    monkeypatch.setattr(metrics.dictionaries, "N_MATCHED", 5)
    found = metrics.stability(np.eye(6), np.eye(6))
    assert found["matched_cosine"] is None
    assert found["mean_max_cosine"] == 1


def test_two_workdirs_are_compared_over_their_alive_features(tmp_path):
    for seed in (0, 1):
        config = examples.small_config()
        config.seed, config.sae.eval_every_steps = seed, 0
        examples.make_activations(config, tmp_path / str(seed))
        workdirs.write_config(config, tmp_path / str(seed))
        run(config, tmp_path / str(seed))
    found = stability.compare(tmp_path / "0", tmp_path / "1")
    assert found["mean_max_cosine"] > found["random_mean_max_cosine"]
    dead = [stages.results(examples.small_config(), tmp_path / s, "sae")["dead_fraction"] for s in ("0",)]
    assert found["n_alive"][0] == 64 - round(64 * dead[0])
    itself = stability.compare(tmp_path / "0", tmp_path / "0")
    assert itself["matched_cosine"] == pytest.approx(1)
    assert itself["n_alive"][0] == found["n_alive"][0]
