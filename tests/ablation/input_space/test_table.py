"""input_space.parquet and its headline: who qualifies, who is compared, nulls, one row per placement."""

import numpy as np
import pytest
import scipy.stats

from jsae.ablation.effects import MEASURES, TARGETS, Named, make_effects
from jsae.ablation.input_space import layout, patches, table
from jsae.tables import documentation

AXES = {"placement": ("peak", "mask"), "area": ("cell", "mask")}
KINDS = AXES | {"kind": layout.KINDS}
N_ACTIVE = {4: 60, 7: 40, 9: 5}


@pytest.fixture
def blurred():
    """At the peak nothing qualifies; in the mask feature 4 does on 30 images, 7 on 12, 9 fires on 5 only.

    The part of feature 7 is never shown, so that its areas of a mask are unknown.
    """
    rng = np.random.default_rng(1)
    features = np.repeat([4, 7, 9], [40, 30, 5]).astype(np.int32)
    m, shape = len(features), (len(features), 2, 2, 2)
    deltas, flips = make_effects(rng.normal(size=(*shape, 3, 4)) * 0.1, rng.random(shape) < 0.3, **KINDS)
    falls = np.full(shape, 0.1)
    falls[:, 1, :, 0] = 0.9
    falls[30:40, 1, :, 0], falls[52:70, 1, :, 0] = 0.2, 0.49
    falls[np.arange(m) % 7 == 0, ..., 1] = np.nan  # no control there
    falls[features == 7, :, 1] = np.nan
    deltas.values[:30, 1, :, 0, TARGETS.index("top_class")] -= 0.5
    deltas.values[np.isnan(falls)] = np.nan
    areas, energies = np.full(shape, 0.25), np.ones(shape)
    energies[..., 1] = 1.1
    numbers = [
        Named(np.where(np.isnan(falls), np.nan, each), KINDS) for each in (areas, energies, 0.5 * areas)
    ]
    return patches.InputEffects(
        features, np.arange(m, dtype=np.int32), deltas, flips, Named(falls, KINDS), *numbers, 9
    )


def rows_of(blurred, **where):
    columns = table.columns(blurred, [4, 7, 9], N_ACTIVE, 300, 0)
    rows = table.TABLE.make(columns).to_pylist()
    assert len(rows) == 3 * 4 * len(TARGETS) * len(MEASURES)
    return [row for row in rows if all(row[k] == v for k, v in where.items())]


def test_effects_are_of_pairs_whose_feature_falls_by_half(blurred):
    at = {"placement": "mask", "area": "cell", "target": "top_class", "measure": "margin"}
    (row,) = rows_of(blurred, feature=4, **at)
    d = blurred.deltas.select(**at).values[:30]
    m = np.arange(30) % 7 != 0
    assert (row["n_pairs"], row["n_qualified"], row["n_matched"], row["n_compared"]) == (40, 30, 34, m.sum())
    assert row["share_qualified"] == 0.75 and row["fall_median"] == 0.9 and row["control_fall_median"] == 0.1
    assert row["area_share"] == 0.25 and row["control_energy_ratio"] == pytest.approx(1.1)
    assert row["mean_delta"] == pytest.approx(d[:, 0].mean()) and row["mean_delta"] < -0.4
    assert row["mean_delta_low"] < row["mean_delta"] < row["mean_delta_high"]
    difference = d[m, 0] - d[m, 1]
    assert row["effect_minus_control"] == pytest.approx(difference.mean())
    assert row["control_mean_delta"] == pytest.approx(d[m, 1].mean())
    floor = 2.0 ** (1 - m.sum())  # of a sign-flip test
    p = max(scipy.stats.ttest_1samp(difference, 0).pvalue, floor)
    assert row["p"] == pytest.approx(p, rel=1e-6, abs=0)
    assert row["q"] == pytest.approx(row["p"])  # no other feature has a p here


def test_a_feature_that_never_qualifies_has_no_effect_and_a_share_of_0(blurred):
    for row in rows_of(blurred, feature=4, placement="peak"):
        assert row["n_qualified"] == 0 and row["share_qualified"] == 0 and row["fall_median"] == 0.1
        assert row["mean_delta"] is None and row["p"] is None and row["control_mean_delta"] is None
        assert row["flip_rate"] is None


def test_nulls_below_twenty_qualified_or_active_images_and_where_the_part_is_not_shown(blurred):
    few, *_ = rows_of(blurred, feature=7, placement="mask", area="cell")
    assert few["n_qualified"] == 12 and few["mean_delta"] is None
    silent, *_ = rows_of(blurred, feature=9, placement="mask", area="mask")
    assert silent["n_qualified"] == 5 and silent["mean_delta"] is None
    hidden, *_ = rows_of(blurred, feature=7, placement="mask", area="mask")
    assert hidden["n_pairs"] == 0 and hidden["share_qualified"] is None and hidden["area_share"] is None
    assert all(len(doc) > 5 for doc in documentation(table.TABLE.schema).values())


def test_headline_has_every_placement(blurred):
    found = table.headline(blurred, [4, 7], [4], 200, 0)
    assert (found["n_features"], found["n_images"], found["n_forward_passes"]) == (2, 70, 9)
    own = found["placements"]["peak"]["cell"]
    assert found["fall_median"] == own["fall_median"] == 0.1 and found["qualified_share"] == 0
    assert found["control_fall_median"] == 0.1 and own["mean_delta_label_margin"] is None
    mask = found["placements"]["mask"]["cell"]
    margin = blurred.deltas.at(
        placement="mask", area="cell", kind="effect", target="top_class", measure="margin"
    )
    assert mask["mean_delta_top_class_margin"] == pytest.approx(margin[:30].mean())
    label = blurred.deltas.at(placement="mask", area="cell", kind="effect", target="label", measure="margin")
    assert mask["mean_delta_label_margin"] == pytest.approx(
        label[np.r_[:30, 40:52]].mean()
    )  # of both features
    low, high = mask["effect_minus_control_top_class_margin_ci95"]
    assert low < mask["effect_minus_control_top_class_margin"] < high < -0.3
    assert found["placements"]["mask"]["mask"]["n_pairs"] == 45
    nothing = table.headline(blurred, [], [], 200, 0)
    assert (
        nothing["n_features"] == 0
        and nothing["placements"]["mask"]["cell"]["mean_delta_label_margin"] is None
    )
