"""Rows of the ablation tables: means, nulls, families of tests, documented columns; the features chosen."""

import logging

import numpy as np
import pytest
import scipy.stats

from jsae.ablation import choice
from jsae.ablation.effects import MEASURES, TARGETS, make_effects
from jsae.ablation.feature_space import table as feature_space_table
from jsae.ablation.feature_space.pairs import KINDS, SCOPES, FeatureEffects
from jsae.ablation.headline import headline
from jsae.tables import documentation


@pytest.fixture
def effects():
    """Feature 4 lowers its top class by 1, feature 7 does nothing, feature 9 fires on 5 images only."""
    rng = np.random.default_rng(0)
    features = np.repeat([4, 7, 9], [60, 40, 5]).astype(np.int32)
    images = np.concatenate([rng.permutation(80)[:n] for n in (60, 40, 5)]).astype(np.int32)
    deltas = rng.normal(size=(105, 2, 3, 3, 4)) * 0.1
    deltas[:60, :, 0, TARGETS.index("top_class")] -= 1
    matched = np.ones(105, bool)
    matched[:10] = False
    deltas[~matched, :, 2] = np.nan
    flips = rng.random((105, 2, 3)) < 0.3
    deltas, flips = make_effects(deltas.astype(np.float32), flips, scope=SCOPES, kind=KINDS)
    return FeatureEffects(features, images, np.zeros((105, 2), np.int32), deltas, flips, matched, 80)


def pick(rows, **where):
    return [row for row in rows if all(row[k] == v for k, v in where.items())]


def test_feature_space_rows(effects):
    columns = feature_space_table.columns(effects, [4, 7, 9], 300, 0)
    rows = feature_space_table.TABLE.make(columns).to_pylist()
    assert len(rows) == 3 * len(SCOPES) * len(TARGETS) * len(MEASURES)
    (row,) = pick(rows, feature=4, scope="map", target="top_class", measure="margin")
    d = effects.deltas.values[:60, 0, :, 2, 1].astype(np.float64)
    assert (row["n_active"], row["n_control_feature"], row["share_active"]) == (60, 50, 0.75)
    assert row["mean_delta"] == pytest.approx(d[:, 0].mean())
    assert row["mean_delta_low"] < row["mean_delta"] < row["mean_delta_high"]
    assert row["effect_minus_direction"] == pytest.approx((d[:, 0] - d[:, 1]).mean())
    assert row["control_direction_mean_delta"] == pytest.approx(d[:, 1].mean())
    assert row["effect_minus_feature"] == pytest.approx((d[10:, 0] - d[10:, 2]).mean())
    assert row["control_feature_mean_delta"] == pytest.approx(d[10:, 2].mean())
    assert row["p_direction"] == pytest.approx(scipy.stats.ttest_1samp(d[:, 0] - d[:, 1], 0).pvalue, rel=1e-6)
    assert row["effect_minus_feature_low"] < row["effect_minus_feature"] < row["effect_minus_feature_high"]
    assert row["flip_rate"] == pytest.approx(effects.flips.values[:60, 0, 0].mean())
    assert row["control_feature_flip_rate"] == pytest.approx(effects.flips.values[10:60, 0, 2].mean())
    # two features have a p, so the smaller one counts twice
    assert row["q_direction"] == pytest.approx(2 * row["p_direction"])
    (null,) = pick(rows, feature=9, scope="peak", target="label", measure="logit")
    assert null["n_active"] == 5 and null["share_active"] == 5 / 80
    assert all(v is None for k, v in null.items() if k.startswith(("mean", "effect", "p_", "q_", "flip")))


def test_tables_are_documented_and_hold_nulls(effects):
    for module, of_features in ((feature_space_table, [4, 7, 9]), (feature_space_table, [])):
        table = module.TABLE.make(module.columns(effects, of_features, 50, 0))
        assert table.num_rows == 24 * len(of_features)
        assert table["mean_delta"].null_count == 8 * len(of_features)
        assert not any(v != v for v in table["mean_delta"].to_pylist() if v is not None)
    assert all(len(doc) > 5 for doc in documentation(feature_space_table.TABLE.schema).values())


def test_named_axes():
    deltas, flips = make_effects(np.arange(48.0).reshape(2, 2, 3, 4), np.ones((2, 2), bool), kind=("a", "b"))
    np.testing.assert_array_equal(deltas.at(kind="b", measure="logit"), [[12, 16, 20], [36, 40, 44]])
    np.testing.assert_array_equal(deltas.select(target="label").at(kind="a", measure="margin"), [1, 25])
    deltas.forget(np.array([False, True]), kind="b", target="prediction")
    flips.forget(np.array([True, False]), kind="a")
    assert np.isnan(deltas.values).sum() == 4 and np.isnan(deltas.values[1, 1, 1]).all()
    assert flips.values.tolist() == [[False, True], [True, True]]
    for unknown in ({"scope": "map"}, {"kind": "c"}):
        with pytest.raises(KeyError, match="there is no"):
            deltas.at(**unknown)


def test_headline(effects):
    at_map = effects.deltas.select(scope="map")
    found = headline(effects.features, effects.images, at_map, [4, 7], [4], 200, 0)
    margin = at_map.at(kind="effect", target="label", measure="margin")
    assert found["n_features"] == 2
    assert found["n_images"] == len(np.unique(effects.images[:100]))
    assert found["mean_delta_margin"] == pytest.approx(
        (margin[:60].mean() + margin[60:100].mean()) / 2, rel=1e-4
    )
    low, high = found["mean_effect_minus_control_margin_ci95"]
    assert low < found["mean_effect_minus_control_margin"] < high < -0.9
    names = ["mean_delta_logit", "mean_delta_margin", "mean_delta_confidence", "control_mean_delta_margin"]
    names += ["control_feature_mean_delta_margin", "mean_effect_minus_control_margin"]
    assert set(found) == {"n_features", "n_images", *names, *(f"{name}_ci95" for name in names)}
    nothing = headline(effects.features, effects.images, at_map, [], [], 200, 0)
    assert nothing["n_features"] == 0 and all(nothing[name] is None for name in names)
    assert nothing["mean_delta_logit_ci95"] is None


def features_table():
    return {
        "feature": list(range(6)),
        "eligible": [True, True, False, True, True, True],
        "class_selective": [False, True, True, None, True, False],
        "auroc": [0.9, 0.85, 0.99, None, 0.95, 0.5],
        "mean_active": [1.0, 5.0, 9.0, 3.0, 2.0, None],
        "top_class": [0, 1, 2, None, 1, 0],
    }


def test_choice_of_features(caplog):
    assert choice.choose_features(features_table(), 10) == [4, 1, 3, 0, 5]
    assert choice.choose_features(features_table(), 3) == [4, 1, 3]
    assert choice.choose_features(features_table(), 3, (2, 5, 2)) == [2, 5]
    with pytest.raises(
        ValueError, match=r"config.ablation.features: there is no feature 6; features are 0 \.\. 5"
    ):
        choice.choose_features(features_table(), 3, (1, 6))
    none = features_table() | {"eligible": [False] * 6}
    with caplog.at_level(logging.WARNING, "jsae"):
        assert choice.choose_features(none, 3) == []
    assert "no feature fires on 20 test images" in caplog.text
    chosen = choice.choose(features_table(), 4)
    assert (chosen.features, chosen.selective) == ([4, 1, 3, 0], [4, 1])
    assert chosen.top_classes.tolist() == [0, 1, 2, -1, 1, 0]
