"""Every feature removed from every image it fires on, at any site, by the patched forward pass.

Where no closed form holds, each active (feature, image) pair runs through the rest of the network from its
stored activations, three times: removed at every position, removed at its peak, and kept alone. Pairs are
batched over features and images alike and dealt over the devices; a silent pair has an effect of exactly 0
and takes no pass. Features come a block at a time, one pass over the images for each, so that memory is that
of a block of maps. The numbers are those of the closed form, so the tables have the same columns; joint
removals (`cumulative`) need the closed form and are left out.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae import edits, metrics
from jsae.ablation.all_features import closed_form
from jsae.ablation.all_features.closed_form import EffectMoments
from jsae.ablation.all_features.totals import (
    SCOPES,
    AllFeatureEffects,
    finished,
    no_moments,
)
from jsae.ablation.effects import TARGETS, changes, flips_of
from jsae.ablation.feature_space.pairs import at_peak_only
from jsae.activations import Encoded, Reducer
from jsae.classifier.forward import as_argument
from jsae.runtime import mesh as meshes
from jsae.runtime.batches import map_rows
from jsae.runtime.pytrees import pytree
from jsae.sae import dealt

_VALUES = 2**26  # of a block's maps [n, H, W, f], 4 bytes each on the host


def effects_of_images(
    logits_from_acts: Callable,
    dictionary: Any,
    store: Any,
    images: np.ndarray,
    pass_over: Callable[..., dict[str, Any]],
    *,
    top_classes: np.ndarray,
    n_classes: int,
    block: int | None = None,
    **settings: Any,
) -> AllFeatureEffects:
    """Effects of every feature on some images of a split; `curves` is None.

    Args:
      logits_from_acts: acts [B, H, W, C] -> logits [B, L]; a pytree or a plain function.
      dictionary: the SAE of the site.
      store: activation store of the split: read(), grid, labels.
      images: image numbers [n], rising; those without a label are left out.
      pass_over: (reducers, images=) -> results of a pass over these images of the split.
      top_classes: int [F], -1 for a feature without one, whose effects on it are NaN.
      n_classes: L.
      block: features at a time; None: as many as fit into 256 MiB of maps.
      settings: of `map_rows`: batch_size, mesh, context, label.
    """
    images = images[store.labels[images] >= 0]
    labels, n_features = store.labels[images], len(top_classes)
    logits_from_acts = as_argument(logits_from_acts)
    clean = pass_over({"clean": _KeepClean(logits_from_acts)}, images=images)["clean"]
    by_class = no_moments(n_features, n_classes)
    by_feature = {scope: no_moments(n_features) for scope in SCOPES[1:]}
    block = block or max(1, _VALUES // max(len(images) * store.grid[0] * store.grid[1], 1))
    fixed = (logits_from_acts, dictionary)
    if settings.get("mesh") is not None:
        fixed = meshes.replicate(settings["mesh"], fixed)
    for start in range(0, n_features, block):
        features = np.arange(start, min(start + block, n_features), dtype=np.int32)
        maps = pass_over({"maps": _KeepMapsOf(features)}, images=images)["maps"]  # [n, H, W, f]
        image, at = np.nonzero(maps.max((1, 2)) > 0)
        targets = (labels[image], clean["predictions"][image], np.maximum(top_classes, 0)[features[at]])
        arrays = {"feature": features[at], **dict(zip(TARGETS, targets, strict=True))}

        def read(rows, maps=maps, image=image, at=at, arrays=arrays):
            of_row = image[rows]
            acts = np.concatenate([store.read(i, i + 1) for i in images[of_row].tolist()])
            pairs = {name: np.asarray(value[rows], np.int32) for name, value in arrays.items()}
            return pairs | {
                "acts": acts,
                "without": clean["without"][of_row],
                "map": maps[of_row, :, :, at[rows]],
            }

        step = functools.partial(_remove, *fixed)
        values = map_rows(step, read, len(image), unit="pair", **settings)  # [M, scope, statistic]
        if values is None:
            continue
        for i, scope in enumerate(SCOPES):
            if scope == "map":
                kept, found = by_class, _moments(values[:, i], at, len(features), labels[image], n_classes)
            else:
                kept = by_feature[scope]
                found = [each[0] for each in _moments(values[:, i], at, len(features), 0 * image, 1)]
            for whole, part in zip(kept, found, strict=True):
                whole[..., features] = part
    return finished(
        by_class=by_class,
        by_feature=by_feature,
        attribution=clean["attribution"],
        curves=None,
        labels=labels,
        top_classes=top_classes,
        n_guarded=dict.fromkeys(SCOPES, 0),
        margins=clean["margins"],
    )


@pytree
class _KeepClean(Reducer):
    """What the images give by themselves, all of them with a label.

    The result has "without" [n, H, W, C], the activations without any feature; "predictions" [n]; "margins",
    the sums over images of the label's margin clean and without features; "attribution", the moments of the
    first-order effect of removing each feature.
    """

    logits_from_acts: Callable

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> dict[str, Any]:
        zeros = tuple(np.zeros(dictionary.n_features) for _ in range(3))
        return {"without": [], "predictions": [], "margins": np.zeros(2), "attribution": zeros}

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, dict[str, Any]]:
        feats, labels = batch.feats, jnp.maximum(batch.labels, 0)
        without = edits.subtract(batch.acts, jnp.matmul(feats, dictionary.w_dec))

        def margin(acts):
            logits = self.logits_from_acts(acts)
            return metrics.measures(logits, labels)["margin"].sum(), logits

        gradient, logits = jax.grad(margin, has_aux=True)(batch.acts)
        along = jnp.matmul(gradient, dictionary.w_dec.T)  # [B, H, W, F]
        first_order, active = -(along * feats).sum((1, 2)), feats.max((1, 2)) > 0
        both = (logits, self.logits_from_acts(without))
        return carry, {
            "without": without,
            "predictions": jnp.argmax(logits, -1).astype(jnp.int32),
            "margins": jnp.stack([metrics.measures(each, labels)["margin"] for each in both]),
            "attribution": closed_form.moments_of(
                first_order[None], active, batch.real[None, :].astype(jnp.float32)
            ),
        }

    def add(self, total: dict[str, Any], part: dict[str, Any], rows: slice, n: int) -> dict[str, Any]:
        for name in ("without", "predictions"):
            total[name].append(part[name][:n])
        total["margins"] += part["margins"][:, :n].astype(np.float64).sum(1)
        count, mean, m2 = (np.asarray(each, np.float64)[0] for each in part["attribution"])
        total["attribution"] = metrics.join_moments(total["attribution"], (count, mean[0], m2[0]))
        return total

    def finish(self, carry: Any, total: dict[str, Any]) -> dict[str, Any]:
        joined = {name: np.concatenate(total[name]) for name in ("without", "predictions")}
        return total | joined | {"attribution": EffectMoments(*total["attribution"])}


@pytree
class _KeepMapsOf(Reducer):
    """The maps of some features, int32 [f], on all images: float32 [n, H, W, f] on the host."""

    features: np.ndarray

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> np.ndarray:
        return np.empty((len(images), *store.grid, len(self.features)), np.float32)

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, jax.Array]:
        return carry, dealt.feature_maps(dictionary, batch.feats, jnp.asarray(self.features))

    def add(self, total: np.ndarray, part: np.ndarray, rows: slice, n: int) -> np.ndarray:
        total[rows] = part[:n]
        return total


@jax.jit
def _remove(logits_from_acts, dictionary, pairs: dict) -> jax.Array:
    """Statistics of P pairs, [P, scope, statistic].

    Args:
      pairs: acts and without [P, H, W, C], activations of the pair's image, clean and without any feature;
        map [P, H, W] of the pair's feature; feature, and the TARGETS by name, int32 [P].
    """
    acts, without, maps = pairs["acts"], pairs["without"], pairs["map"]
    rows = dealt.decoder_rows(dictionary, pairs["feature"])
    targets = jnp.stack([pairs[name] for name in TARGETS])

    def part(maps):
        return maps[..., None] * rows[:, None, None, :]

    with jax.default_matmul_precision("float32"):
        clean, empty = logits_from_acts(acts), logits_from_acts(without)
        scopes = {
            "map": (clean, edits.subtract(acts, part(maps))),
            "peak": (clean, edits.subtract(acts, part(at_peak_only(maps)))),
            "keep_only": (empty, without + part(maps)),
        }
        found = []
        for scope in SCOPES:
            before, changed = scopes[scope]
            logits = logits_from_acts(changed)
            deltas = changes(before, logits, targets)  # [target, measure, P]
            flips = flips_of(pairs["prediction"], logits).astype(jnp.float32)
            found.append(jnp.concatenate([deltas.reshape(-1, len(acts)), flips[None]]))
    return jnp.moveaxis(jnp.stack(found), -1, 0)


def _moments(values, features, n_features: int, groups, n_groups: int) -> EffectMoments:
    """Moments in float64 of values [M, statistic] by group [M] and feature [M]; n is [group, feature]."""
    cell = groups * n_features + features
    n_cells = n_groups * n_features

    def sums(each):
        return np.stack([np.bincount(cell, column, n_cells) for column in each.T])  # [statistic, cells]

    n, values = np.bincount(cell, minlength=n_cells), values.astype(np.float64)
    mean = sums(values) / np.maximum(n, 1)[None, :]
    m2 = sums((values - mean[:, cell].T) ** 2)
    by_group = (np.moveaxis(each.reshape(-1, n_groups, n_features), 0, 1) for each in (mean, m2))
    return EffectMoments(n.reshape(n_groups, n_features), *by_group)
