"""JumpReLU (arXiv 2407.14435): f_n = pre where pre is above the feature's own threshold, 0 elsewhere.

    loss = mean ||x_hat_n - x_n||^2 / C  +  l0 * mean ||f_n||_0 / C

Neither the step nor the jump has a useful derivative in the threshold, so both get a straight-through one
inside a window of width `bandwidth` around it (equations 11 and 12 there), with H the Heaviside step and
K = 1 within half a bandwidth:

    d H(pre - threshold) / d threshold = -K((pre - threshold) / bandwidth) / bandwidth
    d f_n / d threshold                = -threshold * K((pre - threshold) / bandwidth) / bandwidth

H gives `pre` no gradient. The threshold itself is trained, in float32, not its logarithm, which Adam would
hardly move; it is kept at 0 or above.
"""

import jax.numpy as jnp
from jax import lax

from jsae.sae.variants import base

_START = 0.05  # of the thresholds, in scaled units


def _activate(pre, arrays, k, shard):
    return base.above(pre, arrays["threshold"])


def jump(pre, threshold, bandwidth: float) -> tuple:
    """(features, step) [N, F] of pre [N, F] and threshold [F], with the straight-through gradients above.

    The values are exact: features are relu(pre) or 0, steps 1 or 0. The gradients ride on a term that is
    exactly 0, so every mode of differentiation works.
    """
    fixed = lax.stop_gradient(threshold)[None, :]
    near = lax.stop_gradient(jnp.abs(pre - fixed) < bandwidth / 2).astype(pre.dtype) / bandwidth
    moved = (threshold - lax.stop_gradient(threshold))[None, :]  # 0, with gradient 1
    on = lax.stop_gradient(pre > fixed).astype(pre.dtype)
    return base.above(pre, fixed[0]) - fixed * near * moved, on - near * moved


def _objective(pre, params, batch: base.Batch, terms: base.Terms, k):
    feats, on = jump(pre, params["threshold"], terms.bandwidth)
    feats = batch.mask[:, None] * feats
    mse, resid = base.reconstruct(feats, params, batch)
    penalty = batch.shard.over_features((batch.mask[:, None] * on).sum()) / batch.x_n.shape[1]
    return mse + batch.sparsity * penalty, base.Parts(feats, resid, penalty)


def _project(params):
    return params | {"threshold": jnp.maximum(params["threshold"], 0.0)}


VARIANT = base.Variant(
    activate=_activate,
    objective=_objective,
    own=lambda n_features: {"threshold": jnp.full(n_features, _START, jnp.float32)},
    learned=("threshold",),
    project=_project,
    coefficient="l0",
)
