"""The numbers of summary.json on single features, each mean with its interval over images."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from jsae.ablation import statistics
from jsae.ablation.effects import Named


def headline(
    features: np.ndarray,
    images: np.ndarray,
    deltas: Named,
    known: Sequence[int],
    selective: Sequence[int],
    n_bootstrap: int,
    seed: int,
) -> dict[str, Any]:
    """The numbers of one space, each mean with its `_ci95`; None where there is none.

    Args:
      features, images: int [M], the pairs.
      deltas: [M, kind, target, measure]; the kind "effect", its control "direction" or "patch", and in
        feature space the matched "feature".
      known: features with enough active images; the means are over these.
      selective: the class-selective ones among them.
      n_bootstrap, seed: of the intervals, which resample images.
    """
    chosen = np.isin(features, known)
    numbers = {"n_features": len(np.unique(features[chosen])), "n_images": len(np.unique(images[chosen]))}
    kinds = deltas.axes["kind"]
    control = "patch" if "patch" in kinds else "direction"

    def add(name, values, rows):
        found = None
        if values is not None:
            rng = np.random.default_rng([seed, 3])
            found = statistics.mean_over_features(
                values[rows], features[rows], images[rows], n_bootstrap, rng
            )
        numbers[name], numbers[f"{name}_ci95"] = (None, None) if found is None else (found[0], [*found[1:]])

    def margin(kind, target):
        return deltas.at(kind=kind, target=target, measure="margin")

    for measure in ("logit", "margin", "confidence"):
        add(f"mean_delta_{measure}", deltas.at(kind="effect", target="label", measure=measure), chosen)
    add("control_mean_delta_margin", margin(control, "label"), chosen)
    of_feature = margin("feature", "label") if "feature" in kinds else None
    add("control_feature_mean_delta_margin", of_feature, chosen)
    difference = margin("effect", "top_class").astype(np.float64) - margin(control, "top_class")
    add("mean_effect_minus_control_margin", difference, np.isin(features, selective))
    return numbers
