"""Gated SAE (arXiv 2404.16014): one path decides which features are active, another how strong they are.

    gate = (x_n - b_dec) @ w_enc.T + b_enc              (b_enc is the paper's b_gate)
    f_n  = [gate > 0] * relu(exp(r_mag) * (gate - b_enc) + b_mag)

    loss = mean ||x_hat_n - x_n||^2 / C  +  l1 * mean ||relu(gate)||_1 / C
         + mean || relu(gate) @ w_dec + b_dec - x_n ||^2 / C      with w_dec and b_dec of this term frozen

The step [gate > 0] has no gradient: the gate learns from the last two terms only, and the frozen decoder
keeps the last one from bending the dictionary. The b_dec inside `gate` stays trainable.
"""

import jax.numpy as jnp
from jax import lax

from jsae.sae.variants import base


def _activate(pre, arrays, k, shard):
    strength = jnp.exp(arrays["r_mag"])[None, :] * (pre - arrays["b_enc"][None, :])
    strength = base.relu(strength + arrays["b_mag"][None, :])
    return jnp.where(pre <= 0, 0.0, strength)


def _objective(pre, params, batch: base.Batch, terms: base.Terms, k):
    feats = batch.mask[:, None] * _activate(pre, params, k, batch.shard)  # [N, F]
    mse, resid = base.reconstruct(feats, params, batch)
    gate = batch.mask[:, None] * base.relu(pre)  # [N, F]
    aux, _ = base.reconstruct(gate, lax.stop_gradient(params), batch)
    penalty = batch.shard.over_features(gate.sum()) / batch.x_n.shape[1]
    return mse + batch.sparsity * penalty + aux, base.Parts(feats, resid, penalty, aux)


def _own(n_features):
    return {name: jnp.zeros(n_features, jnp.float32) for name in ("r_mag", "b_mag")}


VARIANT = base.Variant(
    activate=_activate, objective=_objective, own=_own, learned=("r_mag", "b_mag"), coefficient="l1"
)
