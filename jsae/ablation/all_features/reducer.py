"""Every feature in three scopes, and many features at once, in one pass over a split, by the closed form.

A batch is reduced over its grid; what goes to the host are moments: of each feature over the images on which
it fires, and in the scope map also by the label of the image. They are joined there in float64. Memory is
that of [L, statistic, F] twice.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae import metrics
from jsae.ablation.all_features import closed_form, cumulative
from jsae.ablation.all_features.closed_form import EffectMoments
from jsae.ablation.all_features.totals import (
    SCOPES,
    AllFeatureEffects,
    finished,
    joined,
    no_moments,
)
from jsae.activations import Encoded, Reducer
from jsae.classifier import Head, head_logits
from jsae.runtime.pytrees import pytree
from jsae.sae import dealt


@pytree
class MeasureAllFeatures(Reducer):
    """`AllFeatureEffects` of a split; images without a label are left out.

    Attributes:
      head: the classifier's head; the SAE's site lies right before pooling.
      top_classes: int32 [F], -1 for a feature without one, whose effects on it are NaN.
      key: a jax random key, of the random order of joint removals.
      n_joint: features removed at once, at most; static.
      block: features at a time on one device (`closed_form.block_features`); None: small blocks; static.
    """

    head: Head
    top_classes: np.ndarray
    key: jax.Array
    n_joint: int = dataclasses.field(metadata={"static": True})
    block: int | None = dataclasses.field(default=None, metadata={"static": True})

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> dict[str, Any]:
        n_classes, n_features = len(self.head.offset), dictionary.n_features
        return {
            "by_class": no_moments(n_features, n_classes),
            "by_feature": {scope: no_moments(n_features) for scope in SCOPES[1:]},
            "attribution": tuple(np.zeros(n_features) for _ in range(3)),
            "curves": [],
            "labels": [],
            "n_guarded": dict.fromkeys(SCOPES, 0),
            "margins": np.zeros(2),
        }

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, dict[str, Any]]:
        labelled, labels = batch.labels >= 0, jnp.maximum(batch.labels, 0)
        feats = jnp.where(labelled[:, None, None, None], batch.feats, 0)  # without a label: silent
        pooled, strength = batch.acts.mean((1, 2)), feats.mean((1, 2))  # [B, C], [B, F]
        without_features = pooled - strength @ dictionary.w_dec
        strengths = {
            "map": strength,
            "peak": feats.max((1, 2)) / (feats.shape[1] * feats.shape[2]),
            "keep_only": -strength,
        }

        def margin(pooled):
            return metrics.measures(head_logits(self.head, pooled), labels)["margin"]

        gradient = jax.grad(lambda pooled: margin(pooled).sum())(pooled)  # [B, C]
        first_order = -strength * (gradient @ dictionary.w_dec.T)
        prediction = jnp.argmax(head_logits(self.head, pooled), -1).astype(jnp.int32)
        n_groups = min(len(labels), len(self.head.offset)) + 1  # of labels in a batch, -1 among them
        present, groups = jnp.unique(batch.labels, return_inverse=True, size=n_groups, fill_value=-1)
        part = {"labels": batch.labels, "present": present, "n_guarded": {}}
        for scope in SCOPES:
            by_label = scope == "map"
            part[scope], part["n_guarded"][scope] = closed_form.moments(
                self.head,
                dictionary.w_dec,
                without_features if scope == "keep_only" else pooled,
                strengths[scope],
                labels,
                prediction,
                jnp.maximum(self.top_classes, 0).astype(jnp.int32),
                groups=groups if by_label else jnp.zeros_like(groups),
                n_groups=n_groups if by_label else 1,
                block=self.block,
                mesh=dealt.mesh_of(dictionary),
            )
        member = labelled[None, :].astype(jnp.float32)
        part["attribution"] = closed_form.moments_of(first_order[None], strength > 0, member)
        part["margins"] = jnp.stack([margin(pooled), margin(without_features)])  # [MARGINS, B]
        part["curves"] = cumulative.remove_in_order(
            self.head,
            dictionary,
            pooled,
            strength,
            gradient,
            labels,
            batch.images,
            self.key,
            n_joint=min(self.n_joint, dictionary.n_features),
        )
        return carry, part

    def add(self, total: dict[str, Any], part: dict[str, Any], rows: slice, n: int) -> dict[str, Any]:
        labels = part["labels"]
        for scope in SCOPES:
            moments = EffectMoments(*(np.asarray(each, np.float64) for each in part[scope]))
            total["n_guarded"][scope] += int(part["n_guarded"][scope])
            if scope == "map":
                _add_to_classes(total["by_class"], part["present"], moments)
            else:
                of_scope = EffectMoments(*(each[0] for each in moments))
                total["by_feature"][scope] = joined(total["by_feature"][scope], of_scope)
        count, mean, m2 = (np.asarray(each, np.float64)[0] for each in part["attribution"])
        total["attribution"] = metrics.join_moments(total["attribution"], (count, mean[0], m2[0]))
        total["margins"] += part["margins"].astype(np.float64)[:, labels >= 0].sum(1)
        total["curves"].append([each[labels >= 0] for each in part["curves"]])
        total["labels"].append(labels[labels >= 0])
        return total

    def finish(self, carry: Any, total: dict[str, Any]) -> AllFeatureEffects:
        curves = zip(*total.pop("curves"), strict=True)
        more: dict[str, Any] = {
            "labels": np.concatenate(total["labels"]),
            "attribution": EffectMoments(*total["attribution"]),
            "curves": cumulative.Curves(*(np.concatenate(each) for each in curves)),
        }
        return finished(**total | more, top_classes=np.asarray(self.top_classes))


def _add_to_classes(by_class: EffectMoments, present: np.ndarray, moments: EffectMoments) -> None:
    """Join the groups of a batch, `present` being their labels, to the classes, in place."""
    rows = np.flatnonzero(present >= 0)
    classes = present[rows]
    old, new = (
        EffectMoments(*(part[at] for part in each)) for each, at in ((by_class, classes), (moments, rows))
    )
    for kept, part in zip(by_class, joined(old, new), strict=True):
        kept[classes] = part
