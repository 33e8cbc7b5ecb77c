"""What an SAE is trained on, and its gradient by hand.

With x_n the scaled activations, r = x_hat_n - x_n and mean over the real vectors of a batch:

    loss = mean ||r||^2 / C  +  l1 * mean ||f_n||_1 / C  +  aux_alpha * mean ||e - e_hat||^2 / C

The first term is near the fvu, because mean ||x_n||^2 / C = 1 over the train split. Dividing the L1 term
by C too makes `l1` the coefficient of the usual convention (sum over channels, mean ||x||^2 = C). The last
term is AuxK (arXiv 2406.04093): e = x_n - x_hat_n is detached, e_hat is what the k_aux strongest dead
features make of the vector, decoded without b_dec. relu_l1 has no AuxK, topk no L1.

`loss` is the plain, differentiable form. `sums_and_grads` is what training uses: sums over rows instead
of means, so that shards of a batch add up, and a backward pass written out, for two reasons. b_dec sits
before the encoder, and autodiff would pay a whole [N, F] x [F, C] product for its gradient, which is
sum(g) - sum(d_pre) @ w_enc. And with k active features of F, everything behind the encoder's product
touches only k rows a vector; the sparse path gathers and adds those rows in chunks that stay in cache.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae import model, variants

# Rows of a chunk of the sparse path: 64 x k decoder rows stay in a CPU's cache.
_CHUNK_ROWS = 64
# AuxK works on a gathered subset of the dictionary while at most this share of it is dead.
_DEAD_SHARE = 8


def k_aux(n_channels: int, n_features: int) -> int:
    """Dead features that AuxK may use per vector: C / 2 (arXiv 2406.04093, appendix A.2), at most F."""
    return max(1, min(n_channels // 2, n_features))


def loss(sae: model.SAE, x: jax.Array, *, mask=None, l1=0.0, dead=None, aux_alpha=0.0) -> tuple:
    """The training loss of raw activations, differentiable with respect to the SAE.

    Args:
      sae: the SAE.
      x: raw activations [..., C].
      mask: 1 for real vectors and 0 for padding [...]; None: all are real.
      l1: coefficient of the L1 term ("relu_l1").
      dead: features to revive [F] bool ("topk"); None: none.
      aux_alpha: coefficient of AuxK ("topk").

    Returns:
      (loss, {"mse", "l1", "aux"}): the terms before their coefficients, each a mean over real vectors.
    """
    x_n = model.normalise(sae, x.reshape(-1, sae.n_channels))  # [N, C]
    mask = jnp.ones(x_n.shape[0]) if mask is None else mask.reshape(-1)
    params = sae.params
    pre = variants.preactivations(params, x_n, precision="float32")  # [N, F]
    feats = variants.VARIANTS[sae.variant].activate(pre, sae.k)
    decode = functools.partial(jnp.matmul, precision="float32")
    resid = decode(feats, params["w_dec"]) + params["b_dec"][None, :] - x_n
    n = jnp.maximum(mask.sum(), 1.0) * sae.n_channels
    terms = {
        "mse": (mask * (resid**2).sum(-1)).sum() / n,
        "l1": (mask * jnp.abs(feats).sum(-1)).sum() / n,
        "aux": jnp.zeros(()),
    }
    if sae.variant == "relu_l1":
        return terms["mse"] + l1 * terms["l1"], terms
    if dead is not None:
        of_dead = jnp.where(dead[None, :], pre, -jnp.inf)
        revived = variants.keep_top(of_dead, k_aux(sae.n_channels, sae.n_features))
        missed = lax.stop_gradient(-resid) - decode(revived, params["w_dec"])
        terms["aux"] = jnp.where(dead.any(), (mask * (missed**2).sum(-1)).sum() / n, 0.0)
    return terms["mse"] + aux_alpha * terms["aux"], terms


def sums_and_grads(
    params: dict, x_n: jax.Array, mask: jax.Array, dead: jax.Array, l1, *, variant: str, k, aux_alpha, sparse
) -> tuple[dict, dict]:
    """Sums over the rows of one shard, and the gradient of the summed loss.

    Args:
      params: the trainable dict of `SAE.params`.
      x_n: scaled activations [N, C]; padding rows must be finite.
      mask: 1 for real rows, 0 for padding [N].
      dead: features AuxK revives [F] bool.
      l1: coefficient of the L1 term at this step (a traced scalar).
      variant, k, aux_alpha: the SAE's settings, static.
      sparse: take the sparse path ("topk" only), static.

    Returns:
      sums: {"n", "sse", "l1", "l0", "aux", "x_sq": scalars, "x_sum": [C], "fired": [F]}, over real rows,
        none of them divided by anything; "fired" counts the vectors on which each feature is active.
      grads: the gradient of C * N_real * loss / C, that is of the sum over rows of the loss's terms.
    """
    centred = x_n - params["b_dec"][None, :]  # [N, C]
    pre = _product_t(centred, params["w_enc"]) + params["b_enc"][None, :]  # [N, F]
    if variant == "topk" and sparse:
        sums, grads, resid = _topk_sparse(params, x_n, centred, mask, pre, k)
    else:
        sums, grads, resid = _dense(params, x_n, centred, mask, pre, l1, variant, k)
    if variant == "topk" and aux_alpha:
        sums["aux"], aux_grads = _auxk(params, centred, pre, -resid, mask, dead)
        grads = jax.tree.map(lambda a, b: a + aux_alpha * b, grads, aux_grads)
    else:
        sums["aux"] = jnp.zeros(())
    sums |= {
        "n": mask.sum(),
        "x_sq": (mask[:, None] * x_n**2).sum(),
        "x_sum": (mask[:, None] * x_n).sum(0),
    }
    return sums, grads


def _product_t(a, b):
    """a [N, C] times the rows of b [F, C] -> [N, F]."""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())))


def _outer_sum(a, b):
    """Sum over rows of a [N, F] times b [N, C] -> [F, C]."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _dense(params, x_n, centred, mask, pre, l1, variant, k):
    c = x_n.shape[1]
    feats = mask[:, None] * variants.VARIANTS[variant].activate(pre, k)  # [N, F]
    active = feats > 0
    resid = feats @ params["w_dec"] + params["b_dec"][None, :] - x_n
    g = (2.0 / c) * mask[:, None] * resid  # [N, C]
    d_pre = _product_t(g, params["w_dec"])  # [N, F]
    if variant == "relu_l1":
        d_pre = d_pre + l1 / c
    d_pre = jnp.where(active, d_pre, 0.0)
    d_b_enc = d_pre.sum(0)
    grads = {
        "w_enc": _outer_sum(d_pre, centred),
        "b_enc": d_b_enc,
        "w_dec": _outer_sum(feats, g),
        "b_dec": g.sum(0) - d_b_enc @ params["w_enc"],
    }
    sums = {
        "sse": (mask * (resid**2).sum(-1)).sum(),
        "l1": feats.sum(),
        "l0": active.sum(dtype=jnp.float32),
        "fired": active.sum(0, dtype=jnp.int32),
    }
    return sums, grads, resid


