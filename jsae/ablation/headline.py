"""The numbers of summary.json on single features.

Feature space leads with what removing a class-selective feature does to its class's margin on images of that
class, over all such features, without an interval: one over images of one network is not the uncertainty of
the claim. Beside its controls stand the features that were ablated; there the intervals are over images and
of this network only.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jsae.ablation import statistics
from jsae.ablation.all_features.totals import STATISTICS, AllFeatureEffects, own_class_margin
from jsae.ablation.choice import Chosen
from jsae.ablation.feature_space.pairs import KINDS, FeatureEffects


def of_feature_space(
    effects: FeatureEffects,
    everything: AllFeatureEffects,
    chosen: Chosen,
    n_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """The numbers of feature space; None where there is none.

    n_own_class, and mean and median over that many features of `own_class_margin` (the margin of the
    top class, images of that class on which the feature fires) and `label_margin` (all images on which it
    fires): all eligible class-selective features, of those with at least 20 such images. Where all features
    took forward passes, on few images, these are the class-selective ones among the ablated.

    The others are means over the ablated features, each with `_ci95`: of those with 20 active images the
    effects on the label and of their controls; of the class-selective ones with 20 active images of their
    class, `ablated_own_class_margin` and `own_class_minus_CONTROL_margin`.
    """
    features, images = effects.features, effects.images
    at_map = effects.deltas.select(scope="map")
    n_active = {f: int((features == f).sum()) for f in chosen.features}
    known = np.isin(features, [f for f, n in n_active.items() if n >= statistics.MIN_ACTIVE])
    n_own = {f: int((effects.own_class & (features == f)).sum()) for f in chosen.selective}
    own = effects.own_class & np.isin(features, [f for f, n in n_own.items() if n >= statistics.MIN_ACTIVE])
    numbers: dict[str, Any] = {
        "n_features": len(np.unique(features[known])),
        "n_images": len(np.unique(images[known])),
    }

    def add(name: str, values: np.ndarray, rows: np.ndarray) -> None:
        rng = np.random.default_rng([seed, 3])
        found = statistics.mean_over_features(values[rows], features[rows], images[rows], n_bootstrap, rng)
        numbers[name], numbers[f"{name}_ci95"] = (None, None) if found is None else (found[0], [*found[1:]])

    for measure in ("logit", "margin", "confidence"):
        add(f"mean_delta_{measure}", at_map.at(kind="effect", target="label", measure=measure), known)
    of_label = at_map.select(target="label", measure="margin")
    of_class = at_map.select(target="top_class", measure="margin")
    effect = of_class.at(kind="effect").astype(np.float64)
    add("ablated_own_class_margin", effect, own)
    for kind in KINDS[1:]:
        add(f"control_{kind}_mean_delta_margin", of_label.at(kind=kind), known)
        add(f"own_class_minus_{kind}_margin", effect - of_class.at(kind=kind), own)
    if everything.curves is None:  # forward passes, on few images
        found = {
            "own_class_margin": _feature_means(effect, features, own, chosen.selective),
            "label_margin": _feature_means(of_label.at(kind="effect"), features, known, chosen.selective),
        }
    else:
        all_images, of_own = everything.by_feature["map"], own_class_margin(everything, chosen.top_classes)
        of_each = {
            "own_class_margin": (of_own.n, of_own.mean),
            "label_margin": (all_images.n, all_images.mean[STATISTICS.index("label_margin")]),
        }
        found = {
            name: np.where(n >= statistics.MIN_ACTIVE, mean, np.nan)[chosen.all_selective]
            for name, (n, mean) in of_each.items()
        }
    numbers["n_own_class"] = int(np.isfinite(found["own_class_margin"]).sum())
    for name, values in found.items():
        values = values[np.isfinite(values)]
        for statistic in (np.mean, np.median):
            numbers[f"{name}_{statistic.__name__}"] = float(statistic(values)) if len(values) else None
    return numbers


def _feature_means(
    values: np.ndarray, features: np.ndarray, rows: np.ndarray, chosen: Sequence[int]
) -> np.ndarray:
    """Mean over the rows of each chosen feature [K]; NaN without any."""
    of_each = (values[rows & (features == feature)] for feature in chosen)
    return np.array([each.mean() if len(each) else np.nan for each in of_each], np.float64)
