"""mediation.parquet: what part of a changed image's effect goes by way of m features, beside random ones.

The evidence that features carry what the network uses is the mediated share beside that of random features
which change as much. That a feature's own part is its relative fall times the effect of suppressing it holds
by construction where the rest of the network is linear: it checks the code and is no evidence.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation.mediation.passes import N_RANDOM, Scores
from jsae.ablation.statistics import bootstrap_weights
from jsae.tables import Column, Table, interval

_BOOTSTRAP = "95% bootstrap interval over images, this network only,"
_NULL = "null if the mean total effect is less than two standard errors from 0"

TABLE = Table(
    "mediation",
    (
        Column(
            "input",
            pa.string(),
            "what the image becomes: blurred, masked (in the train images' mean colour), rendered (drawn as "
            "a class with one part more or less)",
        ),
        Column(
            "area",
            pa.string(),
            "where: the foreground's mask or box, the image where neither is known, the part that is drawn",
        ),
        Column(
            "target",
            pa.string(),
            "whose logits are read off: label is the label's margin to the best other class, pair its margin "
            "to the class that the image is drawn as",
        ),
        Column(
            "m",
            pa.int32(),
            "features that take their values on the changed image: those with the largest single effects on "
            "train images; the last row has all",
        ),
        Column("n_images", pa.int32(), "test images; all means and sums are over them"),
        Column("changed_share", pa.float64(), "mean share of the image that is changed"),
        Column("te_mean", pa.float64(), "mean total effect, changed minus clean, in logits", _BOOTSTRAP),
        Column("nie", pa.float64(), "mean effect of the m features alone, in logits", _BOOTSTRAP),
        Column("mediated_share", pa.float64(), f"sum of nie over sum of total effects; {_NULL}", _BOOTSTRAP),
        Column(
            "random_share",
            pa.float64(),
            f"the same of m random features that change as much, mean of {N_RANDOM} sets; null as well where "
            "so many do not change",
            _BOOTSTRAP,
        ),
        Column(
            "random_size_ratio",
            pa.float64(),
            "mean |change| * ||w|| of the random features on train over that of the m chosen ones",
        ),
        Column(
            "necessity_share",
            pa.float64(),
            "sum over sum of total effects of what is lost if the m features keep their values on the clean "
            f"image; {_NULL}",
            _BOOTSTRAP,
        ),
        Column(
            "error_path_share",
            pa.float64(),
            f"sum over sum of total effects of what all features together leave, on every row; {_NULL}",
            _BOOTSTRAP,
        ),
    ),
)


def rows(scores: Scores, n_bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """Rows of `TABLE`, by input and m; unknown numbers NaN.

    Args:
      scores: of the test images.
      n_bootstrap, seed: of the intervals, which resample images; the same resamples for all rows of an input.
    """
    found = []
    for i, name in enumerate(scores.names):
        known = ~np.isnan(scores.totals[:, i])
        totals = scores.totals[known, i]
        rng = np.random.default_rng([seed, 0x6D6564, i])
        weights = bootstrap_weights(len(totals), n_bootstrap, rng) if len(totals) else np.zeros((1, 0))
        errors = metrics.error_path(totals, scores.chosen[known, i, -1])
        of_input = {
            "input": name,
            "area": "part" if name == "rendered" else scores.area,
            "target": "pair" if name == "rendered" else "label",
            "n_images": len(totals),
            "changed_share": scores.changed[known, i].mean() if len(totals) else np.nan,
            **_mean("te_mean", totals, weights),
            **_share("error_path_share", errors, totals, weights),
        }
        for k, m in enumerate(scores.sizes):
            of_sets = {
                "mediated_share": scores.chosen,
                "random_share": scores.random,
                "necessity_share": scores.necessity,
            }
            row = of_input | {"m": m, "random_size_ratio": scores.size_ratio[i, k]}
            row |= _mean("nie", scores.chosen[known, i, k], weights)
            for column, effects in of_sets.items():
                row |= _share(column, effects[known, i, k], totals, weights)
            found.append(row)
    return found


def results(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The main numbers of `rows`: {"m": [...], input: {...}}, lists over m; "all": of all features."""
    by_input: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        by_input.setdefault(row["input"], []).append(row)
    numbers: dict[str, Any] = {}
    for name, (*of_sets, of_all) in by_input.items():
        numbers["m"] = [row["m"] for row in of_sets]
        shares = ("mediated_share", "random_share", "necessity_share")
        numbers[name] = {
            **{key: of_all[key] for key in ("area", "target", "n_images")},
            **{key: _known(of_all[key]) for key in ("te_mean", "error_path_share")},
            **{key: [_known(row[key]) for row in of_sets] for key in shares},
            "all": {key: _known(of_all[key]) for key in ("mediated_share", "necessity_share")},
        }
    return numbers


def _mean(name: str, values: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    n = len(values)
    if not n:
        return interval(name, *[np.nan] * 3)
    return interval(name, values.mean(), *np.percentile(weights @ values / n, [2.5, 97.5]))


def _share(name: str, effects: np.ndarray, totals: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """A share of the total effect and its interval."""
    share = float(metrics.mediated_share(effects, totals))
    if np.isnan(share):
        return interval(name, *[np.nan] * 3)
    return interval(name, share, *np.percentile((weights @ effects) / (weights @ totals), [2.5, 97.5]))


def _known(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
