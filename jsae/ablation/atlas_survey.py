"""One pass over the test images for the atlas: every feature in three scopes, and many features at once.

Scopes, all in closed form (`jsae.ablation.atlas`), effects with the feature changed minus without:

    map        removed at every position                     against the clean image
    peak       removed at the cell of its peak               against the clean image
    keep_only  every other feature removed, the error kept   against all features removed (sufficiency)

A batch of images is encoded, reduced over its grid and dropped. What is kept are moments, in float64 on the
host: of each feature over the images on which it fires, and in the scope map also by the label of the image.
Memory is that of one batch [B, H, W, F] and of [L, statistics, F] twice.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jsae import metrics
from jsae.ablation import atlas, cumulative, statistics
from jsae.ablation.feature_space import MEASURES, TARGETS
from jsae.ablation.splice import known
from jsae.classifier.model import Head, head_logits

SCOPES = ("map", "peak", "keep_only")
STATISTICS = (*((target, measure) for target in TARGETS for measure in MEASURES), ("", "flip"))


@dataclasses.dataclass(frozen=True)
class AtlasEffects:
    """What the pass found; moments are (n, mean, m2) in float64, NaN where a measure does not exist.

    Attributes:
      by_class: of the scope map over active images of each class: n [L, F], mean and m2 [L, statistic, F].
      by_feature: scope -> over all active images: n [F], mean and m2 [statistic, F].
      attribution: of -a * (w . gradient of the label's margin), the first-order effect of removing the
        feature on that margin, over active images: n, mean and m2 [F].
      curves: of each image, features removed one after the other; None where they were not.
      class_count: images of each class, [L].
      n_images: images with a label.
      n_guarded: scope -> pairs computed directly.
      margins: mean over images of the label's margin, {"clean", "all_removed"}.
      seconds: of the pass.
    """

    by_class: tuple
    by_feature: dict
    attribution: tuple
    curves: cumulative.Curves | None
    class_count: np.ndarray
    n_images: int
    n_guarded: dict
    margins: dict
    seconds: float


def measure(
    head: Head,
    sae,
    batches: Iterable,
    *,
    labels: np.ndarray,
    top_classes: np.ndarray,
    n_joint: int,
    seed: int,
    on_batch: Callable[[int], None] = lambda n_images: None,
) -> AtlasEffects:
    """Effects of every feature on every image of a split.

    Args:
      head: the classifier's head; the SAE's site lies right before pooling.
      sae: the SAE, a pytree with encode and w_dec [F, C].
      batches: yields (start, acts [B, H, W, C] raw, mask [B]) over the split, all of one B.
      labels: int [n_images], -1 for unknown: such images are left out.
      top_classes: int [F], -1 for a feature without one, whose effects on it are NaN.
      n_joint: features removed at once, at most, in `cumulative`.
      seed: of the random order there.
      on_batch: called with the number of images after each batch (progress, a stop asked for).
    """
    start_s, labels, top_classes = time.monotonic(), np.asarray(labels), np.asarray(top_classes)
    n_features, n_classes = sae.w_dec.shape[0], head.offset.shape[0]
    sae, head = jax.tree.map(jnp.asarray, (sae, head))
    tops = jnp.asarray(np.maximum(top_classes, 0), jnp.int32)
    shape = (len(STATISTICS), n_features)
    by_class = (
        np.zeros((n_classes, n_features)),
        np.zeros((n_classes, *shape)),
        np.zeros((n_classes, *shape)),
    )
    by_feature = {scope: (np.zeros(n_features), np.zeros(shape), np.zeros(shape)) for scope in SCOPES[1:]}
    attribution = tuple(np.zeros(n_features) for _ in range(3))
    margins, n_guarded = {"clean": 0.0, "all_removed": 0.0}, dict.fromkeys(SCOPES, 0)
    curves, n_groups = [], 1
    for start, acts, mask in batches:
        n = int(np.sum(np.asarray(mask) > 0))
        of_batch = np.full(len(acts), -1, np.int32)
        of_batch[:n] = labels[start : start + n]
        labelled = of_batch >= 0
        seen = _look(head, sae, acts, jnp.asarray(labelled), jnp.maximum(of_batch, 0))
        present, groups = np.unique(of_batch, return_inverse=True)
        n_groups = max(n_groups, len(present), _most_labels(labels, len(acts)))
        arguments = (jnp.maximum(of_batch, 0), seen["predictions"], tops)
        for scope in SCOPES:
            pooled = seen["without_features"] if scope == "keep_only" else seen["pooled"]
            by_group = scope == "map"
            found, guarded = atlas.moments(
                *(head, sae.w_dec, pooled, seen[scope], *arguments),
                groups=groups.astype(np.int32) if by_group else np.zeros(len(acts), np.int32),
                n_groups=n_groups if by_group else 1,
            )
            found = [np.asarray(part, np.float64) for part in found]
            n_guarded[scope] += int(guarded)
            if by_group:
                _add_to_classes(by_class, present, found)
            else:
                count, *rest = (part[0] for part in found)
                by_feature[scope] = joined(by_feature[scope], (count, *rest))
        count, mean, m2 = (np.asarray(part, np.float64)[0] for part in seen["attribution"])
        attribution = metrics.join_moments(attribution, (count, mean[0], m2[0]))
        for name in margins:
            margins[name] += float(np.sum(np.asarray(seen[f"{name}_margin"], np.float64)[labelled]))
        curve = cumulative.remove(
            head,
            sae.w_dec,
            *(seen[name] for name in ("pooled", "map", "gradient")),
            jnp.maximum(of_batch, 0),
            jnp.asarray(start + np.arange(len(acts)), jnp.int32),
            jax.random.key(seed),
            n_joint=min(n_joint, n_features),
        )
        curves.append(jax.tree.map(lambda part, rows=labelled: np.asarray(part)[rows], curve))
        on_batch(n)
    return finished(
        by_class=by_class,
        by_feature=by_feature,
        attribution=attribution,
        curves=cumulative.joined(curves),
        labels=labels[labels >= 0],
        top_classes=top_classes,
        n_guarded=n_guarded,
        margins=margins,
        seconds=time.monotonic() - start_s,
    )


def finished(*, by_class, by_feature, attribution, curves, labels, top_classes, n_guarded, margins, seconds):
    """`AtlasEffects` of a pass: classes joined, unknown numbers NaN, sums of margins divided.

    Args:
      labels: of the images looked at, all known.
      margins: sums over them.
      others: as in `AtlasEffects`; by_feature without "map".
    """
    n_classes, n = len(by_class[0]), len(labels)
    by_feature = {"map": _over_classes(by_class)} | by_feature
    _forget_unknown_tops(top_classes, by_class, *by_feature.values())
    if n_classes == 1:
        attribution = (attribution[0], *(np.full(len(top_classes), np.nan) for _ in range(2)))
    return AtlasEffects(
        by_class=by_class,
        by_feature=by_feature,
        attribution=attribution,
        curves=curves,
        class_count=np.bincount(labels, minlength=n_classes),
        n_images=n,
        n_guarded=n_guarded,
        margins={name: total / n if n else np.nan for name, total in margins.items()},
        seconds=seconds,
    )


def headline(effects: AtlasEffects) -> dict:
    """The stage's results: pairs of a feature and an image in the scope map, guarded ones over all scopes."""
    n_active = effects.by_feature["map"][0]
    return {
        "n_pairs": effects.n_images * len(n_active),
        "n_active_pairs": int(n_active.sum()),
        "n_guarded": sum(effects.n_guarded.values()),
        "n_features": int((n_active >= statistics.MIN_ACTIVE).sum()),
        "mean_margin": {name: known(value) for name, value in effects.margins.items()},
        "seconds": round(effects.seconds, 3),
    }


@jax.jit
def _look(head: Head, sae, acts: jax.Array, labelled: jax.Array, labels: jax.Array) -> dict:
    """What the atlas needs of a batch of images; features of images without a label count as silent."""
    with jax.default_matmul_precision("float32"):
        feats = sae.encode(acts) * labelled[:, None, None, None]  # [B, H, W, F]
        pooled, strength = acts.mean((1, 2)), feats.mean((1, 2))  # [B, C], [B, F]
        without_features = pooled - strength @ sae.w_dec

        def margin(pooled):
            return metrics.measures(head_logits(head, pooled), labels)["margin"]

        gradient = jax.grad(lambda pooled: margin(pooled).sum())(pooled)  # [B, C]
        first_order = -strength * (gradient @ sae.w_dec.T)
        member = labelled[None, :].astype(jnp.float32)
        return {
            "pooled": pooled,
            "without_features": without_features,
            "map": strength,
            "peak": feats.max((1, 2)) / (acts.shape[1] * acts.shape[2]),
            "keep_only": -strength,
            "predictions": jnp.argmax(head_logits(head, pooled), -1).astype(jnp.int32),
            "gradient": gradient,
            "attribution": atlas.moments_of(first_order[None], strength > 0, member),
            "clean_margin": margin(pooled),
            "all_removed_margin": margin(without_features),
        }


def _most_labels(labels: np.ndarray, batch_size: int) -> int:
    """The most different labels in a batch, a padded row's -1 included, so that one shape serves them all."""
    starts = range(0, len(labels), batch_size)
    return 1 + max(len(np.unique(labels[start : start + batch_size])) for start in starts)


def _add_to_classes(by_class: tuple, present: np.ndarray, found: list) -> None:
    """Join the groups of a batch, `present` being their labels, to the classes, in place."""
    rows = np.flatnonzero(present >= 0)
    classes = present[rows]
    old, new = tuple(part[classes] for part in by_class), tuple(part[rows] for part in found)
    for kept, part in zip(by_class, joined(old, new), strict=True):
        kept[classes] = part


def joined(a: tuple, b: tuple) -> tuple:
    """Moments with n [..., F], mean and m2 [..., statistic, F] joined."""
    (n_a, *rest_a), (n_b, *rest_b) = a, b
    n, mean, m2 = metrics.join_moments((n_a[..., None, :], *rest_a), (n_b[..., None, :], *rest_b))
    return n[..., 0, :], mean, m2


def _over_classes(by_class: tuple) -> tuple:
    """The classes joined to one set: n [F], mean and m2 [statistic, F]."""
    total = tuple(np.zeros(part.shape[1:]) for part in by_class)
    for each in zip(*by_class, strict=True):
        total = joined(total, each)
    return total


def _forget_unknown_tops(top_classes: np.ndarray, *all_moments: tuple) -> None:
    """NaN, in place, for what the features without a top class do to it."""
    rows = [i for i, (target, _) in enumerate(STATISTICS) if target == "top_class"]
    for _, mean, m2 in all_moments:
        for part in (mean, m2):
            part[..., rows, :] = np.where(top_classes < 0, np.nan, part[..., rows, :])
