"""Matryoshka SAE over BatchTopK (arXiv 2503.17547): the first features must do without the later ones.

    loss = sum over prefixes m of  mean || f_n[:m] @ w_dec[:m] + b_dec - x_n ||^2 / C

The prefixes are nested dictionaries, the last one is the whole. Selection, threshold and AuxK are
BatchTopK's, over all F features; AuxK sees the error of the whole dictionary, and the reported mse is
that of the whole too.
"""

import itertools

from jsae.sae.variants import base, batch_topk


def _objective(pre, params, batch: base.Batch, terms: base.Terms, k):
    feats, at = batch_topk.select(pre, batch, k)  # [N, F]
    check_prefixes(terms.prefixes, feats.shape[1])
    resid = params["b_dec"][None, :] - batch.x_n  # [N, C]
    total = 0.0
    for start, stop in itertools.pairwise((0, *terms.prefixes)):
        resid = resid + feats[:, start:stop] @ params["w_dec"][start:stop]
        total = total + base.squares(resid, batch)
    return total, base.Parts(feats, resid, seen={"cut": at})


def check_prefixes(prefixes: tuple, n_features: int) -> None:
    """Raise ValueError unless the prefixes rise from at least 1 to F."""
    rising = all(a < b for a, b in itertools.pairwise((0, *prefixes)))
    if not prefixes or not rising or prefixes[-1] != n_features:
        raise ValueError(
            f"variant 'matryoshka' needs prefixes that rise from at least 1 to n_features={n_features}; "
            f"got {tuple(prefixes)}"
        )


VARIANT = base.Variant(
    activate=batch_topk.activate,
    objective=_objective,
    own=batch_topk.own,
    follow=batch_topk.follow,
    has_k=True,
    has_auxk=True,
)
