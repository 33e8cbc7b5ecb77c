"""The two backward passes: dense on [N, F], and sparse on the few entries that are active.

`dense` differentiates an objective with respect to the pre-activations and does the encoder's part by hand:
b_dec sits before the encoder, and autodiff would pay a whole [N, F] x [F, C] product for its gradient, which
is sum(g) - sum(d_pre) @ w_enc.

`sparse` touches k rows of the dictionary per vector. The entries (vector, feature, value) come in chunks
whose rows stay in a CPU's cache: either k for each vector (`by_vector`), or as a list of those that a mask
keeps among a few candidates of each vector (`listed`). With a list, features may also be dealt over devices:
each lists those that it holds, and reconstructions are summed.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae.variants import base
from jsae.sae.variants.shard import Shard

_CHUNK_VECTORS = 64  # times k entries in a chunk


def dense(
    params: dict, centred: jax.Array, pre: jax.Array, objective: Callable, shard: Shard
) -> tuple[jax.Array, base.Parts, dict]:
    """(value, parts, gradients by name) of objective(pre, params without w_enc) -> (value, parts).

    Args:
      params: the trainable dict, for the features of this device.
      centred: x_n - b_dec [N, C].
      pre: pre-activations [N, F].
      objective: differentiable; its parts are handed through.
      shard: which rows and features are on this device.
    """
    rest = {name: value for name, value in params.items() if name != "w_enc"}
    (value, parts), (d_pre, grads) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(pre, rest)
    d_pre = shard.short(d_pre)
    d_b_enc = d_pre.sum(0)
    grads["w_enc"] = shard.outer_sum(d_pre, centred)
    grads["b_enc"] = grads["b_enc"] + d_b_enc
    grads["b_dec"] = grads["b_dec"] - shard.over_features(d_b_enc @ params["w_enc"])
    return value, parts, grads


def of_objective(
    params: dict, batch: base.Batch, centred: jax.Array, pre: jax.Array, objective: Callable
) -> tuple[dict, dict, jax.Array, dict]:
    """(sums, gradients, x_n - x_hat_n [N, C], batch_stats) of a variant's objective, densely."""
    value, parts, grads = dense(params, centred, pre, objective, batch.shard)
    # By feature first: each further sum over [N, F] would be one more pass over it
    by_feature, fired = batch.shard.by_feature(parts.feats), batch.shard.fired(parts.feats)
    sums = _sums(parts.resid, batch, by_feature.sum(), fired)
    sums |= {name: jnp.asarray(getattr(parts, name), jnp.float32) for name in ("penalty", "aux")}
    return sums | {"loss": value}, grads, parts.resid, parts.batch_stats


@dataclasses.dataclass(frozen=True)
class Entries:
    """The active entries of a batch, in chunks.

    Attributes:
      feature: of this device's features, F marks an unused entry [chunks, m].
      value: features in scaled units, 0 where the entry counts for nothing [chunks, m].
      vector: which vector of the batch, N marks an unused entry [chunks, m]; None: m entries of a chunk are
        those of as many vectors after each other, the same number for each.
    """

    feature: jax.Array
    value: jax.Array
    vector: jax.Array | None = None


def by_vector(values: jax.Array, indices: jax.Array, kept: jax.Array) -> Entries:
    """k entries for each vector [N, k]; those that are not kept count for nothing."""
    chunks = _n_chunks(len(values))
    return Entries(indices.reshape(chunks, -1), jnp.where(kept, values, 0.0).reshape(chunks, -1))


