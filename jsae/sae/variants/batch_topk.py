"""BatchTopK (arXiv 2412.06410): the k * N largest positive pre-activations of a whole batch are kept.

In training the cut is the (k * N)-th largest value over the N real vectors of the batch, on all devices
together; values equal to it stay in. It is found by counting (`jsae.sae.variants.selection`), not by a sort
of N * F numbers.

At inference a vector must not depend on its neighbours, so a feature is active where its pre-activation
is above `threshold`, a running mean of the cuts in float32. With t steps taken before, its decay is
min(threshold_decay, (1 + t) / (10 + t)), so the first batches do not weigh for long. AuxK as in TopK.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from jsae.runtime import settings
from jsae.sae.variants import backward, base, selection
from jsae.sae.variants.shard import WHOLE, Shard

_CANDIDATES = 4  # times k, of each vector


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchTopK(base.Variant):
    """Settings.

    Attributes:
      k: features that are active per vector, on average over a batch.
      aux_alpha: coefficient of AuxK.
      threshold_decay: of the running mean that makes the threshold of inference.
    """

    k: int = 32
    aux_alpha: float = 1 / 32
    threshold_decay: float = 0.99

    name = "batch_topk"
    saelens = base.SaeLens("jumprelu", arrays={"threshold": True}, is_read=False)
    selects = True
    ranges: ClassVar = {
        "k": settings.COUNT,
        "aux_alpha": settings.NOT_NEGATIVE,
        "threshold_decay": settings.BELOW_ONE,
    }

    def check(self, n_features: int) -> None:
        base.check_k(self, n_features)
        super().check(n_features)

    def own(self, n_features: int) -> dict[str, jax.Array]:
        """The learned threshold, a scalar; 0 before the first step."""
        return {"threshold": jnp.zeros((), jnp.float32)}

    def activate(self, pre: jax.Array, arrays: dict, shard: Shard = WHOLE) -> jax.Array:
        """relu(pre) above the learned threshold."""
        return base.above(pre, arrays["threshold"])

    def objective(self, pre: jax.Array, params: dict, batch: base.Batch) -> tuple[jax.Array, base.Parts]:
        feats, at = select(pre, batch, self.k)
        mse, resid = base.reconstruct(feats, params, batch)
        return mse, base.Parts(feats, resid, batch_stats={"cut": at})

    def follow(self, own: dict, batch_stats: dict, t: jax.Array) -> dict:
        """The threshold after a step whose batch was cut at batch_stats["cut"]; without features it stays."""
        t, at = t.astype(jnp.float32), batch_stats["cut"]
        decay = jnp.minimum(self.threshold_decay, jnp.where(t == 0, 0.0, (1 + t) / (10 + t)))
        moved = decay * own["threshold"] + (1 - decay) * at
        return {"threshold": jnp.where(jnp.isinf(at), own["threshold"], moved)}

    def sparse(self, params: dict, batch: base.Batch, centred: jax.Array, pre: jax.Array) -> tuple:
        """The cut is counted over some candidates of each vector instead of all F.

        That is exact unless some vector keeps all of its candidates; then the step is done densely.
        """
        n_local = pre.shape[1]
        per_vector = backward.room(self.k, batch.shard.n_model, n_local)
        m = min(_CANDIDATES * per_vector, n_local)
        values, indices = lax.top_k(pre, m)  # [N, m]
        values = jnp.where((values <= 0) | (batch.mask == 0)[:, None], 0.0, values)  # a NaN stays visible
        at = selection.cut_of_all(values, _n_keep(batch, self.k), batch.shard.over_all)
        kept = (batch.mask > 0)[:, None] & ~(values < at)
        entries, missed = backward.listed(values, indices, kept, per_vector, n_local)
        # A minimum over the row: slicing the last column makes XLA:CPU sort whole rows
        missed = missed | (kept.all(axis=1).any() & (m < n_local))
        objective = lambda pre, rest: self.objective(pre, rest, batch)  # noqa: E731
        sums, grads, resid, exact, is_dense = backward.sparse_or_dense(
            params, batch, centred, pre, entries, missed, objective
        )
        return sums, grads, resid, {"cut": jnp.where(is_dense, exact["cut"], at)}


def select(pre: jax.Array, batch: base.Batch, k: int) -> tuple[jax.Array, jax.Array]:
    """(features [N, F], cut) of pre-activations [N, F]; padding rows count for nothing and give 0."""
    positive = batch.mask[:, None] * base.relu(pre)  # [N, F]
    at = selection.cut_of_all(lax.stop_gradient(positive), _n_keep(batch, k), batch.shard.over_all)
    return batch.shard.active(pre, jnp.where(positive < at, 0.0, positive)), at


def _n_keep(batch: base.Batch, k: int):
    return k * batch.shard.over_rows(batch.mask.sum()).astype(jnp.int32)
