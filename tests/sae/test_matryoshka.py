"""Matryoshka: a sum of losses over nested prefixes, values and gradients against a float64 oracle."""

import numpy as np
import pytest

from jsae import sae
from tests.sae.oracle import RELATIVE, check_gradients, compute, in_float64, preactivations, problem

PREFIXES = (5, 17, 40)
SHARES = tuple(prefix / 40 for prefix in PREFIXES)


def oracle(params, x_n, mask, k):
    """(summed loss / C, summed squared error of the whole dictionary), each prefix decoded by itself."""
    real = x_n[mask > 0]
    pre = np.stack([preactivations(params, x) for x in real])
    cut = np.sort(pre.ravel())[::-1][k * len(real) - 1]
    feats = np.where(pre >= cut, np.maximum(pre, 0), 0)
    losses = []
    for m in PREFIXES:
        resid = real - (feats[:, :m] @ params["w_dec"][:m] + params["b_dec"][None, :])
        losses.append((resid**2).sum() / x_n.shape[1])
    return sum(losses), losses[-1] * x_n.shape[1]


def test_sums_and_gradients_equal_the_oracle(examples):
    model, x_n, mask, _ = problem(examples, "matryoshka", prefix_shares=SHARES)
    sums, grads, _ = compute(model, x_n, mask)
    params, rows = in_float64(model), x_n.astype(np.float64)
    total, sse = oracle(params, rows, mask, model.k)
    np.testing.assert_allclose(sums["loss"], total, rtol=RELATIVE)
    np.testing.assert_allclose(sums["sse"], sse, rtol=RELATIVE)
    check_gradients(grads, lambda p: oracle(p, rows, mask, model.k)[0], params)


def test_one_prefix_is_batch_topk(examples):
    model, x_n, mask, dead = problem(examples, "matryoshka", 4)
    plain = examples.make("batch_topk")
    one = compute(model, x_n, mask, dead, prefix_shares=(1.0,), aux_alpha=0.5)
    two = compute(plain, x_n, mask, dead, aux_alpha=0.5)
    for name, gradient in two[1].items():
        np.testing.assert_allclose(one[1][name], gradient, rtol=1e-5, atol=1e-5 * np.abs(gradient).max())


@pytest.mark.parametrize("shares", [(), (0.25, 0.97), (0.25, 0.25, 1.0), (0.5, 0.25, 1.0), (0.001, 1.0)])
def test_prefixes_must_rise_to_all_features(shares, examples):
    with pytest.raises(ValueError, match="rise from at least 1 to n_features=40"):
        examples.make("matryoshka", prefix_shares=shares)
    with pytest.raises(ValueError, match=r"sae\.matryoshka\.prefix_shares=\(0\.25, 1\.25\) must be above 0"):
        examples.make("matryoshka", prefix_shares=(0.25, 1.25))
    assert sae.variants.Matryoshka(prefix_shares=(1 / 16, 1 / 4, 1.0)).prefixes(512) == (32, 128, 512)