def room(k: int, n_model: int, n_local: int) -> int:
    """Entries per vector that one device has room for: k, or twice the even share of n_model devices."""
    return min(k, n_local) if n_model == 1 else min(k, n_local, -(-2 * k // n_model))


def listed(values: jax.Array, indices: jax.Array, kept: jax.Array, per_vector: int, n_features: int) -> tuple:
    """(entries, whether some did not fit) of the kept candidates [N, m], `per_vector` on average."""
    n, m = values.shape
    # One more in each chunk, for values that tie at a cut: one tie would send the whole step the dense way
    n_entries = n * per_vector + _n_chunks(n)
    place = jnp.nonzero(kept.reshape(-1), size=n_entries, fill_value=n * m)[0]
    used, at = place < n * m, jnp.minimum(place, n * m - 1)
    entries = Entries(
        feature=jnp.where(used, indices.reshape(-1)[at], n_features),
        value=jnp.where(used, values.reshape(-1)[at], 0.0),
        vector=jnp.where(used, at // m, n),
    )
    chunked = {name: array.reshape(_n_chunks(n), -1) for name, array in vars(entries).items()}
    return Entries(**chunked), kept.sum() > n_entries


def _n_chunks(n_vectors: int) -> int:
    return n_vectors // _CHUNK_VECTORS if n_vectors % _CHUNK_VECTORS == 0 else 1


def sparse(params: dict, batch: base.Batch, centred: jax.Array, entries: Entries) -> tuple:
    """(sums, gradients, x_n - x_hat_n [N, C]) of the squared error of the entries' reconstructions."""
    through = _through_vectors if entries.vector is None else _through_list
    resid, g, g_sum, d_value = through(params, batch, entries)
    # Two scans that need nothing of each other: XLA:CPU runs them at the same time, a third off both
    d_enc = _add_rows(params["w_enc"], entries, d_value, centred)
    d_dec = _add_rows(params["w_dec"], entries, entries.value, g)
    n_features, flat = len(d_enc), entries.feature.reshape(-1)
    on = (entries.value != 0).reshape(-1)
    d_b_enc = jnp.zeros(n_features).at[flat].add(d_value.reshape(-1), mode="drop")
    fired = jnp.zeros(n_features, jnp.int32).at[flat].add(on.astype(jnp.int32), mode="drop")
    grads = {"w_enc": d_enc, "b_enc": d_b_enc, "w_dec": d_dec}
    grads["b_dec"] = g_sum - batch.shard.over_features(d_b_enc @ params["w_enc"])
    sums = _sums(resid, batch, entries.value.sum(), fired)
    sums |= {"penalty": jnp.zeros(()), "aux": jnp.zeros(()), "loss": sums["sse"] / centred.shape[1]}
    return sums, grads, resid


def _through_vectors(params, batch: base.Batch, entries: Entries):
    """(resid, gradient of x_hat and its sum, gradient of values), each chunk's decoder rows read once."""
    (n, c), chunks = batch.x_n.shape, len(entries.value)
    rows, w_dec, b_dec = n // chunks, params["w_dec"], params["b_dec"]

    def one(g_sum, part):
        x, mask, feature, value = part
        picked, value = w_dec[feature].reshape(rows, -1, c), value.reshape(rows, -1)  # [rows, k, C]
        resid = x - (jnp.einsum("nk,nkc->nc", value, picked) + b_dec[None, :])
        g = (-2.0 / c) * mask[:, None] * resid
        d_value = jnp.where(value != 0, jnp.einsum("nc,nkc->nk", g, picked), 0.0)
        return g_sum + g.sum(0), (resid, g, d_value.reshape(-1))

    x, mask = batch.x_n.reshape(chunks, rows, c), batch.mask.reshape(chunks, rows)
    chunked = x, mask, entries.feature, entries.value
    g_sum, (resid, g, d_value) = lax.scan(one, jnp.zeros(c), chunked)
    return resid.reshape(n, c), g.reshape(n, c), g_sum, d_value


def _through_list(params, batch: base.Batch, entries: Entries):
    """The same for entries of any vectors, whose reconstructions may lie on several devices."""
    w_dec, parts = params["w_dec"], (entries.vector, entries.feature, entries.value)

    def add_up(x_hat, part):
        vector, feature, value = part
        return x_hat.at[vector].add(value[:, None] * _read(w_dec, feature), mode="drop"), None

    x_hat, _ = lax.scan(add_up, jnp.zeros_like(batch.x_n), parts)
    resid = batch.x_n - (batch.shard.over_features(x_hat) + params["b_dec"][None, :])
    g = (-2.0 / resid.shape[1]) * batch.mask[:, None] * resid  # [N, C]

    def gradient_of_values(_, part):
        vector, feature, _ = part
        return None, (_read(g, vector) * _read(w_dec, feature)).sum(-1)

    return resid, g, g.sum(0), lax.scan(gradient_of_values, None, parts)[1]


def _add_rows(like, entries: Entries, weight, rows):
    """Sum over entries of weight * rows[vector], by feature [F, C]."""
    chunks, m = weight.shape
    if entries.vector is None:
        source = rows.reshape(chunks, -1, rows.shape[1])
        of_entries = lambda part: jnp.repeat(part, m // len(part), axis=0)  # noqa: E731
    else:
        source, of_entries = entries.vector, lambda vector: _read(rows, vector)

    def add(total, part):
        feature, weight, from_ = part
        return total.at[feature].add(weight[:, None] * of_entries(from_), mode="drop"), None

    return lax.scan(add, jnp.zeros_like(like), (entries.feature, weight, source))[0]


def _read(rows, i):
    return rows.at[i].get(mode="fill", fill_value=0)


def _sums(resid, batch: base.Batch, l1, fired) -> dict:
    return {
        "sse": (batch.mask * (resid**2).sum(-1)).sum(),
        "l1": batch.shard.over_features(l1),
        "l0": batch.shard.over_features(fired.sum()).astype(jnp.float32),
        "fired": fired,
    }


def sparse_or_dense(
    params: dict,
    batch: base.Batch,
    centred: jax.Array,
    pre: jax.Array,
    entries: Entries,
    missed: jax.Array,
    objective: Callable,
) -> tuple:
    """`sparse` of the entries, or `of_objective` where a device says that the entries are not all.

    Args:
      missed: True where something beyond the entries may be active, a scalar of this device.
      objective: the variant's, of the dense way.

    Returns:
      (sums, gradients, x_n - x_hat_n [N, C], batch_stats, whether the dense way was taken); the batch_stats
      are zeros where it was not.
    """

    def in_full():
        return of_objective(params, batch, centred, pre, objective)

    def few():
        stats = jax.eval_shape(in_full)[3]
        return *sparse(params, batch, centred, entries), jax.tree.map(jnp.zeros_like, stats)

    is_dense = batch.shard.over_all(missed.astype(jnp.int32)) > 0  # all shards take the same branch
    return *lax.cond(is_dense, in_full, few), is_dense
