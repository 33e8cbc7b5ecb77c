"""The step behind the encoder's product on gathered rows: it touches the kept features, not N * F.

What a variant keeps is a mask over a few candidates of each vector. The kept entries become a flat list of
(vector, feature, value) that two scans walk through in chunks: one adds up the reconstructions, one the
gradients. Where the features are dealt over devices, each device lists those of its own and reconstructions
are summed; a list has room for more than its even share, and if one device's entries do not fit the step
is done densely on all.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae.variants import base

_CHUNK_ROWS = 64  # times k entries of a chunk, whose decoder rows stay in a CPU's cache


def room(k: int, n_model: int, n_local: int) -> int:
    """Entries a vector that one device's list has room for: k, or twice the even share of n_model devices."""
    return min(k, n_local) if n_model == 1 else min(k, n_local, -(-2 * k // n_model))


def _n_chunks(n_rows: int) -> int:
    return n_rows // _CHUNK_ROWS if n_rows % _CHUNK_ROWS == 0 else 1


def sums_and_grads(params, batch: base.Batch, centred, pre, values, indices, kept, k: int, missed, exact):
    """Sums and gradients of the kept candidates, densely if they do not fit.

    Args:
      params, batch, centred, pre: as `base.Variant.sparse`.
      values, indices: candidates of each vector and which features of this device they are [N, m].
      kept: which of them are active [N, m].
      k: active features of a vector on average.
      missed: True where something beyond the candidates may be active, a scalar of this device.
      exact: () -> (features [N, F], extra) for the dense way.

    Returns:
      (sums, grads, x_hat_n - x_n [N, C], extra, whether the dense way was taken); without it extra is 0.
    """
    # One more in each chunk, for values that tie at a cut: one tie would send the whole step the dense way
    n_entries = len(values) * room(k, batch.shard.n_model, pre.shape[1]) + _n_chunks(len(values))
    missed = missed | (kept.sum() > n_entries)

    def dense():
        feats, extra = exact()
        return *_dense(params, batch, centred, feats), extra

    def few():
        found = _gathered(params, batch, centred, values, indices, kept, n_entries)
        return *found, jax.tree.map(jnp.zeros_like, jax.eval_shape(lambda: exact()[1]))

    anywhere = batch.shard.everywhere(missed.astype(jnp.int32)) > 0  # all shards take the same branch
    sums, grads, resid, extra = lax.cond(anywhere, dense, few)
    return sums | {"penalty": jnp.zeros(()), "aux": jnp.zeros(())}, grads, resid, extra, anywhere


def _dense(params, batch: base.Batch, centred, feats):
    shard = batch.shard
    _, resid = base.reconstruct(feats, params, batch)
    g = (2.0 / centred.shape[1]) * batch.mask[:, None] * resid  # [N, C]
    active = feats != 0
    d_pre = jnp.where(active, shard.product_t(g, params["w_dec"]), 0.0)  # [N, F]
    d_b_enc = d_pre.sum(0)
    grads = {
        "w_enc": shard.outer_sum(d_pre, centred),
        "b_enc": d_b_enc,
        "w_dec": shard.outer_sum(feats, g),
        "b_dec": g.sum(0) - shard.over_features(d_b_enc @ params["w_enc"]),
    }
    return _sums(resid, batch, feats.sum(), active.sum(0, dtype=jnp.int32)), grads, resid


def _gathered(params, batch: base.Batch, centred, values, indices, kept, n_entries: int):
    (n, m), c, (n_features, _) = values.shape, centred.shape[1], params["w_dec"].shape
    place = jnp.nonzero(kept.reshape(-1), size=n_entries, fill_value=n * m)[0]
    used = place < n * m
    at = jnp.minimum(place, n * m - 1)
    entries = (
        jnp.where(used, at // m, n),  # n and F mark an unused entry: reads give 0, writes are dropped
        jnp.where(used, indices.reshape(-1)[at], n_features),
        jnp.where(used, values.reshape(-1)[at], 0.0),
    )
    entries = jax.tree.map(lambda a: a.reshape(_n_chunks(n), -1), entries)

    def read(rows, i):
        return rows.at[i].get(mode="fill", fill_value=0)

    def add_up(x_hat, entry):
        row, feature, value = entry
        return x_hat.at[row].add(value[:, None] * read(params["w_dec"], feature), mode="drop"), None

    x_hat, _ = lax.scan(add_up, jnp.zeros_like(centred), entries)
    resid = batch.shard.over_features(x_hat) + params["b_dec"][None, :] - batch.x_n
    g = (2.0 / c) * batch.mask[:, None] * resid  # [N, C]

    def gradient_of_values(_, entry):
        row, feature, _ = entry
        return None, (read(g, row) * read(params["w_dec"], feature)).sum(-1)

    def add_rows_of(rows):
        def add_rows(total, part):
            row, feature, weight = part
            return total.at[feature].add(weight[:, None] * read(rows, row), mode="drop"), None

        return add_rows

    row, feature, value = entries
    _, d_value = lax.scan(gradient_of_values, None, entries)
    # Two scans that need nothing of each other: XLA:CPU runs them at the same time
    d_enc, _ = lax.scan(add_rows_of(centred), jnp.zeros_like(params["w_enc"]), (row, feature, d_value))
    d_dec, _ = lax.scan(add_rows_of(g), jnp.zeros_like(params["w_dec"]), entries)
    flat = feature.reshape(-1)
    d_b_enc = jnp.zeros(n_features).at[flat].add(d_value.reshape(-1), mode="drop")
    fired = jnp.zeros(n_features, jnp.int32).at[flat].add(1, mode="drop")
    grads = {"w_enc": d_enc, "b_enc": d_b_enc, "w_dec": d_dec}
    grads["b_dec"] = g.sum(0) - batch.shard.over_features(d_b_enc @ params["w_enc"])
    return _sums(resid, batch, value.sum(), fired), grads, resid


def _sums(resid, batch: base.Batch, l1, fired):
    return {
        "sse": (batch.mask * (resid**2).sum(-1)).sum(),
        "l1": batch.shard.over_features(l1),
        "l0": batch.shard.over_features(fired.sum()).astype(jnp.float32),
        "fired": fired,
    }
