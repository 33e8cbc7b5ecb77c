"""ReLU with an L1 penalty: f_n = relu(pre).

    loss = mean ||x_n - x_hat_n||^2 / C  +  l1 * mean sum_j f_n[j] * ||w_dec[j]|| / C

With decoder_norm "unit" the norms are 1 and the rows are renormalised after each step; with "free" the
penalty is weighted by the rows' norms instead, so that a feature cannot escape it by growing its row.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from jsae.runtime import settings
from jsae.sae.variants import base
from jsae.sae.variants.shard import WHOLE, Shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReluL1(base.Variant):
    """Settings.

    Attributes:
      l1: coefficient of the L1 term.
      l1_warmup_steps: steps over which it rises linearly to its value.
      decoder_norm: "unit" keeps decoder rows at norm 1; "free" leaves them and weights the penalty by them.
    """

    l1: float = 0.0
    l1_warmup_steps: int = 0
    decoder_norm: str = "unit"

    name = "relu_l1"
    saelens = base.SaeLens("standard")
    ranges: ClassVar = {"l1": settings.NOT_NEGATIVE, "l1_warmup_steps": settings.NONE_OR_MORE}

    def check(self, n_features: int) -> None:
        super().check(n_features)
        settings.check_choice(f"sae.{self.name}.decoder_norm", self.decoder_norm, ("unit", "free"))

    def sparsity(self, step: jax.Array | None = None) -> jax.Array | float:
        return base.warm_up(self.l1, self.l1_warmup_steps, step)

    @property
    def has_unit_rows(self) -> bool:
        return self.decoder_norm == "unit"

    def activate(self, pre: jax.Array, arrays: dict, shard: Shard = WHOLE) -> jax.Array:
        return base.relu(pre)

    def objective(self, pre: jax.Array, params: dict, batch: base.Batch) -> tuple[jax.Array, base.Parts]:
        feats = batch.shard.active(pre, batch.mask[:, None] * base.relu(pre))  # [N, F]
        mse, resid = base.reconstruct(feats, params, batch)
        by_feature = batch.shard.by_feature(feats)
        if self.decoder_norm == "free":
            by_feature = by_feature * jnp.linalg.norm(params["w_dec"], axis=-1)
        penalty = batch.shard.over_features(by_feature.sum()) / batch.x_n.shape[1]
        return mse + batch.sparsity * penalty, base.Parts(feats, resid, penalty)
