"""The pass over the images: scopes against the public edits, moments against all pairs, tables."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import classifier, edits, metrics
from jsae.ablation.all_features import closed_form, table, table_by_class, totals
from jsae.ablation.all_features.reducer import MeasureAllFeatures
from jsae.ablation.all_features.totals import STATISTICS
from jsae.sae.variants import ReluL1
from jsae.tables import documentation
from tests.ablation.all_features.oracle import make_network, measures_of
from tests.ablation.toy import reduce

N, L, F = 40, 6, 80
LABELS = np.random.default_rng(5).integers(0, 5, N).astype(np.int32)  # class 5 has no image
TOPS = np.where(np.arange(F) == 3, -1, np.arange(F) % L).astype(np.int32)


def measure(network, *, labels=LABELS, size=16, tops=TOPS, **settings):
    params, model, acts = network
    head = params.model.linear_head(params.variables)
    return reduce(MeasureAllFeatures(head, tops, jax.random.key(0), 7), model, acts, labels, size, **settings)


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module")
def found(network):
    return measure(network)


def patched(params, acts, *pair):
    """Logits of the first edit and of the second, by default none, through the forward pass."""
    run = jax.jit(
        lambda acts, edit: classifier.apply(params, acts, start="stage4", edits={"stage4": edit})[0]
    )
    return [np.asarray(run(acts, each), np.float64) for each in pair]


@pytest.mark.parametrize("scope", ["map", "peak", "keep_only"])
@pytest.mark.parametrize("feature", [0, 3, 41])
def test_a_scope_is_an_edit(network, found, scope, feature):
    params, model, acts = network
    feats = np.asarray(model.encode(acts))
    fires = feats[..., feature].max((1, 2)) > 0
    nothing = edits.keep(model, np.ones(F, np.float32))
    if scope == "map":
        pair = edits.suppress(model, [feature]), nothing
    elif scope == "keep_only":
        pair = edits.keep_only(model, [feature]), edits.suppress(model, np.arange(F))
    else:
        keep = np.ones(feats.shape, np.float32)
        for b in range(N):
            y, x = np.unravel_index(feats[b, ..., feature].argmax(), feats.shape[1:3])
            keep[b, y, x, feature] = 0
        pair = edits.keep(model, keep), nothing
    changed, base = patched(params, acts, *pair)
    clean = patched(params, acts, nothing)[0].argmax(-1)
    n, mean, m2 = found.by_feature[scope]
    assert n[feature] == fires.sum() > 1
    values = np.zeros((len(STATISTICS), N))
    for b in range(N):
        for t, target in enumerate((LABELS[b], clean[b], TOPS[feature])):
            values[4 * t : 4 * t + 4, b] = measures_of(changed[b], target) - measures_of(base[b], target)
        values[-1, b] = changed[b].argmax() != clean[b]
    values = values[:, fires]
    if TOPS[feature] < 0:
        values[8:12] = np.nan
    scale = np.abs(changed).max()
    # float32 logits; with all features removed an image may be nearly empty, which multiplies their rounding
    np.testing.assert_allclose(mean[:, feature], values.mean(1), atol=2e-5 * scale)
    np.testing.assert_allclose(m2[:, feature], values.var(1) * values.shape[1], atol=1e-4 * scale, rtol=1e-4)


def test_classes_join_to_features_and_silent_images_are_left_out(network, found):
    params, model, acts = network
    strength = np.asarray(model.encode(acts)).mean((1, 2))
    clean = np.asarray(classifier.apply(params, acts, start="stage4")[0]).argmax(-1).astype(np.int32)
    pairs = closed_form.effects(
        *(
            params.model.linear_head(params.variables),
            model.w_dec,
            acts.mean((1, 2)),
            strength,
            LABELS,
            clean,
        ),
        np.maximum(TOPS, 0),
    )
    margin = np.asarray(pairs.deltas, np.float64)[0, 1]  # [N, F]
    n, mean, _ = found.by_class
    for c in range(L):
        active = (strength > 0) & (c == LABELS)[:, None]
        np.testing.assert_array_equal(n[c], active.sum(0))
        expected = (margin * active).sum(0) / np.maximum(active.sum(0), 1)
        np.testing.assert_allclose(mean[c, 1], expected, atol=1e-5)  # float32, in other batches
    assert found.class_count.tolist() == np.bincount(LABELS, minlength=L).tolist()
    assert found.n_images == N and found.n_guarded["map"] == pairs.n_guarded > 0


def test_batch_sizes_change_nothing(network, found):
    other = measure(network, size=7)
    for scope, parts in found.by_feature.items():
        for a, b in zip(parts, other.by_feature[scope], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)  # float32 sums in other batches
    for a, b in zip(found.by_class, other.by_class, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)  # the same
    for a, b in zip(found.curves, other.curves, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # the same
    for key, value in found.margins.items():
        assert other.margins[key] == pytest.approx(value, abs=1e-5)  # the same


def test_images_without_a_label_are_left_out(network):
    params, model, acts = network
    labels = np.where(np.arange(N) < 25, LABELS, -1)
    seen = measure(network, labels=labels)
    part = measure((params, model, acts[:25]), labels=LABELS[:25])
    assert seen.n_images == 25 and seen.curves.margin.shape[0] == 25
    for scope, parts in part.by_feature.items():
        for a, b in zip(parts, seen.by_feature[scope], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)  # float32 sums in other batches


def test_attribution_is_the_derivative_of_the_effect(network, found):
    params, model, acts = network
    strength = np.asarray(model.encode(acts)).mean((1, 2))
    zeros = np.zeros(N, np.int32)
    step = 1e-2
    pairs = closed_form.effects(
        *(
            params.model.linear_head(params.variables),
            model.w_dec,
            acts.mean((1, 2)),
            step * strength,
            LABELS,
            zeros,
        ),
        np.zeros(F, np.int32),
    )
    active = strength > 0
    slope = (np.asarray(pairs.deltas)[0, 1] * active).sum(0) / step / active.sum(0)
    n, mean, _ = found.attribution
    np.testing.assert_array_equal(n, active.sum(0))
    error = np.abs(mean - slope) / np.abs(slope).max()
    assert np.median(error) < 0.01  # a difference quotient, and a margin has corners
    agreement = table.attribution_agreement(found, 200, 0)
    stated = n >= 20
    expected = metrics.spearman(mean[stated], found.by_feature["map"][1][1][stated])
    assert agreement["spearman"] == expected
    assert agreement["spearman_ci95"][0] <= expected <= agreement["spearman_ci95"][1]


def test_the_tables_hold_means_intervals_and_nulls(found):
    made = table.TABLE.make(table.columns(found, TOPS))
    assert all(documentation(made).values())
    rows = made.to_pylist()
    n, mean, m2 = found.by_feature["map"]
    assert len(rows) == F and rows[3]["top_class"] is None and rows[3]["map_top_class_logit"] is None
    few = n < 20
    assert 0 < few.sum() < F
    for f, row in enumerate(rows):
        assert row["n_active"] == n[f] and row["share_active"] == n[f] / N
        assert (row["map_label_margin"] is None) == (row["attribution_margin_low"] is None) == few[f]
        if not few[f]:
            error = np.sqrt(m2[1, f] / (n[f] - 1) / n[f])
            assert row["map_label_margin"] == mean[1, f]
            assert row["map_label_margin_low"] < mean[1, f] - 1.9 * error < row["map_label_margin"]
            assert row["map_flip_rate"] == mean[-1, f]
            assert 0 <= row["map_flip_rate_low"] <= row["map_flip_rate"] <= row["map_flip_rate_high"] <= 1
            assert row["keep_only_prediction_logit"] == found.by_feature["keep_only"][1][4, f]


def test_the_class_table_counts_silent_images_as_zero(found):
    rows = table_by_class.TABLE.make(table_by_class.columns(found)).to_pylist()
    n, mean, m2 = found.by_class
    assert len(rows) == (n > 0).sum() and all(row["n_active"] > 0 for row in rows)
    total = found.by_feature["map"][0]
    row = next(r for r in rows if total[r["feature"]] >= 20 and 1 < r["n_active"] < r["n_images"])
    f, c = row["feature"], row["class"]
    assert row["label_margin"] == pytest.approx(
        mean[c, 1, f] * n[c, f] / row["n_images"], rel=1e-6
    )  # float32
    second = m2[c, 1, f] + n[c, f] * mean[c, 1, f] ** 2 - row["n_images"] * row["label_margin"] ** 2
    error = np.sqrt(second / row["n_images"] / (row["n_images"] - 1))
    assert row["label_margin_se"] == pytest.approx(error, rel=1e-4)  # float32 column
    assert all(r["label_margin"] is None for r in rows if total[r["feature"]] < 20)


def test_one_class_has_no_margin_and_dead_features_are_null():
    params, model, acts = make_network(n_classes=1)
    model = dataclasses.replace(model, b_enc=jnp.full(F, -1e6), variant=ReluL1())
    seen = measure((params, model, acts), labels=np.zeros(N, np.int32), tops=np.full(F, -1, np.int32))
    rows = table.TABLE.make(table.columns(seen, np.full(F, -1))).to_pylist()
    assert all(row["n_active"] == 0 and row["map_label_logit"] is None for row in rows)
    assert table_by_class.TABLE.make(table_by_class.columns(seen)).num_rows == 0
    assert table.attribution_agreement(seen, 10, 0) == {"spearman": None, "spearman_ci95": None}
    headline = totals.headline(seen)
    assert headline["n_pairs"] == N * F and headline["n_active_pairs"] == headline["n_guarded"] == 0
    assert headline["mean_margin"] == {"clean": None, "all_removed": None}


def test_one_class_with_live_features_has_logits_but_no_margins():
    network = make_network(n_classes=1)
    seen = measure(network, labels=np.zeros(N, np.int32), tops=np.zeros(F, np.int32))
    rows = table.TABLE.make(table.columns(seen, np.zeros(F, int))).to_pylist()
    row = next(row for row in rows if row["n_active"] >= 20)
    assert row["map_label_margin"] is None and row["attribution_margin"] is None
    assert row["map_label_logit"] and row["map_flip_rate"] == 0
