"""BatchTopK's step on gathered rows: behind the encoder's product it touches k * N features, not N * F.

The cut is counted over the 4 k largest values of each vector instead of all F. That is exact unless some
vector keeps all of its 4 k; then, or where one shard keeps more than its k * N entries, the step is done
densely. The kept entries are a flat list of (vector, feature, value) that two scans walk through in
chunks: one adds up the reconstructions, one the gradients.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae.variants import base

_CANDIDATES = 4  # times k, of each vector
_CHUNK_ROWS = 64  # times k entries of a chunk, whose decoder rows stay in a CPU's cache


def sums_and_grads(cut, params, batch: base.Batch, centred, pre, k) -> tuple:
    """What `base.Variant.sparse` returns, with `cut` from jsae.sae.variants.batch_topk."""
    n, n_features = pre.shape
    m = min(_CANDIDATES * k, n_features)
    values, indices = lax.top_k(pre, m)  # [N, m]
    values = jnp.where((values <= 0) | (batch.mask == 0)[:, None], 0.0, values)  # a NaN stays visible
    n_keep = k * batch.total(batch.mask.sum()).astype(jnp.int32)
    at = cut(values, n_keep, batch.total)
    kept = (batch.mask > 0)[:, None] & ~(values < at)
    # A minimum over the row: slicing the last column makes XLA:CPU sort whole rows
    missed = (kept.all(axis=1).any() & (m < n_features)) | (kept.sum() > n * k)

    def dense():
        positive = batch.mask[:, None] * base.relu(pre)
        exact = cut(positive, n_keep, batch.total)
        return _dense(params, batch, centred, jnp.where(positive < exact, 0.0, positive)), exact

    def gathered():
        return _gathered(params, batch, centred, values, indices, kept, n * k), at

    anywhere = batch.total(missed.astype(jnp.int32)) > 0  # all shards take the same branch
    (sums, grads, resid), exact = lax.cond(anywhere, dense, gathered)
    sums |= {"penalty": jnp.zeros(()), "aux": jnp.zeros(())}
    return sums, grads, resid, {"cut": exact}


def _dense(params, batch: base.Batch, centred, feats):
    _, resid = base.reconstruct(feats, params, batch)
    g = (2.0 / centred.shape[1]) * batch.mask[:, None] * resid  # [N, C]
    active = feats != 0
    d_pre = jnp.where(active, base.product_t(g, params["w_dec"]), 0.0)  # [N, F]
    d_b_enc = d_pre.sum(0)
    grads = {
        "w_enc": base.outer_sum(d_pre, centred),
        "b_enc": d_b_enc,
        "w_dec": base.outer_sum(feats, g),
        "b_dec": g.sum(0) - d_b_enc @ params["w_enc"],
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
    n_chunks = n // _CHUNK_ROWS if n % _CHUNK_ROWS == 0 else 1
    entries = jax.tree.map(lambda a: a.reshape(n_chunks, -1), entries)

    def read(rows, i):
        return rows.at[i].get(mode="fill", fill_value=0)

    def add_up(x_hat, entry):
        row, feature, value = entry
        return x_hat.at[row].add(value[:, None] * read(params["w_dec"], feature), mode="drop"), None

    x_hat, _ = lax.scan(add_up, jnp.zeros_like(centred), entries)
    resid = x_hat + params["b_dec"][None, :] - batch.x_n
    g = (2.0 / c) * batch.mask[:, None] * resid  # [N, C]

    def add_gradients(carry, entry):
        d_enc, d_dec, d_b_enc, fired = carry
        row, feature, value = entry
        g_row = read(g, row)  # [entries, C]
        d_value = (g_row * read(params["w_dec"], feature)).sum(-1)
        return (
            d_enc.at[feature].add(d_value[:, None] * read(centred, row), mode="drop"),
            d_dec.at[feature].add(value[:, None] * g_row, mode="drop"),
            d_b_enc.at[feature].add(d_value, mode="drop"),
            fired.at[feature].add(1, mode="drop"),
        ), None

    zeros = (jnp.zeros_like(params["w_enc"]), jnp.zeros_like(params["w_dec"]))
    zeros += (jnp.zeros(n_features), jnp.zeros(n_features, jnp.int32))
    (d_enc, d_dec, d_b_enc, fired), _ = lax.scan(add_gradients, zeros, entries)
    grads = {"w_enc": d_enc, "b_enc": d_b_enc, "w_dec": d_dec}
    grads["b_dec"] = g.sum(0) - d_b_enc @ params["w_enc"]
    return _sums(resid, batch, entries[2].sum(), fired), grads, resid


def _sums(resid, batch: base.Batch, l1, fired):
    return {
        "sse": (batch.mask * (resid**2).sum(-1)).sum(),
        "l1": l1,
        "l0": fired.sum().astype(jnp.float32),
        "fired": fired,
    }
