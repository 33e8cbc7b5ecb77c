"""Formulas of counterfactual pairs against loops."""

import numpy as np
import pytest

from jsae import metrics


def test_share_and_tracking_against_loops():
    rng = np.random.default_rng(0)
    effects, totals = rng.normal(size=(3, 40)), rng.normal(2.0, 1.0, 40)
    for row, share, track in zip(
        effects, metrics.carried_share(effects, totals), metrics.tracking(effects, totals), strict=True
    ):
        assert share == pytest.approx(sum(row.tolist()) / sum(totals.tolist()))
        left = [d - s for d, s in zip(totals, row, strict=True)]
        mean = sum(left) / len(left)
        spread = sum((x - mean) ** 2 for x in left) / sum((d - totals.mean()) ** 2 for d in totals)
        assert track == pytest.approx(1 - spread)
    assert metrics.carried_share(totals, totals) == 1
    assert metrics.tracking(totals, totals) == 1
    assert metrics.tracking(0.5 * totals, totals) == pytest.approx(0.75)


def test_what_has_no_denominator_is_unknown():
    assert np.isnan(metrics.carried_share([1.0, 1.0], [1.0, -1.0]))
    assert np.isnan(metrics.tracking([1.0, 2.0], [3.0, 3.0]))
    assert np.isnan(metrics.leak([np.nan, np.nan])) and np.isnan(metrics.leak([]))
    assert np.isnan(metrics.ceiling(0.5, 0.4, 0.45))


def test_leak_isolated_and_ceiling():
    assert metrics.leak([0.2, -0.4, np.nan]) == pytest.approx(0.3)
    assert metrics.leak([[0.1, -0.1], [0.3, np.nan]]) == pytest.approx([0.1, 0.3])
    assert metrics.isolated(0.8, 0.3) == pytest.approx(0.5)
    assert metrics.isolated(1.2, 0.3) == pytest.approx(0.5)
    assert metrics.ceiling(0.4, 0.2, 0.7) == pytest.approx(0.4)


def test_the_gate_wants_accuracy_and_a_mean_beyond_two_errors():
    rng = np.random.default_rng(1)
    without, with_part = rng.normal(-2, 0.5, 50), rng.normal(2, 0.5, 50)
    gate = metrics.twin_gate(without, with_part)
    totals = with_part - without
    assert gate.passed and gate.accuracy == 1
    assert gate.standard_error == pytest.approx(totals.std(ddof=1) / 50**0.5)
    assert not metrics.twin_gate(without, without + 0.1).passed  # twins on one side: accuracy 0.5
    assert not metrics.twin_gate(with_part, without).passed
    assert not metrics.twin_gate([-1.0], [1.0]).passed  # of one drawing nothing is known


def test_faithfulness_is_the_mean_cosine_of_centred_changes():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(2, 7, 5))
    cosines = []
    for x, y in zip(a, b, strict=True):
        x, y = x - x.mean(), y - y.mean()
        cosines.append((x @ y) / (np.linalg.norm(x) * np.linalg.norm(y)))
    assert metrics.faithfulness(a, b) == pytest.approx(np.mean(cosines))
    assert metrics.faithfulness(a + 3, a) == pytest.approx(1)  # what all classes share does not count
    assert metrics.faithfulness(np.zeros_like(a), a) == 0


def test_response_against_loops():
    rng = np.random.default_rng(3)
    without, change = rng.normal(size=30), rng.normal(-2, 1, 30)
    others = [rng.normal(0, 1, 20), rng.normal(-3, 1, 10)]
    differences = [abs(a - b) for i, a in enumerate(without) for b in without[:i]]
    limit = np.percentile(differences, 95)
    found = metrics.response(without, change, others, -1.0)
    assert found.z == pytest.approx(change.mean() / without.std())
    assert found.sensitivity == pytest.approx(np.mean([-x > limit for x in change]))
    silent = [np.mean([not -x > limit for x in other]) for other in others]
    assert found.specificity == pytest.approx(np.mean(silent))
    assert found.balanced_accuracy == pytest.approx((found.sensitivity + found.specificity) / 2)
    assert metrics.response(without, change, others, 1.0).sensitivity < 0.1  # the sign of train counts


def test_a_response_without_a_spread_has_no_z():
    found = metrics.response(np.zeros(5), np.ones(5), [np.zeros(5)], 1.0)
    assert np.isnan(found.z) and found.sensitivity == 1 and found.specificity == 1
    assert np.isnan(metrics.response(np.zeros(5), np.ones(5), [], 1.0).specificity)


def test_mean_of_parts_weighs_parts_and_leaves_out_the_unknown():
    values = np.array([[1.0, np.nan], [3.0, np.nan], [5.0, np.nan], [np.nan, np.nan]])
    found = metrics.mean_of_parts(values, ["a", "a", "b", "c"])
    assert found[0] == pytest.approx(3.5) and np.isnan(found[1])
    assert np.isnan(metrics.mean_of_parts(np.zeros((0, 2)), [])).all()
