"""sigma_sweep.parquet: the effect of a filled patch against the fill, the blur's sigma and the patch's size.

The strongest blur is not the fairest one: the sweep says from where on an effect stays, and whether it is the
blur's or the patch's. Each setting is `input_space.measure` on the same (feature, image) pairs, with its own
matched control patch; effects are on the margin of the feature's top class.
"""

import itertools
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from jsae.ablation import fills, input_space, statistics
from jsae.ablation.feature_space import MEASURES, TARGETS
from jsae.analysis.tables import schema

_WHERE = (TARGETS.index("top_class"), MEASURES.index("margin"))
_LEAST = "; null if the feature fires on fewer than 20 test images"


def _interval(name: str, doc: str) -> list[tuple]:
    ends = (("_low", "lower end of its 95% bootstrap interval over images"), ("_high", "upper end of it"))
    return [(name, pa.float64(), doc + _LEAST), *((name + end, pa.float64(), what) for end, what in ends)]


SCHEMA = schema(
    ("feature", pa.int32(), "SAE feature"),
    ("fill", pa.string(), "what takes the patch's place: blur, the image's mean colour, its cells shuffled"),
    ("sigma_px", pa.float64(), "of the blur, in pixels of the model input; null for the other fills"),
    ("size_px", pa.int32(), "side of the patch around the peak cell, in pixels of the model input"),
    ("n_images", pa.int32(), "test images looked at, the same for all settings"),
    *_interval("delta_margin", "mean of filled minus clean, margin of the feature's top class"),
    *_interval("control_delta_margin", "the same when the matched patch is filled, where there is one"),
    *_interval("effect_minus_control", "mean over images of effect - control effect"),
    *_interval("feature_fall", "mean relative fall of the feature at its peak cell; 1: gone"),
    ("control_feature_fall", pa.float64(), "mean relative fall when the matched patch is filled"),
)


def settings(kinds, sigmas_px, sizes_cells) -> list[dict]:
    """What is swept over, a dict of fill, sigma_px and size_cells each; sigma varies for blur only.

    Raises ValueError for an unknown fill.
    """
    found = []
    for fill, size in itertools.product(kinds, sizes_cells):
        fills.check(fill)
        for sigma in sigmas_px if fill == "blur" else (0.0,):
            found.append({"fill": fill, "sigma_px": float(sigma), "size_cells": int(size)})
    return found


def measure(
    points: list[dict],
    *arguments,
    stride_px: int,
    n_active: dict,
    n_bootstrap: int,
    seed: int,
    keep: Callable = lambda name, make: make,
    **others,
):
    """Columns of SCHEMA, one row a (feature, setting).

    Args:
      points: from `settings`.
      arguments, stride_px, others: of `input_space.measure`.
      n_active: feature -> test images on which it fires.
      n_bootstrap, seed: of the intervals.
      keep: (name, make) -> what is called in place of `make`, which finds the effects of one setting.
    """
    rows = []
    for point in points:
        name = "fill-{fill}-{sigma_px}-{size_cells}".format(**point)
        effects = keep(name, input_space.measure)(
            *arguments, stride_px=stride_px, seed=seed, **point, **others
        )
        for feature in np.unique(effects.features):
            row = {
                "feature": int(feature),
                "fill": point["fill"],
                "sigma_px": point["sigma_px"] if point["fill"] == "blur" else np.nan,
                "size_px": point["size_cells"] * stride_px,
            }
            rng = np.random.default_rng([seed, int(feature), 7])
            stated = n_active.get(int(feature), 0) >= statistics.MIN_ACTIVE
            rows.append(row | _numbers(effects, effects.features == feature, stated, n_bootstrap, rng))
    return {
        name: [row[name] for row in rows] if name == "fill" else np.array([row[name] for row in rows])
        for name in SCHEMA.names
    }


def _numbers(
    effects: input_space.InputEffects, mine: np.ndarray, stated: bool, n_bootstrap: int, rng
) -> dict:
    own, control = effects.deltas[mine][:, :, *_WHERE].astype(np.float64).T
    falls, matched = effects.falls[mine].astype(np.float64), effects.matched[mine]
    values = {
        "delta_margin": own,
        "control_delta_margin": control[matched],
        "effect_minus_control": (own - control)[matched],
        "feature_fall": falls[:, 0][~np.isnan(falls[:, 0])],
    }
    row = {"n_images": int(mine.sum())}
    for name, each in values.items():
        found = statistics.mean_interval(each if stated else each[:0], n_bootstrap, rng)
        row |= {name + end: float(number) for end, number in zip(("", "_low", "_high"), found, strict=True)}
    other = falls[:, 1][~np.isnan(falls[:, 1])]
    return row | {"control_feature_fall": float(other.mean()) if len(other) and stated else np.nan}


def first_of_each(features: np.ndarray, kept: list[int], n_images: int) -> np.ndarray:
    """Rows of at most n_images pairs of each kept feature, in order; features [M]."""
    found = [np.flatnonzero(features == feature)[:n_images] for feature in kept]
    return np.concatenate(found) if found else np.zeros(0, np.int64)
