"""Losses and hand-written gradients against a float64 numpy oracle and against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae
from jsae.sae import auxk
from tests.sae.oracle import RELATIVE, check_gradients, compute, in_float64, problem

L1, ALPHA = 0.7, 1 / 32
C, F = 12, 40  # as in the examples


def oracle(params, x_n, mask, dead, *, k, l1, alpha, n_aux):
    """Summed loss over real rows in float64: rows one by one; e is given by the same parameters, detached."""
    total = {"mse": 0.0, "l1": 0.0, "aux": 0.0}
    for x, real in zip(x_n, mask, strict=True):
        if not real:
            continue
        pre = params["w_enc"] @ (x - params["b_dec"]) + params["b_enc"]
        feats = np.maximum(pre, 0.0)
        if k is not None:
            feats[np.argsort(-pre, kind="stable")[k:]] = 0.0
        error = x - (feats @ params["w_dec"] + params["b_dec"])
        total["mse"] += (error**2).sum() / len(x)
        total["l1"] += feats.sum() / len(x)
        if k is not None and dead.any():
            missed = params.get("error", {}).get(x.tobytes(), error)  # detached where given
            revived = np.where(dead, np.maximum(pre, 0.0), 0.0)
            order = np.argsort(-np.where(dead, pre, -np.inf), kind="stable")
            revived[order[n_aux:]] = 0.0
            total["aux"] += ((missed - revived @ params["w_dec"]) ** 2).sum() / len(x)
    return total["mse"] + l1 * total["l1"] + alpha * total["aux"], total


def detached_errors(params, x_n, k):
    """The error of each row as a constant, for differences of the oracle."""
    errors = {}
    for x in x_n:
        pre = params["w_enc"] @ (x - params["b_dec"]) + params["b_enc"]
        feats = np.maximum(pre, 0.0)
        if k is not None:
            feats[np.argsort(-pre, kind="stable")[k:]] = 0.0
        errors[x.tobytes()] = x - (feats @ params["w_dec"] + params["b_dec"])
    return errors


CASES = [
    ("relu_l1", False, 0),
    ("topk", True, 0),
    ("topk", True, 3),  # fewer dead than k_aux = C / 2, gathered
    ("topk", False, 30),  # more dead than k_aux and than the gathered subset holds
]


@pytest.mark.parametrize("variant, sparse, n_dead", CASES)
def test_sums_and_gradients_equal_the_oracle(variant, sparse, n_dead, examples):
    settings = {"l1": L1} if variant == "relu_l1" else {"aux_alpha": ALPHA}
    model, x_n, mask, dead = problem(examples, variant, n_dead, **settings)
    sums, grads, _ = compute(model, x_n, mask, dead, sparse=sparse)

    params = in_float64(model)
    rows = x_n.astype(np.float64)
    settings = {"k": model.k, "l1": settings.get("l1", 0.0), "alpha": model.variant.aux_alpha}
    settings["n_aux"] = auxk.k_aux(C, F)
    _, total = oracle(params, rows, mask, dead, **settings)
    np.testing.assert_allclose(sums["sse"] / C, total["mse"], rtol=RELATIVE)
    np.testing.assert_allclose(sums["l1"] / C, total["l1"], rtol=RELATIVE)
    np.testing.assert_allclose(sums["aux"], total["aux"], rtol=RELATIVE)
    assert sums["n"] == mask.sum()
    np.testing.assert_allclose(sums["x_sq"], (mask[:, None] * rows**2).sum(), rtol=RELATIVE)
    np.testing.assert_array_equal(
        sums["fired"], (np.asarray(model.encode(rows * examples.SCALE + examples.MEAN))[mask > 0] != 0).sum(0)
    )

    constant = {"error": detached_errors(params, rows, model.k)}
    check_gradients(grads, lambda p: oracle(p | constant, rows, mask, dead, **settings)[0], params)


@pytest.mark.parametrize("variant, sparse, n_dead", [CASES[0], *CASES[2:]])
def test_hand_written_gradient_equals_autodiff_of_the_public_loss(variant, sparse, n_dead, examples):
    settings = {"l1": L1} if variant == "relu_l1" else {"aux_alpha": ALPHA}
    model, x_n, mask, dead = problem(examples, variant, n_dead, **settings)
    plain = sae.SAE(**(vars(model) | {"mean": jnp.zeros(C), "scale": jnp.ones(())}))
    (value, terms), auto = jax.jit(jax.value_and_grad(sae.loss, has_aux=True))(
        plain, x_n, mask=mask, dead=dead
    )
    sums, grads, _ = compute(model, x_n, mask, dead, sparse=sparse)
    np.testing.assert_allclose(value, sums["loss"] / sums["n"], rtol=RELATIVE)
    np.testing.assert_allclose(terms["mse"], sums["sse"] / C / sums["n"], rtol=RELATIVE)
    np.testing.assert_allclose(terms["aux"], sums["aux"] / sums["n"], rtol=RELATIVE)
    for name, gradient in grads.items():
        expected = np.asarray(getattr(auto, name)) * mask.sum()
        assert np.abs(gradient - expected).max() <= RELATIVE * np.abs(expected).max(), name


@pytest.mark.parametrize("variant, sparse", [("topk", True), ("batch_topk", False), ("matryoshka", False)])
def test_auxk_adds_its_term_once_and_touches_dead_features_only(variant, sparse, examples):
    """AuxK's own gradient: 0 for rows of living features, and none through the detached error."""
    model, x_n, mask, dead = problem(examples, variant, 3)
    run = lambda dead, alpha: compute(model, x_n, mask, dead, aux_alpha=alpha, sparse=sparse)  # noqa: E731
    (with_aux, grads, _), (without, plain, _) = run(dead, 1.0), run(dead, 0.0)
    np.testing.assert_allclose(with_aux["loss"], without["loss"] + with_aux["aux"], rtol=RELATIVE)
    half = run(dead, 0.5)[0]
    np.testing.assert_allclose(half["loss"], without["loss"] + 0.5 * with_aux["aux"], rtol=RELATIVE)
    aux = jax.tree.map(lambda a, b: np.asarray(a - b), grads, plain)
    for name in ("w_enc", "b_enc", "w_dec"):
        assert np.abs(aux[name][~dead]).max() == 0.0, name
        assert np.abs(aux[name][dead]).max() > 0.0, name
    # b_dec acts on AuxK only through the encoder's input, never as a decoded bias
    np.testing.assert_allclose(aux["b_dec"], -(aux["b_enc"] @ np.asarray(model.w_enc)), rtol=1e-3, atol=1e-3)
    none, no_gradients, _ = run(np.zeros(F, bool), 1.0)
    assert none["aux"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, no_gradients, plain)


