"""Encode and decode against a float64 numpy oracle, and the errors of bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae

C, F, K = 12, 40, 5
MEAN, SCALE = np.linspace(-300, 500, C), 37.0  # far from 0 and 1: a forgotten fold shows at once


def make(variant="topk", seed=0, n_features=F, k=K):
    """An SAE whose biases are not zero and whose encoder is not the decoder's transpose."""
    k = k if variant == "topk" else None
    fresh = sae.init(
        jax.random.key(seed),
        n_channels=C,
        n_features=n_features,
        variant=variant,
        k=k,
        mean=MEAN,
        scale=SCALE,
    )
    rng = np.random.default_rng(seed)
    changed = {
        "w_enc": fresh.w_enc + 0.3 * rng.normal(size=fresh.w_enc.shape),
        "b_enc": 0.1 * rng.normal(size=fresh.b_enc.shape),
        "b_dec": 0.2 * rng.normal(size=fresh.b_dec.shape),
    }
    fields = {name: jnp.asarray(value, jnp.float32) for name, value in changed.items()}
    return sae.SAE(**(vars(fresh) | fields))


def activations(shape=(50,), seed=1):
    rng = np.random.default_rng(seed)
    return (MEAN + SCALE * rng.normal(size=(*shape, C))).astype(np.float32)


def oracle_encode(model, x):
    """Raw x [N, C] -> (features [N, F] in raw units, x_hat [N, C]) in float64, one vector at a time."""
    p = {
        name: np.asarray(value, np.float64)
        for name, value in vars(model).items()
        if name not in ("variant", "k")
    }
    feats = np.zeros((len(x), model.n_features))
    for n, vector in enumerate(x.astype(np.float64)):
        pre = p["w_enc"] @ ((vector - p["mean"]) / p["scale"] - p["b_dec"]) + p["b_enc"]
        kept = range(model.n_features) if model.k is None else np.argsort(-pre, kind="stable")[: model.k]
        for j in kept:
            feats[n, j] = p["scale"] * max(pre[j], 0.0)
    return feats, feats @ p["w_dec"] + p["scale"] * p["b_dec"] + p["mean"]


@pytest.mark.parametrize("variant", list(sae.VARIANTS))
def test_encode_and_decode_equal_the_oracle_in_raw_units(variant):
    model, x = make(variant), activations()
    feats, x_hat = oracle_encode(model, x)
    # float32 of x - mean with |mean| near 500 and scale 37 keeps about 5 digits
    np.testing.assert_allclose(model.encode(x), feats, atol=2e-4 * SCALE)
    np.testing.assert_allclose(model.decode(model.encode(x)), x_hat, rtol=1e-5, atol=2e-4 * SCALE)


def test_k_counts_per_vector_whatever_the_leading_axes():
    model, x = make("topk"), activations((2, 3, 4))  # [B, H, W, C]
    feats = model.encode(x)
    assert feats.shape == (2, 3, 4, F)
    assert model.decode(feats).shape == x.shape
    assert ((feats != 0).sum(-1) <= K).all()
    np.testing.assert_allclose(  # jit reorders float32 sums: a few units in the last place
        feats.reshape(-1, F), jax.jit(sae.encode)(model, x.reshape(-1, C)), rtol=1e-5, atol=1e-5 * SCALE
    )
    assert (np.asarray((feats != 0).sum(-1)) == K).mean() > 0.9  # relu may leave fewer


def test_ties_at_the_kth_value_go_to_the_lower_index():
    pre = jnp.array([[1.0, 3.0, 1.0, 1.0, 2.0], [0.5, 0.5, 0.5, 0.5, 0.5], [-1.0, -2.0, 4.0, -3.0, -1.0]])
    kept = sae.variants.keep_top(pre, 3)
    np.testing.assert_array_equal(
        kept, [[1.0, 3.0, 0.0, 0.0, 2.0], [0.5, 0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0, 0.0]]
    )


def test_nan_stays_visible():
    model, x = make("topk"), activations()
    x[3, 2] = np.nan
    feats = np.asarray(model.encode(x))
    assert np.isnan(feats[3]).any()
    assert np.isfinite(np.delete(feats, 3, axis=0)).all()


def test_init_has_unit_rows_a_tied_encoder_and_zero_biases():
    model = sae.init(
        jax.random.key(0), n_channels=C, n_features=F, variant="topk", k=K, mean=MEAN, scale=SCALE
    )
    np.testing.assert_allclose(np.linalg.norm(model.w_dec, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(model.w_enc, model.w_dec)
    assert not model.b_dec.any()
    assert not model.b_enc.any()
    assert set(model.params) == {"w_enc", "b_enc", "w_dec", "b_dec"}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"variant": "top_k", "k": 3}, "relu_l1, topk"),
        ({"variant": "topk", "k": F + 1}, f"1..n_features={F}"),
        ({"variant": "topk", "k": 0}, f"1..n_features={F}"),
        ({"variant": "topk", "k": None}, "integer k"),
        ({"variant": "relu_l1", "k": 3}, "has no k"),
        ({"variant": "relu_l1", "k": None, "n_features": 0}, "at least 1"),
    ],
)
def test_bad_settings_name_the_valid_ones(settings, message):
    with pytest.raises(ValueError, match=message):
        sae.init(
            jax.random.key(0), **({"n_channels": C, "n_features": F, "mean": MEAN, "scale": SCALE} | settings)
        )


def test_a_wrong_last_axis_is_named():
    with pytest.raises(ValueError, match=f"C={C}"):
        make().encode(jnp.zeros((4, C + 1)))
    with pytest.raises(ValueError, match=f"F={F}"):
        make().decode(jnp.zeros((4, F - 1)))
