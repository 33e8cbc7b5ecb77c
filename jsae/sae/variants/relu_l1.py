"""ReLU with an L1 penalty: f_n = relu(pre).

    loss = mean ||x_hat_n - x_n||^2 / C  +  l1 * mean sum_j f_n[j] * ||w_dec[j]|| / C

With decoder_norm "unit" the norms are 1 and the rows are renormalised after each step; with "free" the
penalty is weighted by the rows' norms instead, so that a feature cannot escape it by growing its row.
"""

import jax.numpy as jnp

from jsae.sae.variants import base


def _activate(pre, arrays, k, shard):
    return base.relu(pre)


def _objective(pre, params, batch: base.Batch, terms: base.Terms, k):
    feats = batch.mask[:, None] * base.relu(pre)  # [N, F]
    mse, resid = base.reconstruct(feats, params, batch)
    by_feature = feats.sum(0)
    if terms.decoder_norm == "free":
        by_feature = by_feature * jnp.linalg.norm(params["w_dec"], axis=-1)
    penalty = batch.shard.over_features(by_feature.sum()) / batch.x_n.shape[1]
    return mse + batch.sparsity * penalty, base.Parts(feats, resid, penalty)


VARIANT = base.Variant(activate=_activate, objective=_objective, coefficient="l1")
