"""input_space.parquet: where to blur, whether the blur takes the feature away, and what it does then.

One row per feature, placement and area (for each target and measure). Effects are those of qualified pairs,
whose feature falls by at least one half; they are null below 20 such images, and for features that fire on
fewer than 20 test images. Benjamini-Hochberg runs over the features of one kind of row, i.e. for each
(placement, area, target, measure) by itself. `headline` makes the numbers of summary.json.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jsae.ablation import rows, statistics
from jsae.ablation.effects import MEASURES, TARGETS
from jsae.ablation.input_space import controls
from jsae.ablation.input_space.layout import CELL, KINDS
from jsae.ablation.input_space.patches import MIN_FALL, InputEffects
from jsae.ablation.statistics import BOOTSTRAP, MIN_ACTIVE
from jsae.tables import Column, Table

OWN = {"placement": "peak", "area": CELL}  # what the numbers of summary.json are of
_CONTROL = (
    f"the same shape elsewhere on the image, of equal area, with a blur energy within "
    f"{controls.ENERGY_TOLERANCE:.0%} and, where the foreground is known, a share of it within "
    f"{100 * controls.COVERAGE_TOLERANCE:.0f} percentage points"
)
_QUALIFIED = f"qualified pairs; null with fewer than {MIN_ACTIVE}"

TABLE = Table(
    "input_space",
    (
        Column("feature", pa.int32(), "SAE feature"),
        Column(
            "placement",
            pa.string(),
            "where the image is blurred: peak (a square around the feature's largest cell), active (squares "
            "around the cells with at least half its maximum), mask (of the part that it localises best on "
            "train; of the foreground where no part is known) or box",
        ),
        Column("area", pa.string(), "how much: cell (a patch of cells), or as much as the mask or box"),
        *rows.KEYS,
        Column(
            "n_pairs",
            pa.int32(),
            "test images that were blurred: of a seeded random subset of those on which the feature fires, "
            "those that show what the mask or box is of",
        ),
        Column(
            "n_qualified", pa.int32(), f"of these: the feature falls by {MIN_FALL} or more (`fall_median`)"
        ),
        Column("n_matched", pa.int32(), f"of n_pairs: there is a control, {_CONTROL}; others are dropped"),
        Column("n_compared", pa.int32(), "pairs that qualify and have a control"),
        Column("share_qualified", pa.float64(), "n_qualified / n_pairs"),
        Column("area_share", pa.float64(), "mean share of the image that is blurred"),
        Column(
            "fall_median",
            pa.float64(),
            "median over n_pairs of 1 - (mean of the feature over its active cells when blurred) / (the "
            "same, clean); active: at least half its maximum on the image; 1: gone",
        ),
        Column("matched_fall_median", pa.float64(), "the same over n_matched, to be held against the next"),
        Column("control_fall_median", pa.float64(), "the same when the control is blurred, over n_matched"),
        Column("coverage", pa.float64(), "mean share of the area on the foreground, over n_matched"),
        Column("control_coverage", pa.float64(), "the same of the controls"),
        Column("control_energy_ratio", pa.float64(), "mean blur energy of control over that of the area"),
        Column(
            "mean_delta",
            pa.float64(),
            f"mean of blurred minus clean over {_QUALIFIED}",
            interval=BOOTSTRAP,
        ),
        Column(
            "control_mean_delta",
            pa.float64(),
            f"mean effect of blurring the control over n_compared pairs; null with fewer than {MIN_ACTIVE}",
        ),
        *rows.comparison("effect_minus_control", "", "the control, over n_compared pairs"),
        Column("flip_rate", pa.float64(), f"share whose prediction changes, of {_QUALIFIED}"),
        Column("control_flip_rate", pa.float64(), "the same for the control, over n_compared pairs"),
    ),
)


def columns(
    effects: InputEffects, features: Sequence[int], n_active: Mapping[int, int], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Columns of `TABLE`, one row per (feature, placement, area, target, measure); unknown numbers NaN.

    Args:
      effects: the pairs that were blurred.
      features: those of which there are rows, in order.
      n_active: feature -> number of test images on which it fires; below 20 its effects are null.
      n_bootstrap, seed: of the intervals.
    """
    axes = effects.falls.axes
    places = [(p, a) for p in axes["placement"] for a in axes["area"]]
    shape = (len(axes["placement"]), len(axes["area"]))
    of_features = []
    for feature in features:
        least = MIN_ACTIVE if n_active.get(int(feature), 0) >= MIN_ACTIVE else np.inf
        rng = [np.random.default_rng([seed, int(feature), 1]) for _ in places]
        found = [
            _of_place(effects, effects.features == feature, *place, rows.Means(n_bootstrap, each, least))
            for place, each in zip(places, rng, strict=True)
        ]
        stacked = {name: np.stack([np.asarray(of[name]) for of in found]) for name in found[0]}
        measured = {  # [placement, area, target, measure]; counts and shares are the same for all targets
            name: value.reshape(*shape, *(value.shape[1:] or (1, 1))) for name, value in stacked.items()
        }
        of_features.append({"feature": int(feature)} | measured)
    named = {name: axes[name] for name in ("placement", "area")}
    return rows.long_columns(TABLE.names, of_features, named | {"target": TARGETS, "measure": MEASURES})


