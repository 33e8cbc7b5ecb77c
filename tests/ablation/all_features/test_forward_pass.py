"""All features by forward passes against the closed form, at the site where both hold."""

import functools

import jax
import numpy as np
import pytest

from jsae.ablation.all_features import forward_pass, table, totals
from jsae.ablation.all_features.reducer import MeasureAllFeatures
from jsae.activations import run_pass
from jsae.classifier.forward import LogitsFromActs
from tests.ablation.all_features.oracle import make_network
from tests.ablation.toy import Store, reduce

N, L, F = 40, 6, 80
LABELS = np.where(np.arange(N) == 7, -1, np.random.default_rng(5).integers(0, 5, N)).astype(np.int32)
TOPS = np.where(np.arange(F) == 3, -1, np.arange(F) % L).astype(np.int32)


@pytest.fixture(scope="module")
def network():
    return make_network()


def measure(network, size=16, pair_batch=64, **settings):
    params, model, acts = network
    store = Store(acts, LABELS)
    return forward_pass.effects_of_images(
        LogitsFromActs(params, "stage4"),
        model,
        store,
        np.arange(N),
        functools.partial(run_pass, store, model, batch_size=size),
        top_classes=TOPS,
        n_classes=L,
        batch_size=pair_batch,
        **settings,
    )


@pytest.fixture(scope="module")
def found(network):
    return measure(network)


def test_equals_the_closed_form_where_that_holds(network, found):
    params, model, acts = network
    head = params.model.linear_head(params.variables)
    closed = reduce(MeasureAllFeatures(head, TOPS, jax.random.key(0), 3), model, acts, LABELS)
    pairs = [(found.by_class, closed.by_class), (found.attribution, closed.attribution)]
    pairs += [(found.by_feature[scope], closed.by_feature[scope]) for scope in totals.SCOPES]
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours[0], theirs[0])
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            # float32 logits of up to 10, by other products
            np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.nanmax(np.abs(b))))
    assert found.n_images == closed.n_images == N - 1
    np.testing.assert_array_equal(found.class_count, closed.class_count)
    assert found.margins == pytest.approx(closed.margins, abs=1e-4)  # sums of float32 margins
    ours, theirs = (table.TABLE.make(table.columns(each, TOPS)) for each in (found, closed))
    np.testing.assert_array_equal(ours["n_active"], theirs["n_active"])


def test_no_number_depends_on_the_batches_or_on_how_the_features_are_cut(network, found):
    other = measure(network, size=9, pair_batch=50, block=27)
    for scope in totals.SCOPES:
        for a, b in zip(found.by_feature[scope], other.by_feature[scope], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4)  # another batch size: other float32 sums
    for a, b in zip(found.by_class, other.by_class, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # the same


def test_only_active_pairs_take_a_pass(network, monkeypatch):
    rows = []
    counted = forward_pass.map_rows
    monkeypatch.setattr(
        forward_pass, "map_rows", lambda step, read, n, **k: rows.append(n) or counted(step, read, n, **k)
    )
    found = measure(network, block=50)
    assert sum(rows) == found.by_feature["map"].n.sum() < (N - 1) * F and len(rows) == 2
