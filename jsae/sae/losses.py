"""What an SAE is trained on, and its gradient.

With x_n the scaled activations, x_hat_n their reconstruction and means over the real vectors of a batch,
every variant minimises

    loss = mean ||x_n - x_hat_n||^2 / C  +  what its file in `jsae.sae.variants` adds
                                         +  aux_alpha * AuxK  where it revives dead features (jsae.sae.auxk)

The first term is near the fvu, because mean ||x_n||^2 / C = 1 over the train split. Dividing the sparsity
terms by C too makes `l1` and `l0` the coefficients of the usual convention (sum over channels).

`loss` is the plain, differentiable form. `sums_and_grads` is what training uses: sums over rows instead of
means, so that shards of a batch add up, and gradients by `jsae.sae.variants.backward`.
"""

import jax
import jax.numpy as jnp

from jsae.sae import auxk, model
from jsae.sae.variants import Batch, Variant, backward, preactivations

SUMS = ("n", "sse", "penalty", "l1", "l0", "aux", "loss", "x_sq", "x_sum", "fired")


def loss(
    sae: model.SAE, x: jax.Array, *, mask: jax.Array | None = None, dead: jax.Array | None = None
) -> tuple[jax.Array, dict]:
    """The training loss of raw activations, differentiable with respect to the SAE.

    Args:
      sae: the SAE; the coefficients are those of its variant, at their full value.
      x: raw activations [..., C].
      mask: 1 for real vectors and 0 for padding [...]; None: all are real.
      dead: features to revive [F] bool (AuxK); None: none.

    Returns:
      (loss, {"mse", "penalty", "aux"}): the terms before their coefficients, each a mean over real vectors.

    Raises:
      ValueError: settings this variant cannot be trained with.
    """
    variant = sae.variant
    variant.check(sae.n_features)
    x_n = model.normalise(sae, x.reshape(-1, sae.n_channels))  # [N, C]
    mask = jnp.ones(x_n.shape[0]) if mask is None else mask.reshape(-1)
    with jax.default_matmul_precision("float32"):
        pre = preactivations(sae.params, x_n)  # [N, F]
        rest = {name: value for name, value in sae.params.items() if name != "w_enc"}
        value, parts = variant.objective(pre, rest, Batch(x_n, mask, variant.sparsity()))
        squares, aux = (mask * (parts.resid**2).sum(-1)).sum(), parts.aux
        if variant.aux_alpha and dead is not None:
            aux = auxk.plain(pre, sae.w_dec, parts.resid, mask, dead)
            value = value + variant.aux_alpha * aux
    n = jnp.maximum(mask.sum(), 1.0)
    return value / n, {"mse": squares / n / sae.n_channels, "penalty": parts.penalty / n, "aux": aux / n}


def sums_and_grads(
    params: dict, batch: Batch, dead: jax.Array, *, variant: Variant, sparse: bool
) -> tuple[dict, dict, dict]:
    """Sums over the rows of one shard, and the gradient of the summed loss.

    Args:
      params: the trainable dict of `SAE.params`, or its part for the features of this shard.
      batch: one shard.
      dead: features AuxK revives [F] bool, those of this shard.
      variant: of the SAE, static.
      sparse: take the variant's sparse path, static.

    Returns:
      sums: those named in `SUMS`, scalars but for "x_sum" [C] and "fired" [F], over real rows and all
        features, none of them divided by their number; "loss", "penalty" and "aux" are divided by C, "l1" is
        the sum of the features, "fired" counts the vectors on which each feature of this shard is active.
      grads: the gradient of "loss", for the features of this shard.
      batch_stats: what the variant's `follow` needs, the same on all shards.
    """
    mask, shard = batch.mask, batch.shard
    centred = batch.x_n - params["b_dec"][None, :]  # [N, C]
    product = shard.product_t(centred, params["w_enc"], short=not variant.selects)
    pre = product + params["b_enc"][None, :]  # [N, F]
    if sparse and variant.sparse is not None:
        sums, grads, resid, batch_stats = variant.sparse(params, batch, centred, pre)
    else:
        objective = lambda pre, rest: variant.objective(pre, rest, batch)  # noqa: E731
        sums, grads, resid, batch_stats = backward.of_objective(params, batch, centred, pre, objective)
    if variant.aux_alpha:
        sums["aux"], sums["loss"], grads = auxk.add_to(
            sums["loss"], grads, variant.aux_alpha, params, centred, pre, resid, mask, dead, shard
        )
    sums |= {
        "n": mask.sum(),
        "x_sq": (mask[:, None] * batch.x_n**2).sum(),
        "x_sum": (mask[:, None] * batch.x_n).sum(0),
    }
    return sums, grads, batch_stats
