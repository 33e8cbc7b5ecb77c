"""BatchTopK (arXiv 2412.06410): the k * N largest positive pre-activations of a whole batch are kept.

In training the cut is the (k * N)-th largest value over the N real vectors of the batch, on all devices
together; values equal to it stay in. It is found by counting: bisection over the bits of a float32, whose
order is that of the values, 31 counts instead of a sort of N * F numbers.

At inference a vector must not depend on its neighbours, so a feature is active where its pre-activation
is above `threshold`, a running mean of the cuts in float32. With t steps taken before, its decay is
min(threshold_decay, (1 + t) / (10 + t)), so the first batches do not weigh for long. AuxK as in TopK.
"""

import jax.numpy as jnp
from jax import lax

from jsae.sae.variants import base, gathered

_INFINITY_BITS = 0x7F800000
_CANDIDATES = 4  # times k, of each vector


def cut(values, n_keep, total=lambda value: value):
    """The n_keep-th largest of the positive `values` over all shards, by counting.

    Args:
      values: float32, any shape; a NaN counts as larger than all numbers.
      n_keep: how many to keep, a traced integer; if fewer values are positive, the smallest of them is
        the cut.
      total: adds a count up over the shards.

    Returns:
      The cut, a scalar; infinity where no value is positive. Counts are int32.
    """
    bits = lax.bitcast_convert_type(values, jnp.int32)

    def count(at_least):
        # More than n_keep says no more than n_keep + 1 does, and the sum over many devices stays an int32
        return total(jnp.minimum((bits >= at_least).sum(dtype=jnp.int32), jnp.int32(n_keep) + 1))

    wanted = jnp.minimum(jnp.int32(n_keep), count(jnp.int32(1)))

    def halve(_, ends):
        low, high = ends  # count(low) >= wanted > count(high)
        middle = low + (high - low) // 2
        enough = count(middle) >= wanted
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    start = (jnp.int32(1), jnp.int32(_INFINITY_BITS + 1))
    low, _ = lax.fori_loop(0, 31, halve, start)
    return jnp.where(wanted > 0, lax.bitcast_convert_type(low, jnp.float32), jnp.inf)


def select(pre, batch: base.Batch, k: int) -> tuple:
    """(features [N, F], cut) of pre-activations [N, F]; padding rows count for nothing and give 0."""
    positive = batch.mask[:, None] * base.relu(pre)  # [N, F]
    at = cut(lax.stop_gradient(positive), _n_keep(batch, k), batch.shard.everywhere)
    return jnp.where(positive < at, 0.0, positive), at


def _n_keep(batch: base.Batch, k: int):
    return k * batch.shard.over_rows(batch.mask.sum()).astype(jnp.int32)


def activate(pre, arrays, k, shard):
    """relu(pre) above the learned threshold."""
    return base.above(pre, arrays["threshold"])


def own(n_features):
    """The learned threshold, a scalar; 0 before the first step."""
    return {"threshold": jnp.zeros((), jnp.float32)}


def follow(own, seen, terms: base.Terms, t):
    """The threshold after a step whose batch was cut at seen["cut"]; without features it stays."""
    t = t.astype(jnp.float32)
    decay = jnp.minimum(terms.threshold_decay, jnp.where(t == 0, 0.0, (1 + t) / (10 + t)))
    moved = decay * own["threshold"] + (1 - decay) * seen["cut"]
    return {"threshold": jnp.where(jnp.isinf(seen["cut"]), own["threshold"], moved)}


def _objective(pre, params, batch: base.Batch, terms: base.Terms, k):
    feats, at = select(pre, batch, k)
    mse, resid = base.reconstruct(feats, params, batch)
    return mse, base.Parts(feats, resid, seen={"cut": at})


def _sparse(params, batch: base.Batch, centred, pre, k):
    """The cut is counted over some candidates of each vector instead of all F.

    That is exact unless some vector keeps all of its candidates; then the step is done densely.
    """
    n_local, n_model = pre.shape[1], batch.shard.n_model
    m = min(_CANDIDATES * gathered.room(k, n_model, n_local), n_local)
    values, indices = batch.shard.top_k(pre, m)  # [N, m]
    values = jnp.where((values <= 0) | (batch.mask == 0)[:, None], 0.0, values)  # a NaN stays visible
    at = cut(values, _n_keep(batch, k), batch.shard.everywhere)
    kept = (batch.mask > 0)[:, None] & ~(values < at)
    # A minimum over the row: slicing the last column makes XLA:CPU sort whole rows
    missed = kept.all(axis=1).any() & (m < n_local)
    sums, grads, resid, exact, dense = gathered.sums_and_grads(
        *(params, batch, centred, pre, values, indices, kept, k, missed), lambda: select(pre, batch, k)
    )
    return sums, grads, resid, {"cut": jnp.where(dense, exact, at)}


VARIANT = base.Variant(
    activate=activate,
    objective=_objective,
    own=own,
    follow=follow,
    sparse=_sparse,
    has_k=True,
    has_auxk=True,
)
