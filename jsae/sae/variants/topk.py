"""TopK (arXiv 2406.04093): f_n = relu(pre) on the k largest pre-activations of each vector, 0 elsewhere.

Ties at the k-th value go to the lower feature index, so at most k features are active: exactly k, unless
fewer than k pre-activations are positive. Trained on the squared error with AuxK beside (jsae.sae.auxk).

With k active features of F, everything behind the encoder's product touches only k rows a vector; the
sparse path gathers and adds those rows in chunks that stay in cache.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae.variants import base, gathered
from jsae.sae.variants.shard import WHOLE, Shard

# Rows of a chunk of the sparse path: 64 x k decoder rows stay in a CPU's cache.
_CHUNK_ROWS = 64


def keep_top(pre: jax.Array, k: int, shard: Shard = WHOLE) -> jax.Array:
    """relu(pre) [N, F] on the k largest entries of each row, 0 elsewhere; a NaN stays visible.

    With F dealt over devices, the k largest of all of them: each device offers its own k largest values.
    """
    values, indices = shard.top_k(lax.stop_gradient(pre), min(k, pre.shape[1]))  # [N, k], ties by index
    kept = _chosen(values, k, shard)
    # Reductions, not values[:, -1:]: XLA:CPU folds that slice into the top_k and sorts whole rows, 18x slower
    threshold = jnp.where(kept, values, jnp.inf).min(axis=-1, keepdims=True)  # [N, 1]
    last = jnp.where(kept & (values == threshold), indices, -1).max(axis=-1, keepdims=True)
    column = lax.broadcasted_iota(jnp.int32, pre.shape, 1)
    dropped = (pre < threshold) | ((pre == threshold) & (column > last))
    return jnp.where(dropped, 0.0, base.relu(pre))


def _chosen(values, k: int, shard: Shard):
    """Which of this device's largest values of each row, falling [N, m], are among the k largest of all."""
    if shard.n_model == 1:
        return jnp.ones(values.shape, bool)
    everyone = shard.candidates(values)  # [N, n_model * m]
    top, places = shard.top_k(everyone, k)
    threshold = top.min(axis=-1, keepdims=True)
    last = jnp.where(top == threshold, places, -1).max(axis=-1, keepdims=True)
    place = shard.index() * values.shape[1] + lax.broadcasted_iota(jnp.int32, values.shape, 1)
    return ~((values < threshold) | ((values == threshold) & (place > last)))


def _activate(pre, arrays, k, shard):
    return keep_top(pre, k, shard)


def _objective(pre, params, batch: base.Batch, terms: base.Terms, k):
    feats = batch.mask[:, None] * keep_top(pre, k, batch.shard)  # [N, F]
    mse, resid = base.reconstruct(feats, params, batch)
    return mse, base.Parts(feats, resid)


def _sparse(params, batch: base.Batch, centred, pre, k):
    if batch.shard.n_model > 1:
        return _sparse_over_features(params, batch, centred, pre, k)
    x_n, mask = batch.x_n, batch.mask
    n, c = x_n.shape
    w_enc, w_dec, b_dec = params["w_enc"], params["w_dec"], params["b_dec"]
    values, indices = batch.shard.top_k(pre, k)  # [N, k]
    rows = _CHUNK_ROWS if n % _CHUNK_ROWS == 0 else n

    def look(g_sum, part):
        x, m, v, i = part
        on = ~(v <= 0) & (m > 0)[:, None]  # a NaN stays visible
        v = jnp.where(on, v, 0.0)
        picked = w_dec[i]  # [rows, k, C]
        resid = jnp.einsum("nk,nkc->nc", v, picked) + b_dec[None, :] - x
        g = (2.0 / c) * m[:, None] * resid
        d_v = jnp.where(on, jnp.einsum("nc,nkc->nk", g, picked), 0.0)
        return g_sum + g.sum(0), (resid, g, v, d_v, on)

    def add_rows(total, part):
        i, weight, row = part
        return total.at[i.reshape(-1)].add((weight[:, :, None] * row[:, None, :]).reshape(-1, c)), None

    x, xc, m, v, i = (a.reshape(n // rows, rows, *a.shape[1:]) for a in (x_n, centred, mask, values, indices))
    g_sum, (resid, g, v, d_v, on) = lax.scan(look, jnp.zeros(c), (x, m, v, i))
    # Two scans that need nothing of each other: XLA:CPU runs them at the same time, a third off both
    d_enc, _ = lax.scan(add_rows, jnp.zeros_like(w_enc), (i, d_v, xc))
    d_dec, _ = lax.scan(add_rows, jnp.zeros_like(w_dec), (i, v, g))
    n_features, flat = len(w_enc), indices.reshape(-1)
    d_b_enc = jnp.zeros(n_features).at[flat].add(d_v.reshape(-1))
    fired = jnp.zeros(n_features, jnp.int32).at[flat].add(on.reshape(-1).astype(jnp.int32))
    grads = {"w_enc": d_enc, "b_enc": d_b_enc, "w_dec": d_dec, "b_dec": g_sum - d_b_enc @ w_enc}
    resid = resid.reshape(n, c)
    sums = {"sse": (mask * (resid**2).sum(-1)).sum(), "penalty": jnp.zeros(()), "aux": jnp.zeros(())}
    sums |= {"l1": v.sum(), "l0": fired.sum().astype(jnp.float32), "fired": fired}
    return sums, grads, resid, {}


def _sparse_over_features(params, batch: base.Batch, centred, pre, k):
    values, indices = batch.shard.top_k(pre, min(k, pre.shape[1]))  # [N, m]
    kept = _chosen(values, k, batch.shard) & ~(values <= 0) & (batch.mask > 0)[:, None]

    def exact():
        return batch.mask[:, None] * keep_top(pre, k, batch.shard), jnp.zeros(())

    missed = jnp.zeros((), bool)
    found = gathered.sums_and_grads(params, batch, centred, pre, values, indices, kept, k, missed, exact)
    return *found[:3], {}


VARIANT = base.Variant(activate=_activate, objective=_objective, sparse=_sparse, has_k=True, has_auxk=True)
