"""all_features_by_class.parquet: what removing a feature does to the images of each class it fires on.

Columns are named TARGET_MEASURE; the scope is "map". A class's silent images count with an effect of 0.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation.all_features.table import NUMBERS
from jsae.ablation.all_features.totals import STATISTICS, AllFeatureEffects
from jsae.ablation.statistics import MIN_ACTIVE
from jsae.tables import Column, Table

_DOCS = {name: f"mean change of {number}" for name, number in NUMBERS.items()}
_DOCS["flip_rate"] = "share of images whose prediction changes"


def _columns_of(name: str, doc: str) -> tuple[Column, Column]:
    """A statistic and its standard error."""
    when = f"when the feature is removed; null if it fires on fewer than {MIN_ACTIVE} test images"
    return (
        Column(name, pa.float32(), f"{doc} {when}"),
        Column(f"{name}_se", pa.float32(), "its standard error over the images of the class"),
    )


TABLE = Table(
    "all_features_by_class",
    (
        Column("feature", pa.int32(), "SAE feature; one row for each class on whose images it fires"),
        Column("class", pa.int32(), "label of the images"),
        Column(
            "n_images",
            pa.int32(),
            "test images of the class; all means are over these, 0 where it is silent",
        ),
        Column("n_active", pa.int32(), "those on which the feature fires"),
        *(column for name, doc in _DOCS.items() for column in _columns_of(name, doc)),
    ),
)


def columns(effects: AllFeatureEffects) -> dict[str, Any]:
    """Columns of `TABLE`; unknown numbers NaN."""
    moments = effects.by_class  # n [L, F], mean and m2 [L, statistic, F]
    features, classes = np.nonzero(moments.n.T > 0)
    active, images = moments.n[classes, features], effects.class_count[classes].astype(np.float64)
    known = effects.by_feature["map"].n[features] >= MIN_ACTIVE
    found = {
        "feature": features,
        "class": classes,
        "n_images": effects.class_count[classes],
        "n_active": active.astype(np.int64),
    }
    for i, name in enumerate(STATISTICS):
        of_active = (active, moments.mean[classes, i, features], moments.m2[classes, i, features])
        _, mean, m2 = metrics.join_moments(of_active, (images - active, 0.0, 0.0))
        found[name] = np.where(known, mean, np.nan)
        found[f"{name}_se"] = np.where(known, metrics.standard_error(images, m2), np.nan)
    return found
