"""Joint removals against the public edits, their orders, their table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import classifier, edits, metrics
from jsae.ablation.all_features import cumulative
from jsae.tables import documentation
from tests.ablation.all_features.oracle import make_network

N, F, M = 12, 80, 6
ATTRIBUTION, STRENGTH, RANDOM = range(3)


@pytest.fixture(scope="module")
def case():
    params, model, acts = make_network()
    acts = acts[:N]
    strength = np.array(np.asarray(model.encode(acts)).mean((1, 2)))
    labels = np.arange(N, dtype=np.int32) % 6
    head = params.model.linear_head(params.variables)

    def margin(pooled):
        return metrics.measures(classifier.head_logits(head, pooled), jnp.asarray(labels))["margin"].sum()

    gradient = jax.grad(margin)(jnp.asarray(acts.mean((1, 2))))
    return params, model, acts, strength, gradient, labels


def remove(case, rows=slice(None), n_joint=M, strength=None):
    params, model, acts, own_strength, gradient, labels = case
    arrays = (
        acts.mean((1, 2)),
        own_strength if strength is None else strength,
        gradient,
        labels,
        np.arange(N),
    )
    head = params.model.linear_head(params.variables)
    arrays = [jnp.asarray(array)[rows] for array in arrays]
    return cumulative.remove_in_order(head, model, *arrays, jax.random.key(0), n_joint=n_joint)


@pytest.mark.parametrize("order", [ATTRIBUTION, STRENGTH])
def test_equals_suppressing_the_features_together(case, order):
    params, model, acts, strength, gradient, labels = case
    found = remove(case)
    norms = np.linalg.norm(model.w_dec, axis=1)
    scores = strength * (np.asarray(gradient) @ np.asarray(model.w_dec).T if order == ATTRIBUTION else norms)
    scores = np.where(strength > 0, scores, -np.inf)
    run = jax.jit(
        lambda acts, edit: classifier.apply(params, acts, start="stage4", edits={"stage4": edit})[0]
    )
    for m in (0, 1, M):
        keep = np.ones((N, 1, 1, F), np.float32)
        for b in range(N):
            keep[b, 0, 0, np.argsort(-scores[b], kind="stable")[:m]] = 0
        logits = run(acts, edits.keep(model, keep))
        margin = np.asarray(metrics.measures(logits, labels)["margin"])
        scale = float(np.abs(logits).max())
        np.testing.assert_allclose(found.margin[:, order, m], margin, atol=1e-4 * scale)  # little may remain
        np.testing.assert_array_equal(found.correct[:, order, m], np.argmax(logits, -1) == labels)
        np.testing.assert_array_equal(found.removed[:, order, m], m)


def test_all_orders_end_alike_and_differ_on_the_way(case):
    fires = (case[3] > 0).sum(1)
    found = remove(case, n_joint=int(fires.max()) + 3)
    np.testing.assert_allclose(
        found.margin[:, :, -1], found.margin[:, :1, -1].repeat(3, 1), atol=1e-3
    )  # sums
    np.testing.assert_array_equal(found.removed[:, :, -1], np.repeat(fires[:, None], 3, 1))
    first = np.asarray(found.margin[:, :, 1])
    assert (first[:, ATTRIBUTION] <= first[:, RANDOM] + 1e-4).mean() > 0.7
    assert not np.allclose(first[:, RANDOM], first[:, STRENGTH])


def test_the_random_order_belongs_to_the_image_and_takes_features_that_fire(case):
    whole, part = remove(case), remove(case, rows=slice(5, 9))
    np.testing.assert_allclose(part.margin, whole.margin[5:9], atol=1e-4)  # float32 in another batch
    same = [np.repeat(np.asarray(array)[:1], N, 0) for array in case[2:]]
    first = remove((*case[:2], *same)).margin[:, :, 1]  # one image under twelve numbers
    assert np.ptp(first[:, RANDOM]) > 0.01 > np.ptp(first[:, STRENGTH])
    alone = case[3].copy()
    alone[:, 1:] = 0
    one = remove(case, strength=alone)
    np.testing.assert_array_equal(one.removed[..., -1], np.repeat((alone[:, :1] > 0), 3, 1))
    np.testing.assert_array_equal(one.margin[..., 1:], one.margin[..., 1:2].repeat(M, -1))


def test_the_table(case):
    found = jax.tree.map(np.asarray, remove(case))
    table = cumulative.TABLE.make(cumulative.columns(found, 200, 0))
    assert all(documentation(table).values())
    rows = table.to_pylist()
    assert [(row["order"], row["m"]) for row in rows] == [
        (order, m) for order in ("attribution", "strength", "random") for m in range(M + 1)
    ]
    row = rows[(M + 1) + 2]
    assert row["n_images"] == N and row["mean_removed"] == 2
    assert row["mean_margin"] == pytest.approx(found.margin[:, STRENGTH, 2].mean(), rel=1e-5)  # float32 mean
    assert row["accuracy"] == pytest.approx(found.correct[:, STRENGTH, 2].mean())
    assert row["mean_margin_low"] < row["mean_margin"] < row["mean_margin_high"]
