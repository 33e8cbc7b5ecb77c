"""The table of dictionaries: its scores and its markdown."""

import dataclasses

import numpy as np
import pytest
import sklearn.linear_model

from jsae import metrics
from jsae.ablation.effects import Named, make_effects
from jsae.ablation.feature_space import pairs
from jsae.analysis import dictionaries, readouts
from jsae.experiments import baselines
from jsae.tables import documentation, interval
from tests.ablation.toy import Store, reduce

ROW = {
    "dictionary": "pca",
    "n_features": 256,
    "l0": 12.5,
    "density": 0.05,
    "firing_share": 0.3,
    "fvu": None,
    "purity16": 0.25,
    "class_selective_share": 0.5,
    "class_auroc": 0.9,
    "part_auroc": float("nan"),
    "n_removed": 4,
    "removed_norm": 2.0,
    "own_class_margin": -0.5,
    **interval("margin_per_norm", -0.25, -0.3, -0.2),
    **interval("minus_direction_per_norm", -0.1234, -0.2, -0.05),
    **interval("minus_auroc_per_norm", float("nan"), float("nan"), float("nan")),
    "seconds": 1.0,
}


def test_the_feature_of_a_class_is_chosen_on_train_and_counts_by_test():
    features = {
        "top_class": [0, 0, 1, None, 1],
        "auroc_train": [0.95, 0.9, 0.8, None, 0.99],
        "auroc": [0.7, 0.9, 0.75, None, 0.99],  # the largest on test would be 0.9
        "eligible": [True, True, True, False, False],
    }
    assert baselines.class_auroc(features, 3) == pytest.approx((0.7 + 0.75 + 0.5) / 3)


def test_effects_are_compared_at_equal_removed_norm():
    """Feature 1 takes ten times as much away and does ten times as much: at equal norm they are alike."""
    features, images = np.repeat([0, 1], 30), np.tile(np.arange(30), 2)
    norms = np.where(features == 0, 0.2, 2.0) * np.tile(np.linspace(0.5, 1.5, 30), 2)
    deltas = np.zeros((60, 2, 4, 3, 4))
    deltas[:, 0, 0, 2, 1] = -3.0 * norms  # map, effect, top_class, margin
    deltas[:, 0, 1, 2, 1] = -1.0 * norms
    deltas[:, 0, 2, 2, 1] = np.where(np.arange(60) % 3 == 0, np.nan, -2.0 * norms)
    own = np.ones(60, bool)
    own[0:5] = False
    deltas[0:5] += 1000  # not of the class
    deltas, flips = make_effects(deltas, np.zeros((60, 2, 4), bool), scope=pairs.SCOPES, kind=pairs.KINDS)
    has = Named(np.ones((60, 4), bool), {"kind": pairs.KINDS})
    effects = pairs.FeatureEffects(features, images, own, norms, np.ones(60), deltas, flips, has, 30)
    found = baselines.effects_on_own_class(effects, 50, 0)
    assert found["n_removed"] == 2 and found["margin_per_norm"] == pytest.approx(-3)
    assert found["minus_direction_per_norm"] == pytest.approx(-2)
    assert found["minus_auroc_per_norm"] == pytest.approx(-1)
    assert found["own_class_margin"] == pytest.approx(-3 * (norms[5:30].mean() + norms[30:].mean()) / 2)
    assert found["removed_norm"] == pytest.approx((norms[5:30].mean() + norms[30:].mean()) / 2)
    fewer = dataclasses.replace(effects, own_class=own & (np.arange(60) > 15))
    assert baselines.effects_on_own_class(fewer, 50, 0)["n_removed"] == 1


def test_class_filters_are_ridge_regressions_and_their_patterns_are_removed():
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(90, 2, 2, 5)).astype(np.float32) + 3
    labels = np.r_[np.arange(80) % 3, [-1] * 10].astype(np.int32)
    acts[labels == 1, ..., 0] += 1
    store = Store(acts, labels, ["a", "b", "c", "absent"])
    means, filters, covariance = readouts.of_labels(store, 32)
    pooled, known = acts.mean((1, 2), dtype=np.float64), labels >= 0
    np.testing.assert_allclose(means[1], pooled[labels == 1].mean(0), rtol=1e-6)
    np.testing.assert_allclose(covariance, np.cov(pooled[known].T, bias=True), atol=1e-9)
    x = pooled[known] - pooled[known].mean(0)
    ridge = sklearn.linear_model.Ridge(readouts.RIDGE * np.square(x).sum() / 5)
    np.testing.assert_allclose(filters[1], ridge.fit(x, labels[known] == 1).coef_, rtol=1e-6)
    assert np.isnan(filters[3]).all() and np.isnan(means[3]).all()


def test_the_markdown_has_a_row_a_dictionary_and_dashes_for_unknown_numbers():
    table = baselines.TABLE.of_rows([ROW])
    assert all(documentation(table).values())
    lines = baselines.markdown(table.to_pylist()).splitlines()
    assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1
    assert lines[2].startswith(
        "| pca | 256 | 12.500 | 0.300 | – | 0.250 | 0.500 | 0.900 | – | 4 | 2.000 | -0.500 |"
    )
    assert lines[2].endswith("| -0.250 [-0.300, -0.200] | -0.123 [-0.200, -0.050] | – |")


def test_rows_of_another_ablation_stage_are_not_kept(tmp_path):
    path = tmp_path / baselines.TABLE.file
    assert baselines._rows_of(path, "abc") == []
    baselines.artifacts.write_table(path, baselines.TABLE.of_rows([ROW]), {"upstream": "abc"})
    assert [row["dictionary"] for row in baselines._rows_of(path, "abc")] == ["pca"]
    assert baselines._rows_of(path, "def") == []


def test_fvu_and_l0_are_those_of_all_vectors():
    acts = np.random.default_rng(0).normal(size=(10, 2, 2, 3)).astype(np.float32)
    half = dictionaries.signed(np.eye(3)[:1], np.zeros(3))
    sums = reduce(baselines.MeasureReconstruction(), half, acts, size=4)
    found = metrics.sae_metrics(sums.sae)
    x = acts.reshape(-1, 3)
    x_hat = x * np.array([1, 0, 0])
    assert found["fvu"] == pytest.approx(
        np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum(), rel=1e-5
    )
    assert found["l0"] == pytest.approx((x[:, 0] != 0).mean())