def _topk_sparse(params, x_n, centred, mask, pre, k):
    n, c = x_n.shape
    w_enc, w_dec, b_dec = params["w_enc"], params["w_dec"], params["b_dec"]
    values, indices = lax.top_k(pre, k)  # [N, k]
    rows = _CHUNK_ROWS if n % _CHUNK_ROWS == 0 else n

    def chunk(carry, part):
        d_enc, d_dec, d_b_enc, fired, g_sum, sse = carry
        x, xc, m, v, i = part
        on = ~(v <= 0) & (m > 0)[:, None]  # a NaN stays visible
        v = jnp.where(on, v, 0.0)
        picked = w_dec[i]  # [rows, k, C]
        resid = jnp.einsum("nk,nkc->nc", v, picked) + b_dec[None, :] - x
        g = (2.0 / c) * m[:, None] * resid
        d_v = jnp.where(on, jnp.einsum("nc,nkc->nk", g, picked), 0.0)
        flat = i.reshape(-1)
        carry = (
            d_enc.at[flat].add((d_v[:, :, None] * xc[:, None, :]).reshape(-1, c)),
            d_dec.at[flat].add((v[:, :, None] * g[:, None, :]).reshape(-1, c)),
            d_b_enc.at[flat].add(d_v.reshape(-1)),
            fired.at[flat].add(on.reshape(-1).astype(jnp.int32)),
            g_sum + g.sum(0),
            sse + (m * (resid**2).sum(-1)).sum(),
        )
        return carry, (resid, v.sum())

    f = w_enc.shape[0]
    zeros = (
        *(jnp.zeros_like(w_enc), jnp.zeros_like(w_dec), jnp.zeros(f), jnp.zeros(f, jnp.int32)),
        *(jnp.zeros(c), jnp.zeros(())),
    )
    parts = jax.tree.map(
        lambda a: a.reshape(n // rows, rows, *a.shape[1:]), (x_n, centred, mask, values, indices)
    )
    (d_enc, d_dec, d_b_enc, fired, g_sum, sse), (resid, l1) = lax.scan(chunk, zeros, parts)
    grads = {"w_enc": d_enc, "b_enc": d_b_enc, "w_dec": d_dec, "b_dec": g_sum - d_b_enc @ w_enc}
    sums = {"sse": sse, "l1": l1.sum(), "l0": fired.sum().astype(jnp.float32), "fired": fired}
    return sums, grads, resid.reshape(n, c)


def _auxk(params, centred, pre, error, mask, dead):
    """Sum over rows of ||error - e_hat||^2 / C and its gradient; zeros, never NaN, if none is dead."""
    n_features, c = params["w_dec"].shape
    n_subset = max(1, n_features // _DEAD_SHARE)
    keep = k_aux(c, n_features)

    def grads_of(w_enc, w_dec, pre_dead):
        few = pre_dead.shape[1] <= keep
        feats = jax.nn.relu(pre_dead) if few else variants.keep_top(pre_dead, keep)
        missed = feats @ w_dec - error  # [N, C]
        g = (2.0 / c) * mask[:, None] * missed
        d_pre = jnp.where(feats > 0, _product_t(g, w_dec), 0.0)
        d_b_enc = d_pre.sum(0)
        grads = {
            "w_enc": _outer_sum(d_pre, centred),
            "b_enc": d_b_enc,
            "w_dec": _outer_sum(feats, g),
            "b_dec": -(d_b_enc @ w_enc),
        }
        return (mask * (missed**2).sum(-1)).sum() / c, grads

    def none():
        return jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)

    def some():
        chosen = jnp.nonzero(dead, size=n_subset, fill_value=n_features)[0]  # F marks an unused slot
        take = lambda a: a.at[chosen].get(mode="fill", fill_value=0)  # noqa: E731
        w_enc = take(params["w_enc"])
        pre_dead = _product_t(centred, w_enc) + take(params["b_enc"])[None, :]  # 0 where unused
        value, grads = grads_of(w_enc, take(params["w_dec"]), pre_dead)
        put = lambda a, b: jnp.zeros_like(a).at[chosen].set(b, mode="drop")  # noqa: E731
        return value, {
            name: grads[name] if name == "b_dec" else put(params[name], grads[name]) for name in params
        }

    def many():
        return grads_of(params["w_enc"], params["w_dec"], jnp.where(dead[None, :], pre, -jnp.inf))

    n_dead = dead.sum()
    return lax.switch((n_dead > 0).astype(jnp.int32) + (n_dead > n_subset), [none, some, many])
