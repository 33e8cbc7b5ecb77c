"""JumpReLU (arXiv 2407.14435): f_n = pre where pre is above the threshold of the feature, 0 elsewhere.

    loss = mean ||x_hat_n - x_n||^2 / C  +  l0 * mean ||f_n||_0 / C

Neither the step nor the jump has a useful derivative in the threshold, so both get a straight-through one
inside a window of width `bandwidth` around it (equations 11 and 12 there), with H the Heaviside step and
K = 1 within half a bandwidth:

    d H(pre - threshold) / d threshold = -K((pre - threshold) / bandwidth) / bandwidth
    d f_n / d threshold                = -threshold * K((pre - threshold) / bandwidth) / bandwidth

H gives `pre` no gradient. The threshold itself is trained, in float32, not its logarithm, which Adam would
hardly move; it is kept at 0 or above.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jsae.runtime import settings
from jsae.sae.variants import base
from jsae.sae.variants.shard import WHOLE, Shard

_START = 0.05  # of the thresholds, in scaled units


@dataclasses.dataclass(frozen=True, kw_only=True)
class JumpReLU(base.Variant):
    """Settings.

    Attributes:
      l0: coefficient of the L0 term.
      l0_warmup_steps: steps over which it rises linearly to its value.
      bandwidth: width of the window around the threshold that gives it a gradient, in scaled units.
    """

    l0: float = 0.0
    l0_warmup_steps: int = 0
    bandwidth: float = 0.1

    name = "jumprelu"
    saelens = base.SaeLens("jumprelu", arrays={"threshold": True})
    ranges: ClassVar = {
        "l0": settings.NOT_NEGATIVE,
        "l0_warmup_steps": settings.NONE_OR_MORE,
        "bandwidth": settings.POSITIVE,
    }
    learned = by_feature = ("threshold",)

    def sparsity(self, step: jax.Array | None = None) -> jax.Array | float:
        return base.warm_up(self.l0, self.l0_warmup_steps, step)

    def own(self, n_features: int) -> dict[str, jax.Array]:
        return {"threshold": jnp.full(n_features, _START, jnp.float32)}

    def activate(self, pre: jax.Array, arrays: dict, shard: Shard = WHOLE) -> jax.Array:
        return base.above(pre, arrays["threshold"])

    def objective(self, pre: jax.Array, params: dict, batch: base.Batch) -> tuple[jax.Array, base.Parts]:
        feats, on = jump(pre, params["threshold"], self.bandwidth)
        feats = batch.shard.short(batch.mask[:, None] * feats)
        mse, resid = base.reconstruct(feats, params, batch)
        penalty = batch.shard.over_features((batch.mask[:, None] * on).sum()) / batch.x_n.shape[1]
        return mse + batch.sparsity * penalty, base.Parts(feats, resid, penalty)

    def project(self, params: dict) -> dict:
        """Thresholds stay at 0 or above."""
        return params | {"threshold": jnp.maximum(params["threshold"], 0.0)}


def jump(pre: jax.Array, threshold: jax.Array, bandwidth: float) -> tuple[jax.Array, jax.Array]:
    """(features, step) [N, F] of pre [N, F] and threshold [F], with the straight-through gradients above.

    The values are exact: features are relu(pre) or 0, steps 1 or 0. The gradients ride on a term that is
    exactly 0, so every mode of differentiation works.
    """
    fixed = lax.stop_gradient(threshold)[None, :]
    near = lax.stop_gradient(jnp.abs(pre - fixed) < bandwidth / 2).astype(pre.dtype) / bandwidth
    moved = (threshold - lax.stop_gradient(threshold))[None, :]  # 0, with gradient 1
    on = lax.stop_gradient(pre > fixed).astype(pre.dtype)
    return base.above(pre, fixed[0]) - fixed * near * moved, on - near * moved
