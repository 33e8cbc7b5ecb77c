"""AuxK (arXiv 2406.04093, appendix A.2): dead features are taught to explain what the living ones miss.

    aux = mean ||e - e_hat||^2 / C,    e = x_n - x_hat_n detached,    e_hat = f_dead @ w_dec

f_dead are the k_aux largest positive pre-activations among the dead features, and e_hat has no b_dec: the
bias belongs to the reconstruction. The coefficient `aux_alpha` is applied once, by the caller. The gradient
is taken for a subset of the dictionary: while few features are dead, only their rows are touched, and while
none is, nothing is computed.
"""

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae.variants import backward, base
from jsae.sae.variants.shard import WHOLE, Shard
from jsae.sae.variants.topk import keep_top

# AuxK works on a gathered subset of the dictionary while at most this share of it is dead.
_DEAD_SHARE = 8
_SHARED = ("w_enc", "b_enc", "w_dec", "b_dec")


def k_aux(n_channels: int, n_features: int) -> int:
    """Dead features that AuxK may use per vector: C / 2 (arXiv 2406.04093, appendix A.2), at most F."""
    return max(1, min(n_channels // 2, n_features))


def plain(pre: jax.Array, w_dec: jax.Array, error: jax.Array, mask: jax.Array, dead: jax.Array) -> jax.Array:
    """Sum over real rows of ||error - e_hat||^2 / C, dense and differentiable; 0 if none is dead."""
    n_features, c = w_dec.shape
    feats = keep_top(jnp.where(dead[None, :], pre, -jnp.inf), k_aux(c, n_features))
    missed = lax.stop_gradient(error) - feats @ w_dec
    return jnp.where(dead.any(), (mask * (missed**2).sum(-1)).sum() / c, 0.0)


def add_to(
    loss: jax.Array,
    grads: dict,
    alpha: float,
    params: dict,
    centred: jax.Array,
    pre: jax.Array,
    error: jax.Array,
    mask: jax.Array,
    dead: jax.Array,
    shard: Shard = WHOLE,
) -> tuple[jax.Array, jax.Array, dict]:
    """(`plain`, loss + alpha * `plain`, grads + alpha * its gradient); as they were while no feature is dead.

    With F dealt over devices, params, pre and dead are those of this device's features.

    Args:
      loss, grads: of the objective, the latter by name.
      alpha: the variant's `aux_alpha`.
      params: the trainable dict.
      centred: x_n - b_dec [N, C].
      pre: pre-activations [N, F].
      error: x_n - x_hat_n [N, C], taken as a constant.
      mask: 1 for real rows [N].
      dead: features to revive [F] bool.
      shard: which rows and features are on this device.
    """
    params = {name: params[name] for name in _SHARED}
    n_features, c = params["w_dec"].shape
    n_subset = max(1, n_features // _DEAD_SHARE)
    keep = k_aux(c, n_features * shard.n_model)

    def of_dead(params, pre_dead):
        def objective(pre_dead, rest):
            few = pre_dead.shape[1] * shard.n_model <= keep
            feats = base.relu(pre_dead) if few else keep_top(pre_dead, keep, shard)
            feats = shard.active(pre_dead, feats)
            missed = error - shard.over_features(shard.product(feats, rest["w_dec"]))  # [N, C]
            return (mask * (missed**2).sum(-1)).sum() / c, ()

        value, _, grads = backward.dense(params, centred, pre_dead, objective, shard)
        return value, grads

    def added(value, of_aux):
        return (
            value,
            loss + alpha * value,
            grads | {name: grads[name] + alpha * gradient for name, gradient in of_aux.items()},
        )

    def none():
        return jnp.zeros(()), loss, grads

    def some():
        # Counted and gathered: a scatter is slow on accelerators, and a loop where results must be the same
        place = jnp.cumsum(dead, dtype=jnp.int32)  # [F]
        chosen = (place[None, :] <= jnp.arange(n_subset)[:, None]).sum(1)  # F marks an unused slot
        take = lambda a: a.at[chosen].get(mode="fill", fill_value=0)  # noqa: E731
        few = {name: value if name == "b_dec" else take(value) for name, value in params.items()}
        pre_dead = shard.product_t(centred, few["w_enc"]) + few["b_enc"][None, :]  # 0 where unused
        value, of_aux = of_dead(few, pre_dead)
        slot = jnp.clip(place - 1, 0, n_subset - 1)
        put = lambda a: jnp.where(dead.reshape(-1, *[1] * (a.ndim - 1)), a[slot], 0.0)  # noqa: E731
        return added(value, {name: g if name == "b_dec" else put(g) for name, g in of_aux.items()})

    def many():
        return added(*of_dead(params, jnp.where(dead[None, :], pre, -jnp.inf)))

    n_dead = shard.largest(dead.sum())  # all shards take the same branch
    return lax.switch((n_dead > 0).astype(jnp.int32) + (n_dead > n_subset), [none, some, many])
