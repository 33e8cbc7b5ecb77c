"""Gated SAE: values and gradients against a float64 oracle whose frozen decoder does not move."""

import dataclasses

import numpy as np

from tests.sae.oracle import RELATIVE, check_gradients, compute, in_float64, preactivations, problem

L1 = 0.4


def oracle(params, frozen, x_n, mask):
    """Sums over real rows; w_dec and b_dec of the auxiliary term come from `frozen`."""
    total = dict.fromkeys(("sse", "penalty", "aux"), 0.0)
    for x in x_n[mask > 0]:
        gate = preactivations(params, x)
        strength = np.exp(params["r_mag"]) * (params["w_enc"] @ (x - params["b_dec"])) + params["b_mag"]
        feats = (gate > 0) * np.maximum(strength, 0)
        open_gate = np.maximum(gate, 0)
        total["sse"] += ((feats @ params["w_dec"] + params["b_dec"] - x) ** 2).sum()
        total["penalty"] += open_gate.sum() / len(x)
        total["aux"] += ((open_gate @ frozen["w_dec"] + frozen["b_dec"] - x) ** 2).sum() / len(x)
    return total


def test_sums_and_gradients_equal_the_oracle(examples):
    model, x_n, mask, _ = problem(examples, "gated", l1=L1)
    sums, grads, _ = compute(model, x_n, mask)
    params, rows = in_float64(model), x_n.astype(np.float64)
    expected = oracle(params, params, rows, mask)
    for name, total in expected.items():
        np.testing.assert_allclose(sums[name], total, rtol=RELATIVE, err_msg=name)

    def value(moved):
        found = oracle(moved, params, rows, mask)
        return found["sse"] / rows.shape[1] + L1 * found["penalty"] + found["aux"]

    np.testing.assert_allclose(sums["loss"], value(params), rtol=RELATIVE)
    check_gradients(grads, value, params)


def test_gates_learn_from_the_auxiliary_term_even_where_no_feature_has_a_magnitude(examples):
    """Through the step itself no gradient could come."""
    model, x_n, mask, _ = problem(examples, "gated")
    shut = dataclasses.replace(model, own=model.own | {"b_mag": model.own["b_mag"] - 100.0})
    sums, grads, _ = compute(shut, x_n, mask)
    assert sums["l0"] == 0
    assert not grads["r_mag"].any()
    assert np.abs(grads["b_enc"]).min() > 0
