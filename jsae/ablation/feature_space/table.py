"""feature_space.parquet: what removing each chosen feature does, beside its controls, with intervals.

Rows of the target "own_class" are those of the top class over the images of that class alone: the margin of a
class that is absent says little. Means over fewer than 20 test images are null. Benjamini-Hochberg runs over
the features of one kind of row, i.e. for each (scope, target, measure) by itself.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jsae.ablation import rows
from jsae.ablation.effects import MEASURES, TARGETS, Named
from jsae.ablation.feature_space.pairs import SCOPES, FeatureEffects
from jsae.ablation.statistics import BOOTSTRAP, MIN_ACTIVE
from jsae.tables import Column, Table

OWN_CLASS = "own_class"
ALL_TARGETS = (*TARGETS, OWN_CLASS)
CONTROLS = {
    "direction": "what is there along a direction drawn from the activations' covariance, of equal norm",
    "auroc": "what is there along a direction of nearest train AUROC for the top class, of equal norm",
    "feature": "another feature active on the image, of nearest contribution",
}


def _columns_of(kind: str, control: str) -> tuple[Column, ...]:
    """The columns of a control."""
    return (
        Column(f"n_control_{kind}", pa.int32(), f"images of n_active that have this control: {control}"),
        Column(f"control_{kind}_mean_delta", pa.float64(), f"mean effect of removing {control}"),
        *rows.comparison(f"effect_minus_{kind}", f"_{kind}", control),
        Column(f"control_{kind}_flip_rate", pa.float64(), f"flip_rate of removing {control}"),
    )


TABLE = Table(
    "feature_space",
    (
        Column("feature", pa.int32(), "SAE feature"),
        Column(
            "scope",
            pa.string(),
            "map: removed at every grid position; peak: at the cell of its largest activation only",
        ),
        Column(
            "target",
            pa.string(),
            "which class: label, the clean prediction, the feature's top class on train; own_class: the top "
            "class, over images of that class only",
        ),
        rows.MEASURE,
        Column("n_active", pa.int32(), "test images on which the feature fires; all means are over these"),
        Column("share_active", pa.float64(), "n_active divided by the number of test images"),
        Column(
            "mean_delta",
            pa.float64(),
            f"mean of ablated minus clean; null with fewer than {MIN_ACTIVE} active images",
            interval=BOOTSTRAP,
        ),
        Column("flip_rate", pa.float64(), "share of active images whose prediction changes"),
        Column("control_auroc_train", pa.float64(), "train AUROC of the direction of control_auroc"),
        *(column for kind, control in CONTROLS.items() for column in _columns_of(kind, control)),
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
        mean = rows.Means(n_bootstrap, np.random.default_rng([seed, int(feature)]), MIN_ACTIVE)
        of_feature = effects.features == feature
        of_own_class = of_feature & effects.own_class
        parts = (
            _numbers(effects, of_feature, effects.deltas, mean),
            _numbers(effects, of_own_class, effects.deltas.only("target", "top_class"), mean),
        )
        joined = {name: np.concatenate([part[name] for part in parts], axis=1) for name in parts[0]}
        of_features.append(joined | {"feature": int(feature)})
    axes = {"scope": SCOPES, "target": ALL_TARGETS, "measure": MEASURES}
    return rows.long_columns(TABLE.names, of_features, axes)


def _numbers(
    effects: FeatureEffects, of_rows: np.ndarray, all_deltas: Named, mean: rows.Means
) -> dict[str, np.ndarray]:
    """Columns over some rows, bool [M], each [scope, target, measure], for the targets of `all_deltas`."""
    n = int(of_rows.sum())
    deltas, flips, has = (each.rows(of_rows) for each in (all_deltas, effects.flips, effects.has))
    effect = deltas.at(kind="effect").astype(np.float64)
    auroc = effects.control_auroc[of_rows]
    found: dict[str, Any] = {
        "n_active": n,
        "share_active": n / effects.n_images if effects.n_images else np.nan,
        **mean.with_interval("mean_delta", effect),
        "flip_rate": mean.of(flips.at(kind="effect"))[:, None, None],
        "control_auroc_train": auroc[0] if len(auroc) else np.nan,
    }
    for kind in CONTROLS:
        known, control = has.at(kind=kind), deltas.at(kind=kind).astype(np.float64)
        difference = (effect - control)[known]
        found |= {
            f"n_control_{kind}": int(known.sum()),
            f"control_{kind}_mean_delta": mean.of(control[known]),
            **mean.compared(f"effect_minus_{kind}", f"_{kind}", difference),
            f"control_{kind}_flip_rate": mean.of(flips.at(kind=kind)[known])[:, None, None],
        }
    shape = effect.shape[1:]
    return {name: np.broadcast_to(value, shape) for name, value in found.items()}
