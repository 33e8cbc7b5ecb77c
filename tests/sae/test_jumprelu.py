"""JumpReLU: values and ordinary gradients by differences, the straight-through ones by their formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae
from jsae.sae import train
from tests.sae.oracle import RELATIVE, check_gradients, compute, in_float64, preactivations, problem

L0, BANDWIDTH = 0.3, 0.4


def parts(params, x_n, mask):
    """(pre, features, residuals) of the real rows."""
    real = x_n[mask > 0]
    pre = np.stack([preactivations(params, x) for x in real])
    feats = np.where(pre > params["threshold"][None, :], np.maximum(pre, 0), 0)
    return pre, feats, real - (feats @ params["w_dec"] + params["b_dec"][None, :])


def value(params, x_n, mask):
    _, feats, resid = parts(params, x_n, mask)
    return ((resid**2).sum() + L0 * (feats > 0).sum()) / x_n.shape[1]


def test_sums_and_gradients_equal_the_oracle(examples):
    model, x_n, mask, _ = problem(examples, "jumprelu", l0=L0, bandwidth=BANDWIDTH)
    sums, grads, _ = compute(model, x_n, mask)
    params, rows = in_float64(model), x_n.astype(np.float64)
    pre, feats, resid = parts(params, rows, mask)
    c = rows.shape[1]
    np.testing.assert_allclose(sums["loss"], value(params, rows, mask), rtol=RELATIVE)
    assert sums["l0"] == (feats > 0).sum()
    np.testing.assert_allclose(sums["penalty"], (feats > 0).sum() / c, rtol=RELATIVE)
    names = ["w_enc", "b_enc", "w_dec", "b_dec"]  # where nothing jumps, differences see the whole gradient
    check_gradients(grads, lambda p: value(p, rows, mask), params, names=names)

    # equations 11 and 12 of arXiv 2407.14435, written out
    window = np.abs(pre - params["threshold"][None, :]) < BANDWIDTH / 2
    d_feats = -2 / c * resid @ params["w_dec"].T
    through_feats = -params["threshold"][None, :] / BANDWIDTH * window * d_feats
    through_l0 = -1 / BANDWIDTH * window * L0 / c
    expected = (through_feats + through_l0).sum(0)
    assert np.abs(through_feats.sum(0)).max() > 0.1 * np.abs(expected).max()
    assert np.abs(through_l0.sum(0)).max() > 0.1 * np.abs(expected).max()
    np.testing.assert_allclose(grads["threshold"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_straight_through_window_changes_no_value(examples):
    model, x_n, mask, _ = problem(examples, "jumprelu", l0=L0)
    narrow, wide = (compute(model, x_n, mask, bandwidth=width)[0] for width in (1e-3, 2.0))
    jax.tree.map(np.testing.assert_array_equal, narrow, wide)


def test_adam_moves_the_threshold_itself_and_keeps_it_at_0_or_above(examples):
    """100 steps at 1e-2 under pure pressure on l0 carry thresholds of 0.05 to near 1 (SAELens#494)."""
    sizes = {"n_channels": 12, "n_features": 40, "mean": np.zeros(12), "scale": 1.0}
    x = jax.random.normal(jax.random.key(1), (64, 8, 12))
    mesh = jax.make_mesh((1, 1), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def moved(l0, learning_rate, n_steps):
        recipe = train.Recipe(n_steps=1000, learning_rate=learning_rate, lr_decay_share=0.0)
        fresh = sae.init(jax.random.key(0), variant="jumprelu", l0=l0, bandwidth=0.2, **sizes)
        step = jax.jit(train.make_step(mesh, fresh, recipe))
        state = train.init_state(fresh, recipe)
        for _ in range(n_steps):
            state, metrics = step(state, {"x": x, "mask": jnp.ones((64, 8))})
        assert metrics["refused"] == 0
        assert state.sae.own["threshold"].dtype == jnp.float32
        return np.asarray(state.sae.own["threshold"])

    assert np.median(moved(100.0, 1e-2, 100)) > 0.5
    low = moved(0.0, 5e-2, 20)
    assert (low >= 0).all()
    assert (low == 0).any()


def test_the_l0_coefficient_warms_up():
    of = sae.variants.JumpReLU(l0=0.5, l0_warmup_steps=10).sparsity
    np.testing.assert_allclose([of(0), of(4), of(9), of(50), of()], [0.05, 0.25, 0.5, 0.5, 0.5])
    assert sae.variants.TopK().sparsity(3) == 0.0


def test_a_bandwidth_is_needed(examples):
    with pytest.raises(ValueError, match=r"sae\.jumprelu\.bandwidth=0\.0 must be above 0"):
        examples.make("jumprelu", bandwidth=0.0)
