"""From effects of moved features to the rows of the tables and the headline numbers, in float64."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jsae import metrics
from jsae.ablation import statistics
from jsae.ablation.counterfactual.choice import Chosen
from jsae.ablation.counterfactual.drawings import Drawn
from jsae.ablation.counterfactual.effects import Sets

SCORES = ("share", "necessity", "tracking", "leak", "isolated", "transfer")
PUT_TO = ("zero", "mean", "set_to")
SINGLE = "single"  # the choice of the best single features
RESPONSES = ("z", "sensitivity", "specificity", "balanced_accuracy")


@dataclasses.dataclass(frozen=True)
class Twins:
    """What test drawings say of the pairs alone.

    Attributes:
      drawn: of test.
      class_names: of the labels.
      totals: D [P, n].
      gates: one per pair.
      rendered: changes of the logits by not drawing the part, l(A0) - l(A1), one [n, L] per pair.
      weights: how often each drawing is in each resample [n_bootstrap, n].
    """

    drawn: Drawn
    class_names: Sequence[str]
    totals: np.ndarray
    gates: list[metrics.TwinGate]
    rendered: list[np.ndarray]
    weights: np.ndarray

    @classmethod
    def of(cls, drawn: Drawn, class_names: Sequence[str], n_bootstrap: int, seed: int) -> "Twins":
        """From test drawings; resamples are drawn from the seed."""
        gates = [metrics.twin_gate(*two) for two in drawn.contrasts()]
        logits = [[seen.logits for seen in drawn.of(pair)] for pair in drawn.pairs]
        rng = np.random.default_rng([seed, 0x6366])
        return cls(
            drawn,
            class_names,
            drawn.totals(),
            gates,
            [without - with_part for without, with_part in logits],
            statistics.bootstrap_weights(drawn.n, n_bootstrap, rng),
        )

    @property
    def parts(self) -> list[str]:
        return [pair.part for pair in self.drawn.pairs]

    @property
    def is_open(self) -> np.ndarray:
        return np.array([gate.passed for gate in self.gates])

    def keys(self, dictionary: str, p: int) -> dict[str, Any]:
        """The columns that say which row it is."""
        part, without, with_part = self.drawn.pairs[p]
        names = (self.class_names[without], self.class_names[with_part])
        return {"dictionary": dictionary, "part": part, "without": names[0], "with_part": names[1]}

    def others(self, p: int) -> list[int]:
        """Pairs of other parts whose gates are open."""
        return [q for q, part in enumerate(self.parts) if self.is_open[q] and part != self.parts[p]]


def of_sets(twins: Twins, effect: np.ndarray, lost: np.ndarray) -> dict[str, np.ndarray]:
    """SCORES and the ends of the share's interval, [P, K] each; NaN where a gate is closed.

    Args:
      twins: the pairs.
      effect: s of every pair's sets in every pair, [P, n, P, K], the sets' pairs behind.
      lost: of necessity, [P, n, K].
    """
    effect, lost = np.moveaxis(effect.astype(np.float64), 1, -1), np.moveaxis(lost.astype(np.float64), 1, -1)
    totals, is_open, parts = twins.totals, twins.is_open, np.array(twins.parts)
    shares = np.stack([metrics.carried_share(e, d) for e, d in zip(effect, totals, strict=True)])
    shares[~is_open] = np.nan  # [pair, pair of the sets, K]
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*SCORES, "share_low", "share_high")}
    for p, total in enumerate(totals):
        share, same = shares[p, p], (parts == parts[p])
        resampled = effect[p, p] @ twins.weights.T / (twins.weights @ total)[None, :]  # [K, n_bootstrap]
        low, high = np.percentile(resampled, [2.5, 97.5], axis=-1)
        leak = metrics.leak(shares[~same, p].T)
        elsewhere = shares[same & (np.arange(len(parts)) != p), p]
        of_pair = {
            "share": share,
            "share_low": low,
            "share_high": high,
            "necessity": metrics.carried_share(lost[p], total),
            "tracking": metrics.tracking(effect[p, p], total),
            "leak": leak,
            "isolated": metrics.isolated(share, leak),
            "transfer": metrics.mean_of_parts(elsewhere, ["any"] * len(elsewhere)),
        }
        for name, values in of_pair.items():
            found[name].append(values if is_open[p] else np.full_like(share, np.nan))
    return {name: np.stack(values) for name, values in found.items()}


def of_combinations(twins: Twins, drawn: Drawn, effect: np.ndarray) -> np.ndarray:
    """Share of a pair's sets on other aircraft without and with its part [P, K], read by the pair's logits.

    A mean over the aircraft on which the part moves these logits: mean D > 2 standard errors. NaN where there
    are none, or the pair's gate is closed.

    Args:
      twins: the pairs.
      drawn: R combinations of them.
      effect: s of the pair's sets there, [R, n, K].
    """
    gates = [metrics.twin_gate(*two) for two in drawn.contrasts()]
    moved = np.array([gate.mean > 2 * gate.standard_error for gate in gates])
    shares = [metrics.carried_share(e.T, d) for e, d in zip(effect, drawn.totals(), strict=True)]
    found = np.full((len(twins.gates), effect.shape[2]), np.nan)
    for p in np.flatnonzero(twins.is_open):
        mine = moved & [pair == twins.drawn.pairs[p] for pair in drawn.contrasts_of or ()]
        if mine.any():
            found[p] = np.stack(shares)[mine].mean(0)
    return found


def faithfulness(twins: Twins, moved: np.ndarray, is_signed: bool) -> dict[str, np.ndarray]:
    """PUT_TO -> mean cosine of each pair [P], of changes of the logits [P, n, 3, L]; NaN: zero if signed."""
    found = {}
    for i, name in enumerate(PUT_TO):
        of_pairs = [metrics.faithfulness(m[:, i], r) for m, r in zip(moved, twins.rendered, strict=True)]
        known = twins.is_open & (name != "zero" or not is_signed)
        found[name] = np.where(known, of_pairs, np.nan)
    return found


@dataclasses.dataclass(frozen=True)
class Scored:
    """What came out for one dictionary.

    Attributes:
      name: of the dictionary.
      rows: of counterfactual.parquet.
      responses: of counterfactual_response.parquet.
      results: headline numbers, means over parts of the means over their pairs: SCORES, lists over set sizes;
        faithfulness; response, of each pair's first leader.
    """

    name: str
    rows: list[dict[str, Any]]
    responses: list[dict[str, Any]]
    results: dict[str, Any]


def scored(
    twins: Twins, name: str, chosen: Chosen, sets: Sets, leaders: np.ndarray, found: dict[str, np.ndarray]
) -> Scored:
    """The rows of a dictionary.

    Args:
      twins: the pairs.
      name: of the dictionary.
      chosen: what train says of its features.
      sets: of features, moved together.
      leaders: features of each pair whose responses are measured [P, r]; they are in `sets`.
      found: of `Passes.score`.
    """
    of_pairs = of_sets(twins, found["effect"], found["lost"])
    faithful = faithfulness(twins, found["moved"], sets.is_signed)
    rows = []
    for p, gate in enumerate(twins.gates):
        of_pair = {"gate": gate.passed, "twin_accuracy": gate.accuracy, "total": gate.mean}
        for k, features in enumerate(sets.members[p]):
            if sets.choices and sets.choices[k] != SINGLE:
                continue  # in a table of its own (`jsae.experiments.seeds`)
            values = {column: values[p, k] for column, values in of_pairs.items()}
            values |= {
                f"faithfulness_{put}": value[p] if k == sets.of_faith else np.nan
                for put, value in faithful.items()
            }
            size = float(chosen.size[p, features].sum())
            chosen_here = {"m": sets.sizes[k], "features": features.tolist(), "size": size}
            rows.append(twins.keys(name, p) | of_pair | chosen_here | values)
    answers = responses(twins, name, chosen, sets, leaders, found["without"], found["with"])
    results = {each: metrics.mean_of_parts(of_pairs[each], twins.parts).tolist() for each in SCORES}
    results["faithfulness"] = {
        put: float(metrics.mean_of_parts(value, twins.parts)) for put, value in faithful.items()
    }
    if answers:
        first = [row for row in answers if row["rank"] == 1]
        results["response"] = {
            key: float(metrics.mean_of_parts([row[key] for row in first], twins.parts)) for key in RESPONSES
        }
    return Scored(name, rows, answers, results)


def responses(
    twins: Twins,
    name: str,
    chosen: Chosen,
    sets: Sets,
    leaders: np.ndarray,
    without: np.ndarray,
    with_part: np.ndarray,
) -> list[dict[str, Any]]:
    """Rows of counterfactual_response.parquet for the leaders [P, r] of each pair.

    `without`, `with_part`: pooled features of `sets` in test drawings, [P, n, U].
    """
    change, rows = (with_part - without).astype(np.float64), []
    for p, features in enumerate(leaders.tolist()):
        for rank, feature in enumerate(features, start=1):
            at = int(np.searchsorted(sets.features, feature))
            others = [change[q, :, at] for q in twins.others(p)]
            sign = float(np.sign(chosen.change[p, feature]))
            found = metrics.response(without[p, :, at], change[p, :, at], others, sign)
            values = {key: getattr(found, key) if twins.gates[p].passed else np.nan for key in RESPONSES}
            keys = {"rank": rank, "feature": feature, "train_share": float(chosen.share[p, feature])}
            rows.append(twins.keys(name, p) | keys | values)
    return rows


def ceilings(results: dict[str, dict[str, Any]], n: int) -> list[float]:
    """(sae - rotation) / (supervised - rotation) of mean isolated, for each of n sizes; NaN where unknown."""
    if not {"sae", "rotation", "supervised"} <= results.keys():
        return [float("nan")] * n
    (supervised,) = results["supervised"]["isolated"]
    two = (results[name]["isolated"] for name in ("sae", "rotation"))
    return [metrics.ceiling(sae, rotation, supervised) for sae, rotation in zip(*two, strict=True)]
