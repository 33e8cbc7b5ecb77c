"""Matryoshka SAE over BatchTopK (arXiv 2503.17547): the first features must do without the later ones.

    loss = sum over prefixes m of  mean || x_n - f_n[:m] @ w_dec[:m] - b_dec ||^2 / C

The prefixes are nested dictionaries, the last one is the whole. Selection, threshold and AuxK are
BatchTopK's, over all F features; AuxK sees the error of the whole dictionary, and the reported mse is
that of the whole too.
"""

import dataclasses
import itertools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jsae.runtime import settings
from jsae.sae.variants import base, batch_topk


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matryoshka(batch_topk.BatchTopK):
    """Settings: those of BatchTopK, and

    Attributes:
      prefix_shares: sizes of the nested dictionaries as shares of F, rising to 1.
    """

    prefix_shares: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0)

    name = "matryoshka"
    ranges: ClassVar = batch_topk.BatchTopK.ranges | {"prefix_shares": settings.PART}
    sparse = None  # type: ignore[assignment]

    def check(self, n_features: int) -> None:
        super().check(n_features)
        prefixes = self.prefixes(n_features)
        rising = all(a < b for a, b in itertools.pairwise((0, *prefixes)))
        if not prefixes or not rising or prefixes[-1] != n_features:
            raise ValueError(
                f"variant 'matryoshka' needs prefixes that rise from at least 1 to n_features={n_features}; "
                f"got {prefixes} from prefix_shares={self.prefix_shares}"
            )

    def prefixes(self, n_features: int) -> tuple[int, ...]:
        """Sizes of the nested dictionaries of F features."""
        return tuple(round(share * n_features) for share in self.prefix_shares)

    def objective(self, pre: jax.Array, params: dict, batch: base.Batch) -> tuple[jax.Array, base.Parts]:
        feats, at = batch_topk.select(pre, batch, self.k)  # [N, F]
        prefixes = self.prefixes(feats.shape[1] * batch.shard.n_model)
        resid = batch.x_n - params["b_dec"][None, :]  # [N, C]
        total = jnp.zeros(())
        for part in batch.shard.over_features(_by_band(feats, params["w_dec"], prefixes, batch.shard)):
            resid = resid - part
            total = total + base.squares(resid, batch)
        return total, base.Parts(feats, resid, batch_stats={"cut": at})


def _by_band(feats, w_dec, prefixes: tuple, shard) -> list:
    """What the features between one prefix and the next add to a reconstruction, [N, C] for each band.

    The cuts between bands fall elsewhere in each shard of the features. All shards are therefore sliced at
    the cuts of all of them, each slice is multiplied once, and then goes to the band it lies in here.
    """
    n_local = feats.shape[1]
    cuts = sorted({0, *(prefix % n_local for prefix in prefixes)})
    slices = itertools.pairwise((*cuts, n_local))
    parts = [shard.product(feats[:, a:b], w_dec[a:b]) for a, b in slices]
    firsts = np.arange(shard.n_model)[:, None] * n_local + np.asarray(cuts)[None, :]
    bands = np.searchsorted(prefixes, firsts, side="right")  # [n_model, slices]
    if shard.n_model == 1:
        return [parts[list(bands[0]).index(band)] for band in range(len(prefixes))]
    here = jnp.asarray(bands)[shard.index()]
    return [
        sum(jnp.where(here[i] == band, part, 0.0) for i, part in enumerate(parts))
        for band in range(len(prefixes))
    ]
