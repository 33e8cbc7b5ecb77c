"""The SAE variants: how pre-activations become features, and what is checked about their settings.

    relu_l1   f_n = relu(pre); trained with an L1 penalty on f_n
    topk      f_n = relu(pre) on the k largest pre-activations of each vector, 0 elsewhere (arXiv 2406.04093);
              trained with an auxiliary loss for dead features (AuxK)

Ties at the k-th value go to the lower feature index, so at most k features are active: exactly k, unless
fewer than k pre-activations are positive. How each variant is trained stands in `jsae.sae.losses`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(frozen=True)
class Variant:
    """What tells a variant from the others.

    Attributes:
      activate: (pre [N, F], k) -> features [N, F], both in scaled units; dense and differentiable.
      has_k: whether k is a setting of this variant.
    """

    activate: Callable
    has_k: bool


def preactivations(params: dict, x_n: jax.Array, *, precision=None) -> jax.Array:
    """(x_n - b_dec) @ w_enc.T + b_enc of scaled activations x_n [N, C] -> [N, F]."""
    centred = x_n - params["b_dec"][None, :]
    product = lax.dot_general(centred, params["w_enc"], (((1,), (1,)), ((), ())), precision=precision)
    return product + params["b_enc"][None, :]


def _relu(pre, k):
    return jax.nn.relu(pre)


def keep_top(pre: jax.Array, k: int) -> jax.Array:
    """relu(pre) [N, F] on the k largest entries of each row, 0 elsewhere; a NaN stays visible."""
    values, indices = lax.top_k(lax.stop_gradient(pre), k)  # [N, k], equal values by rising index
    # Reductions, not values[:, -1:]: XLA:CPU folds that slice into the top_k and sorts whole rows, 18x slower
    threshold = values.min(axis=-1, keepdims=True)  # [N, 1]
    last = jnp.where(values == threshold, indices, -1).max(axis=-1, keepdims=True)
    column = lax.broadcasted_iota(jnp.int32, pre.shape, 1)
    dropped = (pre < threshold) | ((pre == threshold) & (column > last))
    return jnp.where(dropped, 0.0, jax.nn.relu(pre))


VARIANTS = {
    "relu_l1": Variant(activate=_relu, has_k=False),
    "topk": Variant(activate=keep_top, has_k=True),
}


def check(variant: str, *, n_channels: int, n_features: int, k: int | None) -> None:
    """Raise ValueError unless these settings make an SAE; the message lists the valid ones."""
    if variant not in VARIANTS:
        raise ValueError(f"unknown SAE variant {variant!r}; the variants are {', '.join(VARIANTS)}")
    if n_features < 1 or n_channels < 1:
        raise ValueError(f"n_features={n_features} and n_channels={n_channels} must both be at least 1")
    if not VARIANTS[variant].has_k:
        if k is not None:
            raise ValueError(f"variant {variant!r} has no k; got k={k}, expected k=None")
    elif not isinstance(k, int) or not 1 <= k <= n_features:
        raise ValueError(f"variant {variant!r} needs an integer k in 1..n_features={n_features}; got k={k!r}")