def test_k_aux_is_half_the_channels_and_never_more_than_there_are_features():
    assert (auxk.k_aux(768, 6144), auxk.k_aux(768, 100), auxk.k_aux(1, 5)) == (384, 100, 1)


def test_all_features_dead_gives_finite_gradients(examples):
    model, x_n, mask, _ = problem(examples, "topk")
    _, grads, _ = compute(model, x_n, mask, np.ones(F, bool), aux_alpha=1.0, sparse=True)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_padding_rows_count_for_nothing(examples):
    for variant in sae.VARIANTS:
        model, x_n, mask, dead = problem(examples, variant, 3)
        settings = {"aux_alpha": 1.0} if "aux_alpha" in sae.variants.settings_of(variant) else {}
        whole, grads, stats = compute(model, x_n, mask, dead, 0.3, **settings)
        x_n[mask == 0] = 7.0
        other, others, same_stats = compute(model, x_n, mask, dead, 0.3, **settings)
        for name, value in whole.items():
            np.testing.assert_allclose(other[name], value, rtol=RELATIVE, err_msg=f"{variant} {name}")
        for name, value in grads.items():
            np.testing.assert_allclose(
                others[name],
                value,
                rtol=RELATIVE,
                atol=RELATIVE * np.abs(value).max(),
                err_msg=f"{variant} {name}",
            )
        jax.tree.map(np.testing.assert_array_equal, stats, same_stats)
