"""AuxK (arXiv 2406.04093, appendix A.2): dead features are taught to explain what the living ones miss.

    aux = mean ||e - e_hat||^2 / C,    e = x_n - x_hat_n detached,    e_hat = f_dead @ w_dec

f_dead are the k_aux largest positive pre-activations among the dead features, and e_hat has no b_dec: the
bias belongs to the reconstruction. The coefficient `aux_alpha` is applied once, by the caller. Written with
its gradient by hand, for a subset of the dictionary: while few features are dead, only their rows are
touched, and while none is, nothing is computed.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae.variants.shard import WHOLE, Shard
from jsae.sae.variants.topk import keep_top

# AuxK works on a gathered subset of the dictionary while at most this share of it is dead.
_DEAD_SHARE = 8
SHARED = ("w_enc", "b_enc", "w_dec", "b_dec")


def k_aux(n_channels: int, n_features: int) -> int:
    """Dead features that AuxK may use per vector: C / 2 (arXiv 2406.04093, appendix A.2), at most F."""
    return max(1, min(n_channels // 2, n_features))


def plain(pre, w_dec, error, mask, dead):
    """Sum over real rows of ||error - e_hat||^2 / C, dense and differentiable; 0 if none is dead."""
    n_features, c = w_dec.shape
    feats = keep_top(jnp.where(dead[None, :], pre, -jnp.inf), k_aux(c, n_features))
    missed = lax.stop_gradient(error) - feats @ w_dec
    return jnp.where(dead.any(), (mask * (missed**2).sum(-1)).sum() / c, 0.0)


def value_and_grads(params, centred, pre, error, mask, dead, shard: Shard = WHOLE) -> tuple:
    """`plain` and its gradient for w_enc, b_enc, w_dec and b_dec.

    With F dealt over devices, params, pre and dead are those of this device's features.

    Args:
      params: the trainable dict.
      centred: x_n - b_dec [N, C].
      pre: pre-activations [N, F].
      error: x_n - x_hat_n [N, C], taken as a constant.
      mask: 1 for real rows [N].
      dead: features to revive [F] bool.
      shard: which rows and features are on this device.
    """
    n_features, c = params["w_dec"].shape
    n_subset = max(1, n_features // _DEAD_SHARE)
    keep = k_aux(c, n_features * shard.n_model)

    def grads_of(w_enc, w_dec, pre_dead):
        few = pre_dead.shape[1] * shard.n_model <= keep
        feats = jax.nn.relu(pre_dead) if few else keep_top(pre_dead, keep, shard)
        missed = shard.over_features(shard.product(feats, w_dec)) - error  # [N, C]
        g = (2.0 / c) * mask[:, None] * missed
        d_pre = jnp.where(feats > 0, shard.product_t(g, w_dec), 0.0)
        d_b_enc = d_pre.sum(0)
        grads = {
            "w_enc": shard.outer_sum(d_pre, centred),
            "b_enc": d_b_enc,
            "w_dec": shard.outer_sum(feats, g),
            "b_dec": -shard.over_features(d_b_enc @ w_enc),
        }
        return (mask * (missed**2).sum(-1)).sum() / c, grads

    def none():
        return jnp.zeros(()), {name: jnp.zeros_like(params[name]) for name in SHARED}

    def some():
        chosen = jnp.nonzero(dead, size=n_subset, fill_value=n_features)[0]  # F marks an unused slot
        take = lambda a: a.at[chosen].get(mode="fill", fill_value=0)  # noqa: E731
        w_enc = take(params["w_enc"])
        pre_dead = shard.product_t(centred, w_enc) + take(params["b_enc"])[None, :]  # 0 where unused
        value, grads = grads_of(w_enc, take(params["w_dec"]), pre_dead)
        put = lambda a, b: jnp.zeros_like(a).at[chosen].set(b, mode="drop")  # noqa: E731
        return value, {
            name: grads[name] if name == "b_dec" else put(params[name], grads[name]) for name in SHARED
        }

    def many():
        return grads_of(params["w_enc"], params["w_dec"], jnp.where(dead[None, :], pre, -jnp.inf))

    n_dead = shard.largest(dead.sum())  # all shards take the same branch
    return lax.switch((n_dead > 0).astype(jnp.int32) + (n_dead > n_subset), [none, some, many])
