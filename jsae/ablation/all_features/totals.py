"""What removing every feature from every image does: the numbers that both ways of computing it arrive at.

Scopes, effects with the feature changed minus without:

    map        removed at every position                     against the clean image
    peak       removed at the cell of its peak               against the clean image
    keep_only  every other feature removed, the error kept   against all features removed (sufficiency)
"""

import dataclasses
from typing import Any

import numpy as np

from jsae import metrics
from jsae.ablation import statistics
from jsae.ablation.all_features.closed_form import EffectMoments
from jsae.ablation.all_features.cumulative import Curves
from jsae.ablation.effects import MEASURES, TARGETS
from jsae.ablation.splice import known

SCOPES = ("map", "peak", "keep_only")
STATISTICS = (*(f"{target}_{measure}" for target in TARGETS for measure in MEASURES), "flip_rate")
MARGINS = ("clean", "all_removed")


@dataclasses.dataclass(frozen=True)
class AllFeatureEffects:
    """Effects of every feature; moments are in float64, NaN where a measure does not exist.

    Attributes:
      by_class: of the scope map over active images of each class: n [L, F], mean and m2 [L, statistic, F].
      by_feature: scope -> over all active images: n [F], mean and m2 [statistic, F].
      attribution: of -a * (w . gradient of the label's margin), the first-order effect of removing the
        feature on that margin, over active images: n, mean and m2 [F].
      curves: of each image, features removed one after the other; None where they were not.
      class_count: images of each class, [L].
      n_images: images with a label.
      n_guarded: scope -> pairs computed directly.
      margins: mean over images of the label's margin, by MARGINS.
    """

    by_class: EffectMoments
    by_feature: dict[str, EffectMoments]
    attribution: EffectMoments
    curves: Curves | None
    class_count: np.ndarray
    n_images: int
    n_guarded: dict[str, int]
    margins: dict[str, float]


def no_moments(n_features: int, *groups: int) -> EffectMoments:
    """Moments of nothing: n [groups, F], mean and m2 [groups, statistic, F]."""
    shape = (*groups, len(STATISTICS), n_features)
    return EffectMoments(np.zeros((*groups, n_features)), np.zeros(shape), np.zeros(shape))


def joined(a: EffectMoments, b: EffectMoments) -> EffectMoments:
    """Moments of two disjoint sets of images, n [..., F], mean and m2 [..., statistic, F], in float64."""
    n, mean, m2 = metrics.join_moments((a.n[..., None, :], a.mean, a.m2), (b.n[..., None, :], b.mean, b.m2))
    return EffectMoments(n[..., 0, :], mean, m2)


def finished(
    *,
    by_class: EffectMoments,
    by_feature: dict[str, EffectMoments],
    attribution: EffectMoments,
    curves: Curves | None,
    labels: np.ndarray,
    top_classes: np.ndarray,
    n_guarded: dict[str, int],
    margins: np.ndarray,
) -> AllFeatureEffects:
    """The effects of a whole pass: classes joined, unknown numbers NaN, sums of margins divided.

    Args:
      by_class, attribution, curves, n_guarded: as in `AllFeatureEffects`.
      by_feature: without "map", which the classes make.
      labels: of the images, all known.
      top_classes: int [F], -1 for a feature without one.
      margins: sums over the images, in the order of MARGINS.
    """
    n_classes, n_features, n = len(by_class.n), len(top_classes), len(labels)
    of_all = no_moments(n_features)
    for each in zip(*by_class, strict=True):
        of_all = joined(of_all, EffectMoments(*each))
    by_feature = {"map": of_all} | by_feature
    _forget_unknown_tops(top_classes, by_class, *by_feature.values())
    if n_classes == 1:
        attribution = EffectMoments(attribution.n, *[np.full(n_features, np.nan)] * 2)
    return AllFeatureEffects(
        by_class=by_class,
        by_feature=by_feature,
        attribution=attribution,
        curves=curves,
        class_count=np.bincount(labels, minlength=n_classes),
        n_images=n,
        n_guarded=n_guarded,
        margins={name: sum_ / n if n else np.nan for name, sum_ in zip(MARGINS, margins, strict=True)},
    )


def own_class_margin(effects: AllFeatureEffects, top_classes: np.ndarray) -> EffectMoments:
    """Moments [F] of what removing a feature does to its top class's margin on images of that class.

    Over the images of the class on which it fires; n is 0 for a feature without a top class (-1).
    """
    known, statistic = top_classes >= 0, STATISTICS.index("top_class_margin")
    at = np.maximum(top_classes, 0), np.arange(len(top_classes))
    n, mean, m2 = (np.asarray(part) for part in effects.by_class)
    mean, m2 = (np.moveaxis(part, 1, 2)[at][:, statistic] for part in (mean, m2))
    return EffectMoments(np.where(known, n[at], 0), mean, m2)


def headline(effects: AllFeatureEffects) -> dict[str, Any]:
    """The stage's results: pairs of a feature and an image in the scope map, guarded ones over all scopes."""
    n_active = effects.by_feature["map"].n
    return {
        "n_pairs": effects.n_images * len(n_active),
        "n_active_pairs": int(n_active.sum()),
        "n_guarded": sum(effects.n_guarded.values()),
        "n_features": int((n_active >= statistics.MIN_ACTIVE).sum()),
        "mean_margin": {name: known(value) for name, value in effects.margins.items()},
    }


def _forget_unknown_tops(top_classes: np.ndarray, *all_moments: EffectMoments) -> None:
    """NaN, in place, for what the features without a top class do to it."""
    rows = [i for i, name in enumerate(STATISTICS) if name.startswith("top_class")]
    for moments in all_moments:
        for part in (moments.mean, moments.m2):
            part[..., rows, :] = np.where(top_classes < 0, np.nan, part[..., rows, :])
