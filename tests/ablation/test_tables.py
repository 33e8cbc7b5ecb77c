"""Rows of the ablation tables: means, nulls, families of tests, documented columns; the features chosen."""

import dataclasses
import logging

import numpy as np
import pytest
import scipy.stats

from jsae.ablation import choice
from jsae.ablation.all_features import cumulative, totals
from jsae.ablation.all_features import table as all_features_table
from jsae.ablation.effects import MEASURES, TARGETS, Named, make_effects
from jsae.ablation.feature_space import table as feature_space_table
from jsae.ablation.feature_space.pairs import KINDS, SCOPES, FeatureEffects
from jsae.ablation.headline import of_feature_space
from jsae.tables import documentation


@pytest.fixture
def effects():
    """Feature 4 lowers its top class by 1 (its images: 2), 7 does nothing, 9 fires on 5 images only."""
    rng = np.random.default_rng(0)
    features = np.repeat([4, 7, 9], [60, 40, 5]).astype(np.int32)
    images = np.concatenate([rng.permutation(80)[:n] for n in (60, 40, 5)]).astype(np.int32)
    deltas = rng.normal(size=(105, 2, 4, 3, 4)) * 0.1
    own = np.arange(105) % 2 == 0
    deltas[:60, :, 0, TARGETS.index("top_class")] -= 1 + own[:60, None, None]
    has = np.ones((105, 4), bool)
    has[:10, 3] = has[50:55, 2] = False
    np.moveaxis(deltas, 2, 1)[~has] = np.nan
    flips = rng.random((105, 2, 4)) < 0.3
    deltas, flips = make_effects(deltas.astype(np.float32), flips, scope=SCOPES, kind=KINDS)
    return FeatureEffects(
        features=features,
        images=images,
        own_class=own,
        norms=rng.random(105).astype(np.float32),
        control_auroc=np.full(105, 0.9),
        deltas=deltas,
        flips=flips,
        has=Named(has, {"kind": KINDS}),
        n_images=80,
    )


def pick(rows, **where):
    return [row for row in rows if all(row[k] == v for k, v in where.items())]


def test_feature_space_rows(effects):
    columns = feature_space_table.columns(effects, [4, 7, 9], 300, 0)
    rows = feature_space_table.TABLE.make(columns).to_pylist()
    assert len(rows) == 3 * len(SCOPES) * (len(TARGETS) + 1) * len(MEASURES)
    (row,) = pick(rows, feature=4, scope="map", target="top_class", measure="margin")
    d = effects.deltas.values[:60, 0, :, 2, 1].astype(np.float64)
    assert (row["n_active"], row["n_control_feature"], row["share_active"]) == (60, 50, 0.75)
    assert (row["n_control_direction"], row["n_control_auroc"], row["control_auroc_train"]) == (60, 55, 0.9)
    assert row["mean_delta"] == pytest.approx(d[:, 0].mean())
    assert row["mean_delta_low"] < row["mean_delta"] < row["mean_delta_high"]
    assert row["effect_minus_direction"] == pytest.approx((d[:, 0] - d[:, 1]).mean())
    assert row["control_direction_mean_delta"] == pytest.approx(d[:, 1].mean())
    assert row["effect_minus_feature"] == pytest.approx((d[10:, 0] - d[10:, 3]).mean())
    assert row["control_feature_mean_delta"] == pytest.approx(d[10:, 3].mean())
    assert row["control_auroc_mean_delta"] == pytest.approx(np.nanmean(d[:, 2]))
    assert row["effect_minus_auroc"] == pytest.approx(np.nanmean(d[:, 0] - d[:, 2]))
    assert row["p_direction"] == pytest.approx(scipy.stats.ttest_1samp(d[:, 0] - d[:, 1], 0).pvalue, rel=1e-6)
    assert row["effect_minus_feature_low"] < row["effect_minus_feature"] < row["effect_minus_feature_high"]
    assert row["flip_rate"] == pytest.approx(effects.flips.values[:60, 0, 0].mean())
    assert row["control_feature_flip_rate"] == pytest.approx(effects.flips.values[10:60, 0, 3].mean())
    # two features have a p, so the smaller one counts twice
    assert row["q_direction"] == pytest.approx(2 * row["p_direction"])
    (own,) = pick(rows, feature=4, scope="map", target="own_class", measure="margin")
    assert (own["n_active"], own["share_active"], own["n_control_feature"]) == (30, 30 / 80, 25)
    assert own["mean_delta"] == pytest.approx(d[::2, 0].mean()) and own["mean_delta"] < -1.9
    assert own["effect_minus_direction"] == pytest.approx((d[::2, 0] - d[::2, 1]).mean())
    (null,) = pick(rows, feature=9, scope="peak", target="label", measure="logit")
    assert null["n_active"] == 5 and null["share_active"] == 5 / 80
    assert all(v is None for k, v in null.items() if k.startswith(("mean", "effect", "p_", "q_", "flip")))


