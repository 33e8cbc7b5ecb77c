"""all_features.parquet: what removing each of all features does, one row per feature.

Columns are named SCOPE_TARGET_MEASURE. Intervals are mean -+ t_(n-1) times the standard error over the
feature's active images; those of the other tables of this stage are bootstrapped.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation import statistics
from jsae.ablation.all_features.totals import SCOPES, STATISTICS, AllFeatureEffects, own_class_margin
from jsae.ablation.statistics import MIN_ACTIVE
from jsae.tables import Column, Table, interval, known_class

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
NUMBERS = {  # of STATISTICS but the flips: what they are
    f"{target}_{measure}": f"the {what} of {of}"
    for target, of in _TARGETS.items()
    for measure, what in _MEASURES.items()
}
_T_INTERVAL = "95% t interval over images"


def _columns_of(scope: str) -> list[Column]:
    """The statistics of a scope, each with its interval."""
    what = _SCOPES[scope]
    docs = {name: f"mean of {number}: {what}" for name, number in NUMBERS.items()}
    flips = "share of active images whose prediction changes"
    if scope == "keep_only":
        flips = "share of active images not predicted as they are clean, with this feature alone kept"
    docs["flip_rate"] = f"{flips}: {what.split(',')[0]}"
    return [
        Column(
            f"{scope}_{name}",
            pa.float64(),
            f"{doc}; null with fewer than {MIN_ACTIVE} active images",
            interval=_T_INTERVAL,
        )
        for name, doc in docs.items()
    ]


TABLE = Table(
    "all_features",
    (
        Column("feature", pa.int32(), "SAE feature"),
        Column("top_class", pa.int32(), "class with the largest class mean on train; null if it has none"),
        Column("n_active", pa.int32(), "test images on which the feature fires; all means are over these"),
        Column("share_active", pa.float64(), "n_active divided by the number of test images"),
        Column("n_active_own_class", pa.int32(), "those of n_active whose label is top_class"),
        Column(
            "own_class_margin",
            pa.float64(),
            "mean change of the margin of top_class over the n_active_own_class images when the feature is "
            f"removed at every position; null with fewer than {MIN_ACTIVE} of them",
            interval=_T_INTERVAL,
        ),
        *(column for scope in SCOPES for column in _columns_of(scope)),
        Column(
            "attribution_margin",
            pa.float64(),
            "mean of -a * (w . gradient of the label's margin): map_label_margin to first order",
            interval=_T_INTERVAL,
        ),
    ),
)


def columns(effects: AllFeatureEffects, top_classes: np.ndarray) -> dict[str, Any]:
    """Columns of `TABLE`, one row per feature; unknown numbers NaN."""
    n = effects.by_feature["map"].n
    own_class = own_class_margin(effects, top_classes)

    def with_interval(name, mean, m2, n=n):
        ends = metrics.t_interval(n, mean, m2)
        if name.endswith("flip_rate"):  # a share; Student's interval of a small one reaches below 0
            ends = np.clip(ends, 0, 1)
        return interval(name, *(np.where(n >= MIN_ACTIVE, value, np.nan) for value in (mean, *ends)))

    found = {
        "feature": np.arange(len(n)),
        "top_class": known_class(top_classes),
        "n_active": n.astype(np.int64),
        "share_active": n / effects.n_images if effects.n_images else np.full(len(n), np.nan),
        "n_active_own_class": own_class.n.astype(np.int64),
        **with_interval("own_class_margin", own_class.mean, own_class.m2, own_class.n),
        **with_interval("attribution_margin", effects.attribution.mean, effects.attribution.m2),
    }
    for scope, moments in effects.by_feature.items():
        for name, mean, m2 in zip(STATISTICS, moments.mean, moments.m2, strict=True):
            found |= with_interval(f"{scope}_{name}", mean, m2)
    return found


def attribution_agreement(effects: AllFeatureEffects, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """Spearman over features of attribution and effect on the label's margin, interval over features."""
    moments = effects.by_feature["map"]
    known = moments.n >= MIN_ACTIVE
    predicted = effects.attribution.mean[known]
    measured = moments.mean[STATISTICS.index("label_margin")][known]
    rho = metrics.spearman(predicted, measured)
    ends = None
    if rho is not None:
        rng = np.random.default_rng([seed, 5])
        ends = statistics.spearman_interval(predicted, measured, n_bootstrap, rng)
    return {"spearman": rho, "spearman_ci95": list(ends) if ends else None}
