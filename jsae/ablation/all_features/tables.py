"""atlas.parquet and atlas_classes.parquet: the pass of `atlas_survey` as documented columns.

Columns are named SCOPE_TARGET_MEASURE (atlas.parquet) and TARGET_MEASURE (atlas_classes.parquet, scope map).
Intervals of the atlas are mean -+ t_(n-1) times the standard error over the feature's active images; those
of the other tables of this stage are bootstrapped.
"""

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation import statistics
from jsae.ablation.atlas_survey import SCOPES, STATISTICS, AtlasEffects
from jsae.ablation.feature_space import MEASURES, TARGETS
from jsae.analysis.tables import known_class, schema

_SCOPES = {
    "map": "removed at every position, minus the clean image",
    "peak": "removed at the cell of its peak only, minus the clean image",
    "keep_only": "kept while all others are removed, minus all features removed",
}
_TARGETS = {
    "label": "the label",
    "prediction": "the clean prediction",
    "top_class": "the feature's top class on train",
}
_MEASURES = {
    "logit": "logit",
    "margin": "logit minus the largest other one",
    "confidence": "softmax",
    "log_confidence": "log-softmax",
}
_ENDS = {"_low": "lower end of its 95% t interval over images", "_high": "upper end of it"}
_MARGIN_OF_LABEL = STATISTICS.index(("label", "margin"))


def _with_interval(name: str, doc: str) -> list[tuple]:
    return [(name, pa.float64(), doc), *((name + end, pa.float64(), what) for end, what in _ENDS.items())]


def _flips(scope: str) -> str:
    if scope == "keep_only":
        return "share of active images not predicted as they are clean, with this feature alone kept"
    return "share of active images whose prediction changes"


ATLAS = schema(
    ("feature", pa.int32(), "SAE feature"),
    ("top_class", pa.int32(), "class with the largest class mean on train; null if it has none"),
    ("n_active", pa.int32(), "test images on which the feature fires; all means are over these"),
    ("share_active", pa.float64(), "n_active divided by the number of test images"),
    *(
        column
        for scope, what in _SCOPES.items()
        for name, doc in [
            *(
                (f"{target}_{measure}", f"mean of the {_MEASURES[measure]} of {_TARGETS[target]}: {what}")
                for target in TARGETS
                for measure in MEASURES
            ),
            ("flip_rate", f"{_flips(scope)}: {what.split(',')[0]}"),
        ]
        for column in _with_interval(f"{scope}_{name}", f"{doc}; null with fewer than 20 active images")
    ),
    *_with_interval(
        "attribution_margin",
        "mean of -a * (w . gradient of the label's margin): map_label_margin to first order",
    ),
)

ATLAS_CLASSES = schema(
    ("feature", pa.int32(), "SAE feature; one row for each class on whose images it fires"),
    ("class", pa.int32(), "label of the images"),
    ("n_images", pa.int32(), "test images of the class; all means are over these, 0 where it is silent"),
    ("n_active", pa.int32(), "those on which the feature fires"),
    *(
        column
        for name, doc in [
            *(
                (f"{target}_{measure}", f"mean change of the {_MEASURES[measure]} of {_TARGETS[target]}")
                for target in TARGETS
                for measure in MEASURES
            ),
            ("flip_rate", "share of images whose prediction changes"),
        ]
        for column in (
            (
                name,
                pa.float32(),
                f"{doc} when the feature is removed; null if it fires on fewer than 20 test images",
            ),
            (f"{name}_se", pa.float32(), "its standard error over the images of the class"),
        )
    ),
)


def atlas_columns(effects: AtlasEffects, top_classes) -> dict:
    """Columns of `ATLAS`, one row for every feature; unknown numbers NaN."""
    n = effects.by_feature["map"][0]
    stated = n >= statistics.MIN_ACTIVE
    columns = {
        "feature": np.arange(len(n)),
        "top_class": known_class(top_classes),
        "n_active": n.astype(np.int64),
        "share_active": n / effects.n_images if effects.n_images else np.full(len(n), np.nan),
    }

    def add(name, mean, m2):
        low, high = metrics.t_interval(n, mean, m2)
        if name.endswith("flip_rate"):  # a share; Student's interval of a small one reaches below 0
            low, high = np.clip(low, 0, 1), np.clip(high, 0, 1)
        for end, value in (("", mean), ("_low", low), ("_high", high)):
            columns[name + end] = np.where(stated, value, np.nan)

    for scope in SCOPES:
        _, means, m2 = effects.by_feature[scope]
        for i, name in enumerate(_names()):
            add(f"{scope}_{name}", means[i], m2[i])
    add("attribution_margin", *effects.attribution[1:])
    return columns


def class_columns(effects: AtlasEffects) -> dict:
    """Columns of `ATLAS_CLASSES`; a class's silent images count with an effect of 0."""
    n_active, mean, m2 = effects.by_class  # [L, F], [L, statistic, F]
    classes, features = np.nonzero(n_active > 0)
    order = np.lexsort((classes, features))
    classes, features = classes[order], features[order]
    active, images = n_active[classes, features], effects.class_count[classes].astype(np.float64)
    stated = effects.by_feature["map"][0][features] >= statistics.MIN_ACTIVE
    columns = {
        "feature": features,
        "class": classes,
        "n_images": effects.class_count[classes],
        "n_active": active.astype(np.int64),
    }
    for i, name in enumerate(_names()):
        own = (active, mean[classes, i, features], m2[classes, i, features])
        _, all_mean, all_m2 = metrics.join_moments(own, (images - active, 0.0, 0.0))
        columns[name] = np.where(stated, all_mean, np.nan)
        columns[f"{name}_se"] = np.where(stated, metrics.standard_error(images, all_m2), np.nan)
    return columns


def attribution_agreement(effects: AtlasEffects, n_bootstrap: int, seed: int) -> dict:
    """Spearman over features of attribution and effect on the label's margin, interval over features."""
    n, means, _ = effects.by_feature["map"]
    stated = n >= statistics.MIN_ACTIVE
    predicted, measured = effects.attribution[1][stated], means[_MARGIN_OF_LABEL][stated]
    rho = metrics.spearman(predicted, measured)
    interval = None
    if rho is not None:
        rng = np.random.default_rng([seed, 5])
        interval = statistics.spearman_interval(predicted, measured, n_bootstrap, rng)
    return {"spearman": rho, "spearman_ci95": list(interval) if interval else None}


def _names() -> list[str]:
    """Column stems in the order of STATISTICS."""
    return [f"{target}_{measure}" if target else "flip_rate" for target, measure in STATISTICS]
