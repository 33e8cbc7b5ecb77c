"""Losses and hand-written gradients against a float64 numpy oracle and against autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae
from jsae.sae import losses

N, L1, ALPHA = 128, 0.7, 1 / 32
C, F = 12, 40  # as in the examples
# Float32 sums of 128 rows with a few hundred terms each.
RELATIVE = 2e-5

sums_and_grads = jax.jit(losses.sums_and_grads, static_argnames=("variant", "k", "aux_alpha", "sparse"))


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


def problem(examples, variant, n_dead):
    model, x = examples.make(variant), examples.activations((N,))
    mask = (np.arange(N) % 9 != 0).astype(np.float32)
    x_n = np.asarray((x - examples.MEAN.astype(np.float32)) / np.float32(examples.SCALE))
    x_n[mask == 0] = 0.0
    dead = np.zeros(F, bool)
    dead[np.random.default_rng(3).permutation(F)[:n_dead]] = True
    return model, x_n, mask, dead


CASES = [
    ("relu_l1", False, 0),
    ("topk", True, 0),
    ("topk", True, 3),  # fewer dead than k_aux = C / 2, gathered
    ("topk", False, 30),  # more dead than k_aux and than the gathered subset holds
]


@pytest.mark.parametrize("variant, sparse, n_dead", CASES)
def test_sums_and_gradients_equal_the_oracle(variant, sparse, n_dead, examples):
    model, x_n, mask, dead = problem(examples, variant, n_dead)
    l1 = L1 if variant == "relu_l1" else 0.0
    alpha = ALPHA if variant == "topk" else 0.0
    sums, grads = sums_and_grads(
        *(model.params, x_n, mask, dead, l1), variant=variant, k=model.k, aux_alpha=alpha, sparse=sparse
    )

    params = {name: np.asarray(value, np.float64) for name, value in model.params.items()}
    rows = x_n.astype(np.float64)
    settings = {"k": model.k, "l1": l1, "alpha": alpha, "n_aux": losses.k_aux(C, F)}
    _, total = oracle(params, rows, mask, dead, **settings)
    np.testing.assert_allclose(sums["sse"] / C, total["mse"], rtol=RELATIVE)
    np.testing.assert_allclose(sums["l1"] / C, total["l1"], rtol=RELATIVE)
    np.testing.assert_allclose(sums["aux"], total["aux"], rtol=RELATIVE)
    assert sums["n"] == mask.sum()
    np.testing.assert_allclose(sums["x_sq"], (mask[:, None] * rows**2).sum(), rtol=RELATIVE)
    np.testing.assert_array_equal(
        sums["fired"], (np.asarray(model.encode(rows * examples.SCALE + examples.MEAN))[mask > 0] != 0).sum(0)
    )

    constant = params | {"error": detached_errors(params, rows, model.k)}
    rng = np.random.default_rng(7)
    for name in ("w_enc", "b_enc", "w_dec", "b_dec"):
        gradient = np.asarray(grads[name], np.float64)
        direction = rng.normal(size=params[name].shape)
        h, ends = 1e-6, []  # a central difference along it, in float64
        for sign in (1, -1):
            moved = constant | {name: params[name] + sign * h * direction}
            ends.append(oracle(moved, rows, mask, dead, **settings)[0])
        slope = (ends[0] - ends[1]) / (2 * h)
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert abs((gradient * direction).sum() - slope) < 1e-4 * scale, name


@pytest.mark.parametrize("variant, sparse, n_dead", [CASES[0], *CASES[2:]])
def test_hand_written_gradient_equals_autodiff_of_the_public_loss(variant, sparse, n_dead, examples):
    model, x_n, mask, dead = problem(examples, variant, n_dead)
    l1 = L1 if variant == "relu_l1" else 0.0
    alpha = ALPHA if variant == "topk" else 0.0
    plain = sae.SAE(**(vars(model) | {"mean": jnp.zeros(C), "scale": jnp.ones(())}))
    (_, terms), auto = jax.jit(jax.value_and_grad(sae.loss, has_aux=True))(
        plain, x_n, mask=mask, l1=l1, dead=dead, aux_alpha=alpha
    )
    sums, grads = sums_and_grads(
        *(model.params, x_n, mask, dead, l1), variant=variant, k=model.k, aux_alpha=alpha, sparse=sparse
    )
    np.testing.assert_allclose(terms["mse"], sums["sse"] / C / sums["n"], rtol=RELATIVE)
    np.testing.assert_allclose(terms["aux"], sums["aux"] / sums["n"], rtol=RELATIVE)
    for name, gradient in grads.items():
        expected = np.asarray(getattr(auto, name)) * mask.sum()
        assert np.abs(gradient - expected).max() <= RELATIVE * np.abs(expected).max(), name


def test_auxk_without_dead_features_changes_nothing_and_is_never_nan(examples):
    model, x_n, mask, dead = problem(examples, "topk", 0)
    run = lambda alpha: sums_and_grads(  # noqa: E731
        *(model.params, x_n, mask, dead, 0.0), variant="topk", k=model.k, aux_alpha=alpha, sparse=True
    )
    (with_aux, grads), (without, plain) = run(ALPHA), run(0.0)
    assert with_aux["aux"] == 0.0
    assert without["aux"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, grads, plain)


def test_auxk_leaves_living_features_and_the_decoder_bias_path_alone(examples):
    """AuxK's own gradient: 0 for rows of living features, and none through the detached error."""
    model, x_n, mask, dead = problem(examples, "topk", 3)
    run = lambda alpha: sums_and_grads(  # noqa: E731
        *(model.params, x_n, mask, dead, 0.0), variant="topk", k=model.k, aux_alpha=alpha, sparse=True
    )[1]
    aux = jax.tree.map(lambda a, b: np.asarray(a - b), run(1.0), run(0.0))
    for name in ("w_enc", "b_enc", "w_dec"):
        assert np.abs(aux[name][~dead]).max() == 0.0, name
        assert np.abs(aux[name][dead]).max() > 0.0, name
    # b_dec acts on AuxK only through the encoder's input, never as a decoded bias
    np.testing.assert_allclose(aux["b_dec"], -(aux["b_enc"] @ np.asarray(model.w_enc)), rtol=1e-3, atol=1e-3)


def test_all_features_dead_gives_finite_gradients(examples):
    model, x_n, mask, _ = problem(examples, "topk", 0)
    _, grads = sums_and_grads(
        *(model.params, x_n, mask, np.ones(F, bool), 0.0),
        variant="topk",
        k=model.k,
        aux_alpha=1.0,
        sparse=True,
    )
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
