"""A training batch with padding, and a check of gradients against a float64 oracle."""

import dataclasses
import functools

import jax
import numpy as np

from jsae.sae import losses, variants

N = 128
# Float32 sums of 128 rows with a few hundred terms each.
RELATIVE = 2e-5


@functools.partial(jax.jit, static_argnames=("variant", "sparse"))
def sums_and_grads(params, x_n, mask, dead, sparsity, *, variant, sparse):
    batch = variants.Batch(x_n, mask, sparsity)
    return losses.sums_and_grads(params, batch, dead, variant=variant, sparse=sparse)


def problem(examples, variant, n_dead=0, **settings):
    """(model, x_n [N, C], mask [N], dead [F]): every ninth row is padding. AuxK only where it is set."""
    if "aux_alpha" in variants.settings_of(variant):
        settings = {"aux_alpha": 0.0} | settings
    model, x = examples.make(variant, **settings), examples.activations((N,))
    mask = (np.arange(N) % 9 != 0).astype(np.float32)
    x_n = np.asarray((x - examples.MEAN.astype(np.float32)) / np.float32(examples.SCALE))
    x_n[mask == 0] = 0.0
    dead = np.zeros(examples.F, bool)
    dead[np.random.default_rng(3).permutation(examples.F)[:n_dead]] = True
    return model, x_n, mask, dead


def compute(model, x_n, mask, dead=None, sparsity=None, *, sparse=False, **settings):
    """`losses.sums_and_grads` of a model with other settings; the coefficient is its variant's."""
    dead = np.zeros(model.n_features, bool) if dead is None else dead
    variant = dataclasses.replace(model.variant, **settings)
    sparsity = variant.sparsity() if sparsity is None else sparsity
    return sums_and_grads(model.params, x_n, mask, dead, sparsity, variant=variant, sparse=sparse)


def in_float64(model):
    return {name: np.asarray(value, np.float64) for name, value in model.params.items()}


def check_gradients(grads, value, params, *, names=None, h=1e-6):
    """Gradients equal central differences of value(params) in float64 along a random direction each."""
    rng = np.random.default_rng(7)
    for name in names or params:
        gradient = np.asarray(grads[name], np.float64)
        direction = rng.normal(size=params[name].shape)
        up, down = (value(params | {name: params[name] + sign * h * direction}) for sign in (1, -1))
        slope = (up - down) / (2 * h)
        scale = np.linalg.norm(gradient) * np.linalg.norm(direction)
        assert scale > 0, f"{name} has no gradient"
        assert abs((gradient * direction).sum() - slope) < 1e-4 * scale, name


def preactivations(params, x):
    return params["w_enc"] @ (x - params["b_dec"]) + params["b_enc"]
