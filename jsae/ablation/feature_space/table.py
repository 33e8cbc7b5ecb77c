"""feature_space.parquet: what removing each chosen feature does, beside its controls, with intervals.

Effects of features that fire on fewer than 20 test images are null. Benjamini-Hochberg runs over the features
of one kind of row, i.e. for each (scope, target, measure) by itself.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jsae.ablation import rows
from jsae.ablation.effects import MEASURES, TARGETS
from jsae.ablation.feature_space.pairs import KINDS, SCOPES, FeatureEffects
from jsae.ablation.statistics import BOOTSTRAP, MIN_ACTIVE
from jsae.tables import Column, Table

_DIRECTION = "a direction of equal norm drawn from the activations' covariance"
_FEATURE = "another feature active on the image, of nearest contribution"

TABLE = Table(
    "feature_space",
    (
        Column("feature", pa.int32(), "SAE feature"),
        Column(
            "scope",
            pa.string(),
            "map: removed at every grid position; peak: at the cell of its largest activation only",
        ),
        *rows.KEYS,
        Column("n_active", pa.int32(), "test images on which the feature fires; all means are over these"),
        Column("share_active", pa.float64(), "n_active divided by the number of test images"),
        Column(
            "mean_delta",
            pa.float64(),
            f"mean of ablated minus clean; null with fewer than {MIN_ACTIVE} active images",
            interval=BOOTSTRAP,
        ),
        Column("control_direction_mean_delta", pa.float64(), f"mean effect of removing {_DIRECTION}"),
        *rows.comparison("effect_minus_direction", "_direction", _DIRECTION),
        Column(
            "n_control_feature",
            pa.int32(),
            "active images on which another feature fires; the feature control's pairs",
        ),
        Column(
            "control_feature_mean_delta",
            pa.float64(),
            f"mean effect of removing {_FEATURE}, over n_control_feature images",
        ),
        *rows.comparison("effect_minus_feature", "_feature", _FEATURE),
        Column("flip_rate", pa.float64(), "share of active images whose prediction changes"),
        Column("control_direction_flip_rate", pa.float64(), f"the same for {_DIRECTION}"),
        Column("control_feature_flip_rate", pa.float64(), f"the same for {_FEATURE}"),
    ),
)


def columns(effects: FeatureEffects, features: Sequence[int], n_bootstrap: int, seed: int) -> dict[str, Any]:
    """Columns of `TABLE`, one row per (feature, scope, target, measure); unknown numbers NaN.

    Args:
      effects: all pairs.
      features: the ablated features, in order.
      n_bootstrap, seed: of the intervals.
    """
    of_features = []
    for feature in features:
        of_feature = effects.features == feature
        matched = effects.matched[of_feature]
        deltas, flips = effects.deltas.rows(of_feature), effects.flips.rows(of_feature)
        n, rng = int(of_feature.sum()), np.random.default_rng([seed, int(feature)])
        effect, direction, other = (deltas.at(kind=kind).astype(np.float64) for kind in KINDS)
        mean = rows.Means(n_bootstrap, rng, MIN_ACTIVE)
        of_features.append(
            {
                "feature": int(feature),
                "n_active": n,
                "n_control_feature": int(matched.sum()),
                "share_active": n / effects.n_images if effects.n_images else np.nan,
                **mean.with_interval("mean_delta", effect),
                **mean.compared("effect_minus_direction", "_direction", effect - direction),
                **mean.compared("effect_minus_feature", "_feature", (effect - other)[matched]),
                "control_direction_mean_delta": mean.of(direction),
                "control_feature_mean_delta": mean.of(other[matched]),
                "flip_rate": _per_scope(mean.of(flips.at(kind="effect"))),
                "control_direction_flip_rate": _per_scope(mean.of(flips.at(kind="direction"))),
                "control_feature_flip_rate": _per_scope(mean.of(flips.at(kind="feature")[matched])),
            }
        )
    axes = {"scope": SCOPES, "target": TARGETS, "measure": MEASURES}
    return rows.long_columns(TABLE.names, of_features, axes)


def _per_scope(rates: np.ndarray) -> np.ndarray:
    """Numbers [scope] for every target and measure."""
    return rates[:, None, None]
