"""Which features of a pair are moved: the best single ones on train, random ones that change as much, or sets
that grow by what each feature adds to the others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from jsae import metrics
from jsae.ablation.counterfactual.drawings import Drawn
from jsae.ablation.counterfactual.effects import Passes, Sets

CRITERIA = ("tracking", "isolated")  # that a set may grow by
_NEAREST = 3  # features of the nearest size that a random one is drawn from


@dataclasses.dataclass(frozen=True)
class Chosen:
    """What train drawings say of a dictionary's features.

    Attributes:
      share: single-feature share, float64 [P, F]; -inf for features that were no candidates.
      change: mean change of the pooled feature [P, F].
      before: mean without the part, over drawings and cells [P, F].
      size: mean over drawings and cells of |f1 - f0| times ||w|| [P, F].
      effect: s of every feature moved alone, exact with a head, else to first order [P, n, F].
    """

    share: np.ndarray
    change: np.ndarray
    before: np.ndarray
    size: np.ndarray
    effect: np.ndarray

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
        alone = Sets([list(each[:, None]) for each in features], (1,) * features.shape[1])
        exact = _shares(passes.own(dictionary, drawn, alone, f"candidates of {label}"), totals)
        share = np.full_like(share, -np.inf)
        np.put_along_axis(share, features, exact, axis=1)
    means = {name: found[name].mean(1, dtype=np.float64) for name in ("change", "before", "size")}
    return Chosen(share=share, effect=found["effect"], **means)


def _shares(effects: np.ndarray, totals: np.ndarray) -> np.ndarray:
    """Shares [P, F] of effects [P, n, F] and totals [P, n]; NaN becomes -inf."""
    shares = np.stack([metrics.carried_share(e.T, d) for e, d in zip(effects, totals, strict=True)])
    return np.nan_to_num(shares, nan=-np.inf)


def greedy(effect: np.ndarray, drawn: Drawn, m: int, criterion: str) -> list[np.ndarray]:
    """Sets of up to m features of each pair, each feature the one that adds most to `criterion` on train.

    Effects of single features are summed, which is exact for a linear head; `share` then grows as by the best
    single ones, and is no criterion. A set stops growing where nothing adds to it.

    Args:
      effect: s of every feature moved alone [P, n, F].
      drawn: of train.
      m: features at most.
      criterion: "tracking" or "isolated"; the leak is that on pairs of other parts with an open gate.

    Returns:
      feature numbers of each pair in the order in which they were added, int [<= m].
    """
    totals, parts = drawn.totals(), np.array([pair.part for pair in drawn.pairs])
    is_open = np.array([metrics.twin_gate(*two).passed for two in drawn.contrasts()])
    shares = np.nan_to_num(_shares(effect, totals), neginf=0)  # [P, F]
    return [
        _grown(_tracking(effect[p].astype(np.float64), totals[p]), m)
        if criterion == "tracking"
        else _grown(_isolated(shares[p], shares[is_open & (parts != parts[p])]), m)
        for p in range(len(parts))
    ]


def _grown(score: Callable[[np.ndarray], tuple[float, np.ndarray]], m: int) -> np.ndarray:
    """The set that grows from nothing; score(members) -> the set's own, and with each feature added [F]."""
    members = np.zeros(0, np.int64)
    while len(members) < m:
        now, added = score(members)
        added[members] = -np.inf
        if not added.max() > now:
            break
        members = np.append(members, added.argmax())
    return members


def _tracking(effect: np.ndarray, total: np.ndarray) -> Callable:
    """By -Var(D - s) of effects [n, F] and totals [n]."""
    effect, total = effect - effect.mean(0)[None, :], total - total.mean()
    squares = np.square(effect).sum(0)

    def score(members):
        rest = total - effect[:, members].sum(1)
        left = rest @ rest
        return -left, 2 * (rest @ effect) - squares - left

    return score


def _isolated(share: np.ndarray, elsewhere: np.ndarray) -> Callable:
    """By 1 - |1 - share| - leak of single shares [F] here and [Q, F] in pairs of other parts."""

    def isolated(own, others):
        leak = metrics.leak(others.T) if len(others) else 0.0
        return metrics.isolated(own, leak)

    def score(members):
        own, others = share[members].sum(), elsewhere[:, members].sum(1)
        return isolated(own, others), isolated(own + share, others[:, None] + elsewhere)

    return score


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