def _of_place(
    effects: InputEffects, pairs: np.ndarray, placement: str, area: str, mean: rows.Means
) -> dict[str, Any]:
    """The numbers of the pairs bool [M] at one placement and area: scalars, or [target, measure]."""
    at = {"placement": placement, "area": area}
    numbers = describe(effects, pairs, placement, area)
    chosen = _chosen(effects, pairs, placement, area)
    effect, control = (effects.deltas.at(**at, kind=kind).astype(np.float64) for kind in KINDS)
    flips = effects.flips.select(**at)
    return numbers | {
        **mean.with_interval("mean_delta", effect[chosen.qualified]),
        **mean.compared("effect_minus_control", "", (effect - control)[chosen.compared]),
        "control_mean_delta": mean.of(control[chosen.compared]),
        "flip_rate": mean.of(flips.at(kind="effect")[chosen.qualified]),
        "control_flip_rate": mean.of(flips.at(kind="control")[chosen.compared]),
    }


class _Chosen(NamedTuple):
    """Which pairs, bool [M], were blurred at a placement; of these: qualified, with a control, both."""

    measured: np.ndarray
    qualified: np.ndarray
    matched: np.ndarray
    compared: np.ndarray


def _chosen(effects: InputEffects, pairs: np.ndarray, placement: str, area: str) -> _Chosen:
    falls = effects.falls.select(placement=placement, area=area)
    fall, of_control = (falls.at(kind=kind) for kind in KINDS)
    measured, matched = pairs & ~np.isnan(fall), pairs & ~np.isnan(of_control)
    qualified = measured & (fall >= MIN_FALL)
    return _Chosen(measured, qualified, matched, qualified & matched)


def describe(effects: InputEffects, pairs: np.ndarray, placement: str, area: str) -> dict[str, Any]:
    """The manipulation check of pairs bool [M] at one placement and area: counts, shares and medians.

    A number of no pairs is NaN.
    """
    at = {"placement": placement, "area": area}
    measured, qualified, matched, compared = _chosen(effects, pairs, placement, area)
    falls, covered = effects.falls.select(**at), effects.coverages.select(**at)
    energies = effects.energies.select(**at).rows(matched)
    n = int(measured.sum())
    with np.errstate(divide="ignore", invalid="ignore"):  # an area that a blur does not change
        ratios = energies.at(kind="control") / energies.at(kind="effect")
    return {
        "n_pairs": n,
        "n_qualified": int(qualified.sum()),
        "n_matched": int(matched.sum()),
        "n_compared": int(compared.sum()),
        "share_qualified": qualified.sum() / n if n else np.nan,
        "area_share": rows.mean_of_known(effects.area_shares.at(**at, kind="effect")[measured]),
        "fall_median": _median(falls.at(kind="effect")[measured]),
        "matched_fall_median": _median(falls.at(kind="effect")[matched]),
        "control_fall_median": _median(falls.at(kind="control")[matched]),
        "coverage": rows.mean_of_known(covered.at(kind="effect")[matched]),
        "control_coverage": rows.mean_of_known(covered.at(kind="control")[matched]),
        "control_energy_ratio": rows.mean_of_known(ratios),
    }


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan


def headline(
    effects: InputEffects, known: Sequence[int], selective: Sequence[int], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """The numbers of the stage's results; None where there is none.

    fall_median, qualified_share and control_fall_median of a patch at the peak, as the study blurs it, and
    placements[placement][area]: the same and the counts of `describe`, over all pairs; and mean effects on
    the label's margin, and on the top class's of the class-selective features, over the qualified pairs, and
    effect - control over the compared ones. Null on fewer than 20 images.

    Args:
      effects: the pairs that were blurred.
      known: features with enough active images.
      selective: the class-selective ones among them.
      n_bootstrap, seed: of the intervals, which resample images.
    """
    of_known = np.isin(effects.features, known)
    axes, everything = effects.falls.axes, np.ones(len(effects.features), bool)
    placements: dict[str, dict[str, Any]] = {name: {} for name in axes["placement"]}
    for placement in axes["placement"]:
        for area in axes["area"]:
            at = {"placement": placement, "area": area}
            chosen = _chosen(effects, of_known, placement, area)
            numbers = {k: _known(v) for k, v in describe(effects, everything, placement, area).items()}
            for target, features in (("label", known), ("top_class", selective)):
                margin = effects.deltas.select(**at, target=target, measure="margin")
                effect, control = (margin.at(kind=k).astype(np.float64) for k in KINDS)
                for name, values, pairs in (
                    ("mean_delta", effect, chosen.qualified),
                    ("effect_minus_control", effect - control, chosen.compared),
                ):
                    numbers |= _mean(
                        f"{name}_{target}_margin", effects, values, pairs, features, n_bootstrap, seed
                    )
            placements[placement][area] = numbers
    own = placements[OWN["placement"]][OWN["area"]]
    return {
        "n_features": len(np.unique(effects.features[of_known])),
        "n_images": len(np.unique(effects.images[of_known])),
        "n_forward_passes": effects.n_passes,
        "fall_median": own["fall_median"],
        "qualified_share": own["share_qualified"],
        "control_fall_median": own["control_fall_median"],
        "placements": placements,
    }


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _mean(name, effects, values, pairs, features, n_bootstrap, seed) -> dict[str, Any]:
    """NAME and NAME_ci95 over the pairs whose value is known; None on fewer than 20 images."""
    pairs = pairs & np.isin(effects.features, features) & ~np.isnan(values)
    images, found = effects.images[pairs], None
    if len(np.unique(images)) >= MIN_ACTIVE:
        alike, rng = np.zeros(len(images), int), np.random.default_rng([seed, 3])  # every pair counts once
        found = statistics.mean_over_features(values[pairs], alike, images, n_bootstrap, rng)
    mean, ends = (None, None) if found is None else (found[0], [*found[1:]])
    return {name: mean, f"{name}_ci95": ends}
