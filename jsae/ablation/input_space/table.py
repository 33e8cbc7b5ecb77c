"""input_space.parquet: what blurring the image under each chosen feature does, beside its control.

Effects of features that fire on fewer than 20 test images are null. Benjamini-Hochberg runs over the features
of one kind of row, i.e. for each (target, measure) by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jsae.ablation import rows
from jsae.ablation.effects import MEASURES, TARGETS
from jsae.ablation.input_space.patches import InputEffects
from jsae.ablation.statistics import BOOTSTRAP, MIN_ACTIVE
from jsae.tables import Column, Table

_PATCH = "the matched patch"

TABLE = Table(
    "input_space",
    (
        Column("feature", pa.int32(), "SAE feature"),
        *rows.KEYS,
        Column(
            "n_images",
            pa.int32(),
            "test images that were blurred: a seeded random subset of those on which the feature fires",
        ),
        Column(
            "mean_delta",
            pa.float64(),
            f"mean of blurred minus clean; null if the feature fires on fewer than {MIN_ACTIVE} test images",
            interval=BOOTSTRAP,
        ),
        Column(
            "control_mean_delta",
            pa.float64(),
            "mean effect of blurring the matched patch, over images that have one",
        ),
        *rows.comparison("effect_minus_control", "", _PATCH),
        Column(
            "feature_fall",
            pa.float64(),
            "mean relative fall of the feature at its peak cell when blurred there; 1: gone",
        ),
        Column("control_feature_fall", pa.float64(), "the same when the matched patch is blurred"),
        Column(
            "energy_matched_share",
            pa.float64(),
            "share of images whose matched patch has a blur energy within 20%",
        ),
        Column(
            "control_on_foreground_share",
            pa.float64(),
            "share of images whose matched patch is known to lie on the foreground; else it is anywhere",
        ),
        Column("flip_rate", pa.float64(), "share of images whose prediction changes"),
        Column("control_flip_rate", pa.float64(), f"the same for {_PATCH}"),
    ),
)


def columns(
    effects: InputEffects, features: Sequence[int], n_active: Mapping[int, int], n_bootstrap: int, seed: int
) -> dict[str, Any]:
    """Columns of `TABLE`, one row per (feature, target, measure); unknown numbers NaN.

    Args:
      effects: the pairs that were blurred.
      features: the ablated features, in order.
      n_active: feature -> number of test images on which it fires; below 20 its effects are null.
      n_bootstrap, seed: of the intervals.
    """
    of_features = []
    for feature in features:
        of_feature = effects.features == feature
        matched = effects.matched[of_feature]
        deltas = effects.deltas.rows(of_feature)
        flips, falls = effects.flips.rows(of_feature), effects.falls.rows(of_feature)
        effect, control = (deltas.at(kind=kind).astype(np.float64) for kind in ("effect", "patch"))
        least = 1 if n_active.get(int(feature), 0) >= MIN_ACTIVE else np.inf
        mean = rows.Means(n_bootstrap, np.random.default_rng([seed, int(feature), 1]), least)
        of_features.append(
            {
                "feature": int(feature),
                "n_images": int(of_feature.sum()),
                **mean.with_interval("mean_delta", effect),
                **mean.compared("effect_minus_control", "", (effect - control)[matched]),
                "control_mean_delta": mean.of(control[matched]),
                "flip_rate": mean.of(flips.at(kind="effect")),
                "control_flip_rate": mean.of(flips.at(kind="patch")[matched]),
                "feature_fall": rows.mean_of_known(falls.at(kind="effect")),
                "control_feature_fall": rows.mean_of_known(falls.at(kind="patch")),
                "energy_matched_share": rows.mean_of_known(effects.energy_matched[of_feature]),
                "control_on_foreground_share": rows.mean_of_known(effects.on_foreground[of_feature]),
            }
        )
    return rows.long_columns(TABLE.names, of_features, {"target": TARGETS, "measure": MEASURES})
