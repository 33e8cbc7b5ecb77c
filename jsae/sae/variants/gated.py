"""Gated SAE (arXiv 2404.16014): one path decides which features are active, another how strong they are.

    gate = (x_n - b_dec) @ w_enc.T + b_enc              (b_enc is the paper's b_gate)
    f_n  = [gate > 0] * relu(exp(r_mag) * (gate - b_enc) + b_mag)

    loss = mean ||x_hat_n - x_n||^2 / C  +  l1 * mean ||relu(gate)||_1 / C
         + mean || relu(gate) @ w_dec + b_dec - x_n ||^2 / C      with w_dec and b_dec of this term frozen

The step [gate > 0] has no gradient: the gate learns from the last two terms only, and the frozen decoder
keeps the last one from bending the dictionary. The b_dec inside `gate` stays trainable.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsae.runtime import settings
from jsae.sae.variants import base
from jsae.sae.variants.shard import WHOLE, Shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gated(base.Variant):
    """Settings.

    Attributes:
      l1: coefficient of the L1 term.
      l1_warmup_steps: steps over which it rises linearly to its value.
    """

    l1: float = 0.0
    l1_warmup_steps: int = 0

    name = "gated"
    saelens = base.SaeLens("gated", bias="b_gate", arrays={"b_mag": True, "r_mag": False})
    ranges: ClassVar = {"l1": settings.NOT_NEGATIVE, "l1_warmup_steps": settings.NONE_OR_MORE}
    learned = by_feature = ("r_mag", "b_mag")

    def sparsity(self, step: jax.Array | None = None) -> jax.Array | float:
        return base.warm_up(self.l1, self.l1_warmup_steps, step)

    def own(self, n_features: int) -> dict[str, jax.Array]:
        return {name: jnp.zeros(n_features, jnp.float32) for name in ("r_mag", "b_mag")}

    def activate(self, pre: jax.Array, arrays: dict, shard: Shard = WHOLE) -> jax.Array:
        strength = jnp.exp(arrays["r_mag"])[None, :] * (pre - arrays["b_enc"][None, :])
        strength = base.relu(strength + arrays["b_mag"][None, :])
        return jnp.where(pre <= 0, 0.0, strength)

    def objective(self, pre: jax.Array, params: dict, batch: base.Batch) -> tuple[jax.Array, base.Parts]:
        feats = batch.shard.short(batch.mask[:, None] * self.activate(pre, params))  # [N, F]
        mse, resid = base.reconstruct(feats, params, batch)
        gate = batch.shard.active(pre, batch.mask[:, None] * base.relu(pre))  # [N, F]
        aux, _ = base.reconstruct(gate, lax.stop_gradient(params), batch)
        penalty = batch.shard.over_features(gate.sum()) / batch.x_n.shape[1]
        return mse + batch.sparsity * penalty + aux, base.Parts(feats, resid, penalty, aux)

    def fold_input_bias(self, own: dict, shift: Any) -> dict:
        """The magnitude does not read b_enc: its bias moves too."""
        return own | {"b_mag": own["b_mag"] + np.exp(own["r_mag"]) * shift}
