"""The atlas by forward passes against the closed form, at the site where both hold."""

import numpy as np
import pytest
from jsae.analysis.tables import make

from jsae.ablation import atlas_survey, atlas_tables, site_atlas
from jsae.classifier.forward import LogitsFromActs
from tests.ablation.oracle import make_network
from tests.ablation.toy import batches

N, L, F = 40, 6, 80
LABELS = np.where(np.arange(N) == 7, -1, np.random.default_rng(5).integers(0, 5, N)).astype(np.int32)
TOPS = np.where(np.arange(F) == 3, -1, np.arange(F) % L).astype(np.int32)


@pytest.fixture(scope="module")
def network():
    return make_network()


def measure(network, size=16, pair_batch=64):
    params, model, acts = network
    passes = []
    found = site_atlas.measure(
        LogitsFromActs(params, "stage4"),
        model,
        batches(acts, size),
        labels=LABELS,
        top_classes=TOPS,
        n_classes=L,
        pair_batch=pair_batch,
        on_batch=passes.append,
    )
    assert sum(passes) == N
    return found


@pytest.fixture(scope="module")
def found(network):
    return measure(network)


def test_equals_the_closed_form_where_that_holds(network, found):
    params, model, acts = network
    closed = atlas_survey.measure(
        *(params.model.linear_head(params.variables), model, batches(acts, 16)),
        labels=LABELS,
        top_classes=TOPS,
        n_joint=3,
        seed=0,
    )
    pairs = [(found.by_class, closed.by_class), (found.attribution, closed.attribution)]
    pairs += [(found.by_feature[scope], closed.by_feature[scope]) for scope in atlas_survey.SCOPES]
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours[0], theirs[0])
        for a, b in zip(ours[1:], theirs[1:], strict=True):
            # float32 logits of up to 10, by other products
            np.testing.assert_allclose(a, b, atol=2e-5 * max(1, np.nanmax(np.abs(b))))
    assert found.n_images == closed.n_images == N - 1
    np.testing.assert_array_equal(found.class_count, closed.class_count)
    assert found.margins == pytest.approx(closed.margins, abs=1e-4)  # sums of float32 margins
    ours, theirs = (
        make(atlas_tables.atlas_columns(each, TOPS), atlas_tables.ATLAS) for each in (found, closed)
    )
    assert ours.schema == theirs.schema
    np.testing.assert_array_equal(ours["n_active"], theirs["n_active"])


def test_no_number_depends_on_the_batches(network, found):
    other = measure(network, size=9, pair_batch=50)
    for a, b in zip(found.by_feature["keep_only"], other.by_feature["keep_only"], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)  # another batch size: other float32 sums


def test_only_active_pairs_take_a_pass():
    active = np.zeros((4, 5), bool)
    active[[0, 2, 2, 3], [1, 0, 4, 2]] = True
    found = [np.stack(pair) for pair in site_atlas._pairs(active, 3)]
    assert [pair.tolist() for pair in found] == [[[0, 2, 2], [1, 0, 4]], [[3, 3, 3], [2, 2, 2]]]
    assert list(site_atlas._pairs(np.zeros((2, 2), bool), 3)) == []
