"""TopK (arXiv 2406.04093): f_n = relu(pre) on the k largest pre-activations of each vector, 0 elsewhere.

Ties at the k-th value go to the lower feature index, so at most k features are active: exactly k, unless
fewer than k pre-activations are positive. Trained on the squared error with AuxK beside (jsae.sae.auxk).

With k active features of F, everything behind the encoder's product touches only k rows per vector
(jsae.sae.variants.backward).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jsae.runtime import settings
from jsae.sae.variants import backward, base, selection
from jsae.sae.variants.shard import WHOLE, Shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class TopK(base.Variant):
    """Settings.

    Attributes:
      k: features that are active per vector.
      aux_alpha: coefficient of AuxK.
    """

    k: int = 32
    aux_alpha: float = 1 / 32

    name = "topk"
    saelens = base.SaeLens("topk")
    selects = True
    ranges: ClassVar = {"k": settings.COUNT, "aux_alpha": settings.NOT_NEGATIVE}

    def check(self, n_features: int) -> None:
        base.check_k(self, n_features)
        super().check(n_features)

    def activate(self, pre: jax.Array, arrays: dict, shard: Shard = WHOLE) -> jax.Array:
        return keep_top(pre, self.k, shard)

    def objective(self, pre: jax.Array, params: dict, batch: base.Batch) -> tuple[jax.Array, base.Parts]:
        feats = batch.shard.active(pre, batch.mask[:, None] * keep_top(pre, self.k, batch.shard))  # [N, F]
        mse, resid = base.reconstruct(feats, params, batch)
        return mse, base.Parts(feats, resid)

    def sparse(self, params: dict, batch: base.Batch, centred: jax.Array, pre: jax.Array) -> tuple:
        shard, n_local = batch.shard, pre.shape[1]
        values, indices = lax.top_k(pre, min(self.k, n_local))  # [N, m]
        kept = ~(values <= 0) & (batch.mask > 0)[:, None]  # a NaN stays visible
        if shard.n_model == 1:
            entries = backward.by_vector(values, indices, kept)
            return *backward.sparse(params, batch, centred, entries), {}
        kept = kept & selection.among_largest(values, self.k, shard)
        per_vector = backward.room(self.k, shard.n_model, n_local)
        entries, missed = backward.listed(values, indices, kept, per_vector, n_local)
        objective = lambda pre, rest: self.objective(pre, rest, batch)  # noqa: E731
        found = backward.sparse_or_dense(params, batch, centred, pre, entries, missed, objective)
        return found[:4]

    def to_saelens(self) -> dict:
        return {"k": self.k, "rescale_acts_by_decoder_norm": False}

    @classmethod
    def from_saelens(cls, config: dict) -> "TopK":
        return cls(k=config.get("k", config.get("activation_fn_kwargs", {}).get("k")))


def keep_top(pre: jax.Array, k: int, shard: Shard = WHOLE) -> jax.Array:
    """relu(pre) [N, F] on the k largest entries of each row of all shards, else 0; a NaN stays visible."""
    threshold, last = selection.cut_of_rows(lax.stop_gradient(pre), k, shard)  # [N, 1]
    column = lax.broadcasted_iota(jnp.int32, pre.shape, 1)
    dropped = (pre < threshold) | ((pre == threshold) & (column > last))
    return jnp.where(dropped, 0.0, base.relu(pre))
