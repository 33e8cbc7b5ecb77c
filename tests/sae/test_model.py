"""Encode and decode against a float64 numpy oracle, and the errors of bad settings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae


def oracle_encode(model, x):
    """Raw x [N, C] -> (features [N, F] in raw units, x_hat [N, C]) in float64, one vector at a time."""
    p = {
        name: np.asarray(value, np.float64)
        for name, value in (vars(model) | model.own).items()
        if name not in ("variant", "own", "mesh")
    }
    feats = np.zeros((len(x), model.n_features))
    for n, vector in enumerate(x.astype(np.float64)):
        pre = p["w_enc"] @ ((vector - p["mean"]) / p["scale"] - p["b_dec"]) + p["b_enc"]
        f_n = np.maximum(pre, 0.0)
        match model.variant.name:
            case "topk":
                f_n[np.argsort(-pre, kind="stable")[model.k :]] = 0.0
            case "batch_topk" | "jumprelu" | "matryoshka":
                f_n[pre <= p["threshold"]] = 0.0
            case "gated":
                f_n = (pre > 0) * np.maximum(np.exp(p["r_mag"]) * (pre - p["b_enc"]) + p["b_mag"], 0.0)
        feats[n] = p["scale"] * f_n
    return feats, feats @ p["w_dec"] + p["scale"] * p["b_dec"] + p["mean"]


@pytest.mark.parametrize("variant", list(sae.VARIANTS))
def test_encode_and_decode_equal_the_oracle_in_raw_units(variant, examples):
    model, x = examples.make(variant), examples.activations()
    feats, x_hat = oracle_encode(model, x)
    # float32 of x - mean with |mean| near 500 and scale 37 keeps about 5 digits
    np.testing.assert_allclose(model.encode(x), feats, atol=2e-4 * examples.SCALE)
    np.testing.assert_allclose(model.decode(model.encode(x)), x_hat, rtol=1e-5, atol=2e-4 * examples.SCALE)


@pytest.mark.parametrize("variant", list(sae.VARIANTS))
def test_a_vector_is_encoded_alike_whatever_stands_beside_it(variant, examples):
    model, x = examples.make(variant), examples.activations((2, 3, 4))  # [B, H, W, C]
    feats = model.encode(x)
    assert feats.shape == (2, 3, 4, examples.F)
    alone = np.stack([model.encode(vector) for vector in x.reshape(-1, examples.C)])
    # another batch size reorders float32 sums
    np.testing.assert_allclose(feats.reshape(-1, examples.F), alone, rtol=1e-4, atol=1e-5 * examples.SCALE)


def test_k_counts_per_vector_whatever_the_leading_axes(examples):
    F, K, C = examples.F, examples.K, examples.C
    model, x = examples.make("topk"), examples.activations((2, 3, 4))  # [B, H, W, C]
    feats = model.encode(x)
    assert feats.shape == (2, 3, 4, F)
    assert model.decode(feats).shape == x.shape
    assert ((feats != 0).sum(-1) <= K).all()
    np.testing.assert_allclose(  # jit reorders float32 sums: a few units in the last place
        feats.reshape(-1, F),
        jax.jit(sae.encode)(model, x.reshape(-1, C)),
        rtol=1e-5,
        atol=1e-5 * examples.SCALE,
    )
    assert (np.asarray((feats != 0).sum(-1)) == K).mean() > 0.9  # relu may leave fewer


def test_ties_at_the_kth_value_go_to_the_lower_index():
    pre = jnp.array([[1.0, 3.0, 1.0, 1.0, 2.0], [0.5, 0.5, 0.5, 0.5, 0.5], [-1.0, -2.0, 4.0, -3.0, -1.0]])
    kept = sae.variants.topk.keep_top(pre, 3)
    np.testing.assert_array_equal(
        kept, [[1.0, 3.0, 0.0, 0.0, 2.0], [0.5, 0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 4.0, 0.0, 0.0]]
    )


def test_nan_stays_visible(examples):
    model, x = examples.make("topk"), examples.activations()
    x[3, 2] = np.nan
    feats = np.asarray(model.encode(x))
    assert np.isnan(feats[3]).any()
    assert np.isfinite(np.delete(feats, 3, axis=0)).all()


def test_init_has_unit_rows_a_tied_encoder_and_zero_biases(examples):
    model = sae.init(
        jax.random.key(0),
        n_channels=examples.C,
        n_features=examples.F,
        variant="topk",
        k=examples.K,
        mean=examples.MEAN,
        scale=examples.SCALE,
    )
    np.testing.assert_allclose(np.linalg.norm(model.w_dec, axis=1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(model.w_enc, model.w_dec)
    assert not model.b_dec.any()
    assert not model.b_enc.any()
    assert set(model.params) == {"w_enc", "b_enc", "w_dec", "b_dec"}  # mean and scale are constants


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"variant": "top_k", "k": 3}, "relu_l1, topk, batch_topk, jumprelu, matryoshka, gated"),
        ({"variant": "topk", "k": 41}, "1..n_features=40"),
        ({"variant": "topk", "k": 0}, "1..n_features=40"),
        ({"variant": "topk", "k": None}, "integer k"),
        ({"variant": "relu_l1", "k": 3}, "'relu_l1' has no k; its settings are l1, l1_warmup_steps, decoder"),
        ({"variant": "relu_l1", "n_features": 0}, "at least 1"),
        ({"variant": sae.variants.TopK(k=3), "k": 4}, "settings k beside a variant"),
    ],
)
def test_bad_settings_name_the_valid_ones(settings, message, examples):
    sizes = {
        "n_channels": examples.C,
        "n_features": examples.F,
        "mean": examples.MEAN,
        "scale": examples.SCALE,
    }
    with pytest.raises(ValueError, match=message):
        sae.init(jax.random.key(0), **(sizes | settings))


def test_a_wrong_last_axis_is_named(examples):
    with pytest.raises(ValueError, match="C=12"):
        examples.make().encode(jnp.zeros((4, 13)))
    with pytest.raises(ValueError, match="F=40"):
        examples.make().decode(jnp.zeros((4, 39)))
    for wrong, words in [([1.0] * 12, "got list"), (np.zeros((2, 12), bool), "got bool"), ("x", "got str")]:
        with pytest.raises(TypeError, match=f"activations are an array of numbers .*{words}"):
            examples.make().encode(wrong)