def test_tables_are_documented_and_hold_nulls(effects):
    for module, of_features in ((feature_space_table, [4, 7, 9]), (feature_space_table, [])):
        table = module.TABLE.make(module.columns(effects, of_features, 50, 0))
        assert table.num_rows == 32 * len(of_features)
        assert table["mean_delta"].null_count == len(of_features) // 3 * 32
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
    assert deltas.only("target", "label").axes["target"] == ("label",)
    np.testing.assert_array_equal(deltas.only("target", "label").values, deltas.values[:, :, :1])
    for unknown in ({"scope": "map"}, {"kind": "c"}):
        with pytest.raises(KeyError, match="there is no"):
            deltas.at(**unknown)


def everything(n_own=30):
    """Effects of 12 features on 100 images: feature f moves its class by -f on `n_own` of its images."""
    n = np.zeros((2, 12))
    n[0], n[1, :6] = n_own, 50
    mean = np.zeros((2, len(totals.STATISTICS), 12))
    mean[:, totals.STATISTICS.index("top_class_margin")] = np.array([[-1.0], [9.0]]) * np.arange(12)[None, :]
    mean[:, totals.STATISTICS.index("label_margin")] = -0.5
    curves = cumulative.Curves(*[np.zeros((100, 1))] * len(cumulative.Curves._fields))
    return totals.finished(
        by_class=totals.EffectMoments(n, mean, 0 * mean),
        by_feature={},
        attribution=totals.EffectMoments(n.sum(0), np.zeros(12), np.zeros(12)),
        curves=curves,
        labels=np.arange(100) % 2,
        top_classes=np.zeros(12, int),
        n_guarded={},
        margins=np.zeros(2),
    )


CHOSEN = choice.Chosen([4, 7, 9], [4], [2, 3, 4, 10], np.zeros(12, int), np.full(12, 0.9))


def test_the_headline_of_feature_space_is_over_the_images_of_the_class(effects):
    found = of_feature_space(effects, everything(), CHOSEN, 200, 0)
    at_map = effects.deltas.select(scope="map")
    margin = at_map.at(kind="effect", target="label", measure="margin")
    assert found["n_features"] == 2
    assert found["n_images"] == len(np.unique(effects.images[:100]))
    assert found["mean_delta_margin"] == pytest.approx(
        (margin[:60].mean() + margin[60:100].mean()) / 2, rel=1e-4
    )
    # over all eligible class-selective features, of which one alone was ablated
    assert found["n_own_class"] == 4
    assert (found["own_class_margin_mean"], found["own_class_margin_median"]) == (-19 / 4, -3.5)
    assert (found["label_margin_mean"], found["label_margin_median"]) == (-0.5, -0.5)
    top = at_map.select(target="top_class", measure="margin")
    own = np.arange(0, 60, 2)
    assert found["ablated_own_class_margin"] == pytest.approx(top.at(kind="effect")[own].mean(), rel=1e-5)
    for kind in KINDS[1:]:
        low, high = found[f"own_class_minus_{kind}_margin_ci95"]
        assert low < found[f"own_class_minus_{kind}_margin"] < high < -1.8
        assert found[f"control_{kind}_mean_delta_margin"] is not None
    few = of_feature_space(effects, everything(n_own=19), CHOSEN, 200, 0)
    assert few["n_own_class"] == 0 and few["own_class_margin_mean"] is None
    nothing = of_feature_space(effects, everything(), CHOSEN._replace(features=[], selective=[]), 200, 0)
    assert (
        nothing["n_features"] == 0 and nothing["mean_delta_logit"] is nothing["mean_delta_logit_ci95"] is None
    )


def test_where_all_features_take_forward_passes_the_headline_is_of_those_ablated(effects):
    on_few_images = dataclasses.replace(everything(), curves=None)
    found = of_feature_space(effects, on_few_images, CHOSEN, 200, 0)
    top = effects.deltas.at(scope="map", kind="effect", target="top_class", measure="margin")
    assert found["n_own_class"] == 1
    assert found["own_class_margin_mean"] == pytest.approx(top[:60:2].mean(), rel=1e-5)


def test_the_table_of_all_features_has_the_own_class(effects):
    table = all_features_table.TABLE.make(
        all_features_table.columns(_with_scopes(everything()), np.r_[np.zeros(11, int), -1])
    )
    assert table["n_active_own_class"].to_pylist() == [30] * 11 + [0]
    assert table["own_class_margin"].to_pylist() == [-float(f) for f in range(11)] + [None]


def _with_scopes(effects):
    scopes = dict.fromkeys(totals.SCOPES, effects.by_feature["map"])
    return dataclasses.replace(effects, by_feature=scopes)


def features_table():
    return {
        "feature": list(range(6)),
        "eligible": [True, True, False, True, True, True],
        "class_selective": [False, True, True, None, True, False],
        "auroc_train": [0.9, 0.85, 0.99, None, 0.95, 0.5],
        "auroc": [0.9, 0.99, 0.5, None, 0.8, 0.5],  # test, which chooses nothing
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
    assert choice.choose(features_table(), 1).all_selective == [1, 4]
    assert chosen.top_classes.tolist() == [0, 1, 2, -1, 1, 0]
