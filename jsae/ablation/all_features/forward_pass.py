"""The atlas at any site: every feature removed from every image it fires on, by the patched forward pass.

Before the final site no closed form holds, so each active (feature, image) pair runs through the rest of the
network from its stored activations, three times: removed everywhere, removed at its peak, and kept alone.
Pairs are batched over features and images alike; a silent pair has an effect of exactly 0 and takes no pass.
The numbers are those of `atlas_survey`, so the tables have the same columns; features removed jointly
(`cumulative`) need the closed form and are left out.
"""

import time
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jsae import edits, metrics
from jsae.ablation import atlas, atlas_survey
from jsae.ablation.atlas_survey import SCOPES, STATISTICS, AtlasEffects
from jsae.ablation.feature_space import TARGETS, at_peak_only
from jsae.ablation.feature_space import measures as measures_of
from jsae.classifier.forward import as_argument


def measure(
    logits_from_acts: Callable,
    sae,
    batches: Iterable,
    *,
    labels: np.ndarray,
    top_classes: np.ndarray,
    n_classes: int,
    pair_batch: int,
    on_batch: Callable[[int], None] = lambda n_images: None,
) -> AtlasEffects:
    """Effects of every feature on every image of a split; `curves` is None.

    Args:
      logits_from_acts: acts [B, H, W, C] -> logits [B, L]; a pytree or a plain function.
      sae: the SAE of the site.
      batches: yields (start, acts [B, H, W, C] raw, mask [B]) over the images, all of one B.
      labels: int [n_images], -1 for unknown: such images are left out.
      top_classes: int [F], -1 for a feature without one, whose effects on it are NaN.
      n_classes: L.
      pair_batch: P, pairs a forward pass.
      on_batch: called with the number of images after each batch.
    """
    start_s, labels, top_classes = time.monotonic(), np.asarray(labels), np.asarray(top_classes)
    logits_from_acts, sae = as_argument(logits_from_acts), jax.tree.map(jnp.asarray, sae)
    n_features, shape = sae.w_dec.shape[0], (len(STATISTICS), sae.w_dec.shape[0])
    by_class = tuple(np.zeros((n_classes, *part)) for part in ((n_features,), shape, shape))
    by_feature = {scope: (np.zeros(n_features), np.zeros(shape), np.zeros(shape)) for scope in SCOPES[1:]}
    attribution, margins, seen_labels = tuple(np.zeros(n_features) for _ in range(3)), np.zeros(2), []
    for start, acts, mask in batches:
        n = int(np.sum(np.asarray(mask) > 0))
        of_batch = np.full(len(acts), -1, np.int32)
        of_batch[:n] = labels[start : start + n]
        labelled = of_batch >= 0
        seen = jax.tree.map(np.asarray, _look(logits_from_acts, sae, acts, np.maximum(of_batch, 0)))
        active = (seen["feats"].max((1, 2)) > 0) & labelled[:, None]  # [B, F]
        values = np.zeros((len(SCOPES), len(STATISTICS), *active.shape), np.float32)
        for images, features in _pairs(active, pair_batch):
            targets = [of_batch[images], seen["predictions"][images], np.maximum(top_classes, 0)[features]]
            found = _remove(
                *(logits_from_acts, sae.w_dec, acts[images], seen["without_features"][images]),
                *(seen["feats"][images, :, :, features], features, np.stack(targets).astype(np.int32)),
            )
            values[:, :, images, features] = np.asarray(found)
        member = (of_batch[None, :] == np.arange(n_classes)[:, None]).astype(np.float32)  # [L, B]
        for scope, of_scope in zip(SCOPES, values, strict=True):
            groups = member if scope == "map" else labelled[None, :].astype(np.float32)
            new = [np.asarray(part, np.float64) for part in atlas.moments_of(of_scope, active, groups)]
            if scope == "map":
                by_class = atlas_survey.joined(by_class, tuple(new))
            else:
                by_feature[scope] = atlas_survey.joined(by_feature[scope], tuple(part[0] for part in new))
        own = atlas.moments_of(seen["first_order"][None], active, labelled[None, :].astype(np.float32))
        count, mean, m2 = (np.asarray(part, np.float64)[0] for part in own)
        attribution = metrics.join_moments(attribution, (count, mean[0], m2[0]))
        margins += seen["margins"][:, labelled].astype(np.float64).sum(1)
        seen_labels.append(of_batch[labelled])
        on_batch(n)
    seen_labels = np.concatenate(seen_labels)
    return atlas_survey.finished(
        by_class=by_class,
        by_feature=by_feature,
        attribution=attribution,
        curves=None,
        labels=seen_labels,
        top_classes=top_classes,
        n_guarded=dict.fromkeys(SCOPES, 0),
        margins=dict(zip(("clean", "all_removed"), margins, strict=True)),
        seconds=time.monotonic() - start_s,
    )


def _pairs(active: np.ndarray, pair_batch: int):
    """(images, features) of the active pairs, pair_batch at a time, the last filled up with its first."""
    images, features = np.nonzero(active)
    for start in range(0, len(images), pair_batch):
        rows = np.arange(start, start + pair_batch)
        rows = np.where(rows < len(images), rows, start)
        yield images[rows], features[rows].astype(np.int32)


@jax.jit
def _look(logits_from_acts, sae, acts, labels) -> dict:
    """What a batch of images needs once: features, predictions, margins, first-order effects [B, F]."""
    with jax.default_matmul_precision("float32"):
        feats = sae.encode(acts)
        without = edits.subtract(acts, jnp.matmul(feats, sae.w_dec))

        def margin(acts):
            logits = logits_from_acts(acts)
            return metrics.measures(logits, labels)["margin"].sum(), logits

        gradient, logits = jax.grad(margin, has_aux=True)(acts)
        along = jnp.matmul(gradient, sae.w_dec.T)  # [B, H, W, F]
        others = logits_from_acts(without)
        return {
            "feats": feats,
            "without_features": without,
            "predictions": jnp.argmax(logits, -1).astype(jnp.int32),
            "margins": jnp.stack([metrics.measures(each, labels)["margin"] for each in (logits, others)]),
            "first_order": -(along * feats).sum((1, 2)),
        }


@jax.jit
def _remove(logits_from_acts, w_dec, acts, without, maps, features, targets) -> jax.Array:
    """Statistics of P pairs, [scope, statistic, P].

    Args:
      acts, without: activations of each pair's image, clean and without any feature, [P, H, W, C].
      maps: the pair's feature [P, H, W]; features int [P]; targets int [target, P].
    """

    def part(maps):
        return maps[..., None] * w_dec[features][:, None, None, :]

    with jax.default_matmul_precision("float32"):
        pairs = {
            "map": (acts, edits.subtract(acts, part(maps))),
            "peak": (acts, edits.subtract(acts, part(at_peak_only(maps)))),
            "keep_only": (without, without + part(maps)),
        }
        clean = logits_from_acts(acts)
        found = []
        for scope in SCOPES:
            base, changed = pairs[scope]
            logits = logits_from_acts(changed)
            before = clean if base is acts else logits_from_acts(base)
            deltas = [
                measures_of(logits, t) - measures_of(before, t) for t in targets
            ]  # TARGETS of [measure, P]
            flips = (jnp.argmax(logits, -1) != targets[TARGETS.index("prediction")]).astype(jnp.float32)
            found.append(jnp.concatenate([*deltas, flips[None]]))
        return jnp.stack(found)
