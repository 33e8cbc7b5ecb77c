"""What a variant is, and the arithmetic that all of them share.

Every variant starts from the same pre-activations, pre = (x_n - b_dec) @ w_enc.T + b_enc, and is one entry
of `jsae.sae.variants.VARIANTS`: how features come from them, and what is minimised. An objective is a
plain differentiable function of `pre` and of the parameters behind the encoder; `jsae.sae.losses`
differentiates it and does the encoder's part of the backward pass.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae.variants.shard import WHOLE, Shard


@dataclasses.dataclass(frozen=True, kw_only=True)
class Terms:
    """The settings of the training losses; each variant reads its own.

    Attributes:
      l1: coefficient of the L1 term ("relu_l1", "gated").
      l0: coefficient of the L0 term ("jumprelu").
      aux_alpha: coefficient of AuxK ("topk", "batch_topk", "matryoshka").
      bandwidth: width of the window around the threshold that gives it a gradient ("jumprelu"), in scaled
        units.
      prefixes: sizes of the nested dictionaries, rising, the last one F ("matryoshka").
      decoder_norm: "unit" keeps decoder rows at norm 1; "free" leaves them and weighs each feature's L1 by
        its row's norm ("relu_l1" only).
      threshold_decay: of the running mean that makes the threshold of inference ("batch_topk",
        "matryoshka").
    """

    l1: float = 0.0
    l0: float = 0.0
    aux_alpha: float = 0.0
    bandwidth: float = 0.0
    prefixes: tuple[int, ...] = ()
    decoder_norm: str = "unit"
    threshold_decay: float = 0.999


@dataclasses.dataclass(frozen=True)
class Batch:
    """One shard of a training batch, as an objective sees it; F counts the features of this device.

    Attributes:
      x_n: scaled activations [N, C]; padding rows are finite.
      mask: 1 for real rows, 0 for padding [N].
      sparsity: the variant's sparsity coefficient at this step, a scalar.
      shard: which rows and features are on this device, and how it computes.
    """

    x_n: jax.Array
    mask: jax.Array
    sparsity: jax.Array
    shard: Shard = WHOLE


@dataclasses.dataclass(frozen=True)
class Parts:
    """What an objective hands back beside its value; sums over the rows of the shard, in scaled units.

    Attributes:
      feats: features [N, F], 0 in padding rows.
      resid: x_hat_n - x_n [N, C].
      penalty: the sparsity term before its coefficient, divided by C, a scalar over all features.
      aux: an auxiliary term before its coefficient, divided by C, a scalar over all features.
      seen: what `Variant.follow` needs, the same on all shards.
    """

    feats: jax.Array
    resid: jax.Array
    penalty: jax.Array | float = 0.0
    aux: jax.Array | float = 0.0
    seen: dict = dataclasses.field(default_factory=dict)


jax.tree_util.register_dataclass(Parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """What tells a variant from the others.

    Attributes:
      activate: (pre [N, F], arrays, k, shard) -> features [N, F] at inference, in scaled units; `arrays` are
        all arrays of the SAE by name, the variant's own included.
      objective: (pre, params, batch, terms, k) -> (value, Parts): the sum over real rows of the loss,
        divided by C. `params` are the trainable arrays without w_enc.
      own: F -> the variant's own arrays at the start, by name.
      learned: those of them that are trained by gradient.
      project: params -> params, after each step.
      follow: (own, seen, terms, t) -> own, after each step, for arrays that follow the batches instead;
        t counts the steps taken before.
      sparse: a faster (params, batch, centred, pre, k) -> (sums, grads, resid, seen), or None.
      coefficient: the name in `Terms` of the sparsity coefficient, or None.
      has_k: whether k is a setting of this variant.
      has_auxk: whether dead features are revived by AuxK.
    """

    activate: Callable
    objective: Callable
    own: Callable = lambda n_features: {}
    learned: tuple[str, ...] = ()
    project: Callable = lambda params: params
    follow: Callable = lambda own, seen, terms, t: own
    sparse: Callable | None = None
    coefficient: str | None = None
    has_k: bool = False
    has_auxk: bool = False


def preactivations(params: dict, x_n: jax.Array, *, precision=None) -> jax.Array:
    """(x_n - b_dec) @ w_enc.T + b_enc of scaled activations x_n [N, C] -> [N, F]."""
    centred = x_n - params["b_dec"][None, :]
    product = lax.dot_general(centred, params["w_enc"], (((1,), (1,)), ((), ())), precision=precision)
    return product + params["b_enc"][None, :]


def reconstruct(feats, params: dict, batch: Batch) -> tuple:
    """(sum over real rows of ||x_hat_n - x_n||^2 / C, x_hat_n - x_n [N, C]) of features [N, F]."""
    x_hat = batch.shard.over_features(batch.shard.product(feats, params["w_dec"]))  # [N, C]
    resid = x_hat + params["b_dec"][None, :] - batch.x_n
    return squares(resid, batch), resid


def squares(resid, batch: Batch):
    """Sum over real rows of ||resid||^2 / C, by rows first."""
    return (batch.mask * (resid**2).sum(-1)).sum() / batch.x_n.shape[1]


def relu(pre):
    """max(pre, 0); a NaN stays visible, and the gradient at 0 is 0."""
    return jax.nn.relu(pre)


def above(pre, threshold):
    """relu(pre) [N, F] where pre is above the threshold ([] or [F]), 0 elsewhere; a NaN stays visible."""
    threshold = jnp.broadcast_to(threshold, pre.shape[1:])
    return jnp.where(pre <= threshold[None, :], 0.0, relu(pre))
