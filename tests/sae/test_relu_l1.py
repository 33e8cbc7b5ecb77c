"""ReLU-L1 with a penalty weighted by decoder norms; the unit norm stands in test_sae_losses."""

import dataclasses

import numpy as np
import pytest

from tests.sae.oracle import RELATIVE, check_gradients, compute, in_float64, preactivations, problem

L1 = 0.7


def oracle(params, x_n, mask):
    """(summed loss, summed penalty), both divided by C."""
    norms = np.linalg.norm(params["w_dec"], axis=1)
    mse = penalty = 0.0
    for x in x_n[mask > 0]:
        feats = np.maximum(preactivations(params, x), 0.0)
        mse += ((feats @ params["w_dec"] + params["b_dec"] - x) ** 2).sum() / len(x)
        penalty += (feats * norms).sum() / len(x)
    return mse + L1 * penalty, penalty


def free_problem(examples):
    model, x_n, mask, _ = problem(examples, "relu_l1", l1=L1)
    rows = model.w_dec * np.random.default_rng(5).uniform(0.2, 3, (examples.F, 1)).astype(np.float32)
    return dataclasses.replace(model, w_dec=rows), x_n, mask


def test_the_penalty_weighted_by_norms_equals_the_oracle(examples):
    model, x_n, mask = free_problem(examples)
    sums, grads, _ = compute(model, x_n, mask, decoder_norm="free")
    params, rows = in_float64(model), x_n.astype(np.float64)
    total, penalty = oracle(params, rows, mask)
    np.testing.assert_allclose(sums["penalty"], penalty, rtol=RELATIVE)
    np.testing.assert_allclose(sums["loss"], total, rtol=RELATIVE)
    check_gradients(grads, lambda p: oracle(p, rows, mask)[0], params)


def test_the_weighted_penalty_does_not_change_when_size_moves_between_encoder_and_decoder(examples):
    """What the weight is for: (w_enc, b_enc) / a with w_dec * a is the same SAE and must cost the same."""
    model, x_n, mask = free_problem(examples)
    moved = dataclasses.replace(model, w_enc=model.w_enc / 10, b_enc=model.b_enc / 10, w_dec=model.w_dec * 10)
    for norm, alike in (("free", True), ("unit", False)):
        one, two = (compute(m, x_n, mask, decoder_norm=norm)[0]["loss"] for m in (model, moved))
        assert (abs(one - two) < 1e-4 * one) == alike


def test_only_relu_l1_may_leave_its_rows_free(examples):
    with pytest.raises(ValueError, match="variant 'topk' has no decoder_norm; its settings are k, aux_alpha"):
        examples.make("topk", decoder_norm="free")
    with pytest.raises(ValueError, match="decoder_norm='none' is unknown; valid are 'unit', 'free'"):
        examples.make("relu_l1", decoder_norm="none")
