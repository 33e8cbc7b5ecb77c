"""Which features of a pair are moved: the best single ones on train, or random ones that change as much."""

import dataclasses
from typing import Any

import numpy as np

from jsae import metrics
from jsae.ablation.counterfactual.drawings import Drawn
from jsae.ablation.counterfactual.effects import Passes

_NEAREST = 3  # features of the nearest size that a random one is drawn from


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What train drawings say of a dictionary's features.

    Attributes:
      share: single-feature share, float64 [P, F]; -inf for features that were no candidates.
      change: mean change of the pooled feature [P, F].
      before: mean without the part, over drawings and cells [P, F].
      size: mean over drawings and cells of |f1 - f0| times ||w|| [P, F].
    """

    share: np.ndarray
    change: np.ndarray
    before: np.ndarray
    size: np.ndarray

    def best(self, m: int) -> np.ndarray:
        """The m features of the largest share, best first, int [P, m]."""
        return np.argsort(-self.share, axis=1, kind="stable")[:, :m]


def survey(passes: Passes, dictionary: Any, drawn: Drawn, n_candidates: int, label: str) -> Chosen:
    """All features of a dictionary on train drawings.

    Without a head, shares are those of the n_candidates features of the largest first-order share of a pair.
    """
    found, totals = passes.survey(dictionary, drawn, label), drawn.totals()
    share = _shares(found["effect"], totals)
    if passes.rest.head is None:
        features = np.argsort(-share, axis=1, kind="stable")[:, :n_candidates]
        exact = _shares(passes.candidates(dictionary, drawn, features, label), totals)
        share = np.full_like(share, -np.inf)
        np.put_along_axis(share, features, exact, axis=1)
    means = (found[name].mean(1, dtype=np.float64) for name in ("change", "before", "size"))
    return Chosen(share, *means)


def _shares(effects: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Shares [P, F] of effects [P, n, F] and totals [P, n]; NaN becomes -inf."""
    shares = np.stack([metrics.carried_share(e.T, d) for e, d in zip(effects, totals, strict=True)])
    return np.nan_to_num(shares, nan=-np.inf)


def matched(size: np.ndarray, features: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """As many other features that change, each of nearly the size of one of `features`, drawn at random.

    Args:
      size: of every feature on train, [F], 0 for one that does not change.
      features: to be matched, int [m].
      rng: each is drawn from the 3 of nearest size that are not taken.

    Returns:
      int [m], fewer where not enough features change.
    """
    free = size > 0
    free[features] = False
    taken = []
    for feature in features:
        left = np.flatnonzero(free)
        if not len(left):
            break
        nearest = left[np.argsort(np.abs(size[left] - size[feature]), kind="stable")[:_NEAREST]]
        taken.append(rng.choice(nearest))
        free[taken[-1]] = False
    return np.array(taken, np.int64)
