"""What an SAE is trained on, and its gradient.

With x_n the scaled activations, x_hat_n their reconstruction and means over the real vectors of a batch,
every variant minimises

    loss = mean ||x_hat_n - x_n||^2 / C  +  what its file in `jsae.sae.variants` adds
                                         +  aux_alpha * AuxK  where it revives dead features (jsae.sae.auxk)

The first term is near the fvu, because mean ||x_n||^2 / C = 1 over the train split. Dividing the sparsity
terms by C too makes `l1` and `l0` the coefficients of the usual convention (sum over channels).

`loss` is the plain, differentiable form. `sums_and_grads` is what training uses: sums over rows instead
of means, so that shards of a batch add up, and the encoder's backward pass written out: b_dec sits before
the encoder, and autodiff would pay a whole [N, F] x [F, C] product for its gradient, which is
sum(g) - sum(d_pre) @ w_enc. A variant may bring a sparse path of its own (TopK does).
"""

import jax
import jax.numpy as jnp

from jsae.sae import auxk, model
from jsae.sae.variants import VARIANTS, Batch, Terms, check_terms, preactivations

SUMS = ("n", "sse", "penalty", "l1", "l0", "aux", "loss", "x_sq", "x_sum", "fired")


def loss(sae: model.SAE, x: jax.Array, *, mask=None, dead=None, **terms) -> tuple:
    """The training loss of raw activations, differentiable with respect to the SAE.

    Args:
      sae: the SAE.
      x: raw activations [..., C].
      mask: 1 for real vectors and 0 for padding [...]; None: all are real.
      dead: features to revive [F] bool (AuxK); None: none.
      **terms: the fields of `jsae.sae.variants.Terms` this variant reads, for example l1=5e-3.

    Returns:
      (loss, {"mse", "penalty", "aux"}): the terms before their coefficients, each a mean over real vectors.

    Raises:
      ValueError: terms this variant cannot be trained with.
    """
    terms, variant = Terms(**terms), VARIANTS[sae.variant]
    check_terms(sae.variant, terms, sae.n_features)
    x_n = model.normalise(sae, x.reshape(-1, sae.n_channels))  # [N, C]
    mask = jnp.ones(x_n.shape[0]) if mask is None else mask.reshape(-1)
    with jax.default_matmul_precision("float32"):
        pre = preactivations(sae.params, x_n)  # [N, F]
        rest = {name: value for name, value in sae.params.items() if name != "w_enc"}
        sparsity = getattr(terms, variant.coefficient) if variant.coefficient else 0.0
        value, parts = variant.objective(pre, rest, Batch(x_n, mask, sparsity), terms, sae.k)
        squares, aux = (mask * (parts.resid**2).sum(-1)).sum(), parts.aux
        if variant.has_auxk and dead is not None:
            aux = auxk.plain(pre, sae.w_dec, -parts.resid, mask, dead)
            value = value + terms.aux_alpha * aux
    n = jnp.maximum(mask.sum(), 1.0)
    return value / n, {"mse": squares / n / sae.n_channels, "penalty": parts.penalty / n, "aux": aux / n}


def sums_and_grads(
    params: dict, batch: Batch, dead: jax.Array, *, variant: str, k, terms: Terms, sparse: bool
) -> tuple[dict, dict, dict]:
    """Sums over the rows of one shard, and the gradient of the summed loss.

    Args:
      params: the trainable dict of `SAE.params`, or its part for the features of this shard.
      batch: one shard.
      dead: features AuxK revives [F] bool, those of this shard.
      variant, k, terms: the SAE's settings, static.
      sparse: take the variant's sparse path, static.

    Returns:
      sums: those named in `SUMS`, scalars but for "x_sum" [C] and "fired" [F], over real rows and all
        features, none of them divided by their number; "loss", "penalty" and "aux" are divided by C, "l1" is
        the sum of the features, "fired" counts the vectors on which each feature of this shard is active.
      grads: the gradient of "loss", for the features of this shard.
      seen: what the variant's `follow` needs, the same on all shards.
    """
    kind, mask, shard = VARIANTS[variant], batch.mask, batch.shard
    centred = batch.x_n - params["b_dec"][None, :]  # [N, C]
    pre = shard.product_t(centred, params["w_enc"]) + params["b_enc"][None, :]  # [N, F]
    if sparse:
        sums, grads, resid, seen = kind.sparse(params, batch, centred, pre, k)
        sums["loss"] = sums["sse"] / centred.shape[1]
    else:
        sums, grads, resid, seen = _dense(params, batch, centred, pre, kind, terms, k)
    if kind.has_auxk and terms.aux_alpha:
        sums["aux"], aux_grads = auxk.value_and_grads(params, centred, pre, -resid, mask, dead, shard)
        sums["loss"] = sums["loss"] + terms.aux_alpha * sums["aux"]
        for name, gradient in aux_grads.items():
            grads[name] = grads[name] + terms.aux_alpha * gradient
    sums |= {
        "n": mask.sum(),
        "x_sq": (mask[:, None] * batch.x_n**2).sum(),
        "x_sum": (mask[:, None] * batch.x_n).sum(0),
    }
    return sums, grads, seen


def _dense(params, batch: Batch, centred, pre, kind, terms: Terms, k):
    rest = {name: value for name, value in params.items() if name != "w_enc"}

    def objective(pre, rest):
        return kind.objective(pre, rest, batch, terms, k)

    (value, parts), (d_pre, grads) = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)(pre, rest)
    d_b_enc, shard = d_pre.sum(0), batch.shard
    grads["w_enc"] = shard.outer_sum(d_pre, centred)
    grads["b_enc"] = grads["b_enc"] + d_b_enc
    grads["b_dec"] = grads["b_dec"] - shard.over_features(d_b_enc @ params["w_enc"])
    # By feature first: each further sum over [N, F] would be one more pass over it
    by_feature, fired = parts.feats.sum(0), (parts.feats != 0).sum(0, dtype=jnp.int32)
    sums = {
        "loss": value,
        "sse": (batch.mask * (parts.resid**2).sum(-1)).sum(),
        "penalty": jnp.asarray(parts.penalty, jnp.float32),
        "aux": jnp.asarray(parts.aux, jnp.float32),
        "l1": shard.over_features(by_feature.sum()),
        "l0": shard.over_features(fired.sum()).astype(jnp.float32),
        "fired": fired,
    }
    return sums, grads, parts.resid, parts.seen
