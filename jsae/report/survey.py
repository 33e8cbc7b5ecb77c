"""One pass over the stored test activations for what the tables do not hold and the pages draw.

    maps         (image, feature) -> the feature's map, bytes uint8 [H * W]: 255 is the feature's largest
                 value on test, 0 is silent, anything active is at least 1
    histograms   [F, BINS] vectors on which a feature fires, by value, in equal bins from 0 to its largest
    pooled_sd    [F] standard deviation over images of the activation's mean over the grid
    images       image -> its strongest features and what the classifier says without each

A batch of images is in memory at a time; what is kept are small integers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae import edits, metrics
from jsae.runtime.context import RunContext

BINS = 24
N_STRONGEST = 6
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class Survey:
    """What `take` found; empty where there are no activations.

    Attributes:
      maps, histograms, pooled_sd: see the module.
      images: image -> {"features": [rows], ...}, see `take`.
    """

    maps: dict[tuple[int, int], bytes] = dataclasses.field(default_factory=dict)
    histograms: np.ndarray | None = None
    pooled_sd: np.ndarray | None = None
    images: dict[int, dict] = dataclasses.field(default_factory=dict)


def spread(n_images: int, n_wanted: int) -> list[int]:
    """At most `n_wanted` images at equal distances in 0..n_images-1."""
    n = min(n_images, n_wanted)
    return [i * n_images // n for i in range(n)] if n > 0 else []


def take(
    read: Callable[[int, int], np.ndarray],
    sae: Any,
    largest: np.ndarray,
    *,
    n_images: int,
    maps: set[tuple[int, int]],
    images: list[int],
    logits_from: Callable | None = None,
    labels: np.ndarray | None = None,
    context: RunContext | None = None,
) -> Survey:
    """One pass over all `n_images`.

    Args:
      read: (start, stop) -> raw activations float32 [stop - start, H, W, C] of the test split.
      sae: encodes [B, H, W, C] to features [B, H, W, F] in raw units; has w_dec [F, C].
      largest: [F] largest value of each feature on test, raw units; what the maps are relative to.
      maps: the pairs (image, feature) whose map is shown.
      images: those whose strongest features are described.
      logits_from: a pytree, acts [B, H, W, C] -> logits [B, L]; None: nothing is removed.
      labels: int [n_images], -1 for unknown; needed with `logits_from`.
      context: of the run.

    Returns:
      A Survey. `images[i]` has label, prediction (None where unknown), confidence (softmax of the
      prediction) and features: at most N_STRONGEST dicts by falling share of the activation, ||w_dec|| times
      the sum over the grid: feature, value (its peak), y, x, map, and, each ablated minus clean with the
      feature removed at every position, delta_margin (of the label, None if unknown), delta_confidence (of
      the clean prediction) and prediction.
    """
    context = context or RunContext()
    largest = np.where(np.isfinite(np.asarray(largest, float)), np.asarray(largest, float), 0.0)
    labels = np.full(n_images, -1) if labels is None else np.asarray(labels)
    norms = jnp.linalg.norm(sae.w_dec, axis=1)
    features_of, listed = _by_image(maps), set(images)
    counts, pooled_moments, found, described = 0, (0, 0.0, 0.0), {}, {}
    with (
        jax.default_matmul_precision("float32"),
        context.progress(n_images, label="report: activations", unit="image") as bar,
    ):
        for start in range(0, n_images, _BATCH):
            context.check_here()
            acts = read(start, min(start + _BATCH, n_images))
            n = len(acts)
            padded = np.zeros((_BATCH, *acts.shape[1:]), np.float32)  # one shape, one compilation
            padded[:n] = acts
            feats, tops, above, pooled = _encode(sae, padded, norms, largest.astype(np.float32), n)
            counts = counts + np.asarray(above, np.int64)
            pooled = np.asarray(pooled[:n], np.float64)
            moments = (n, pooled.mean(0), ((pooled - pooled.mean(0)) ** 2).sum(0))
            pooled_moments = metrics.join_moments(pooled_moments, moments)
            shown = [image for image in range(start, start + n) if image in listed]
            mapped = [image for image in range(start, start + n) if image in features_of]
            values = np.asarray(feats) if shown or mapped else None
            for image in mapped:
                for feature in features_of[image]:
                    found[image, feature] = to_bytes(values[image - start, :, :, feature], largest[feature])
            if shown:
                known = np.concatenate([labels[start : start + n], np.full(_BATCH - n, -1)])
                effects = None
                if logits_from is not None:
                    effects = jax.device_get(_effects(sae, logits_from, padded, feats, tops, known))
                tops = np.asarray(tops)
                for image in shown:
                    i = image - start
                    described[image] = _describe(values[i], tops[i], largest, effects, i, known[i])
            bar.update(n)
    if not n_images:
        return Survey()
    # Counts above each edge become counts within each bin.
    counts = np.diff(-np.concatenate([counts, np.zeros((1, counts.shape[1]), np.int64)]), axis=0).T
    return Survey(found, counts, np.sqrt(pooled_moments[2] / n_images), described)


def _by_image(maps: set[tuple[int, int]]) -> dict[int, list[int]]:
    """image -> the features whose map over it is shown."""
    features_of: dict[int, list[int]] = {}
    for image, feature in sorted(maps):
        features_of.setdefault(image, []).append(feature)
    return features_of


def to_bytes(values: np.ndarray, largest: float) -> bytes:
    """A map [H, W] in raw units as uint8 [H * W], see the module."""
    share = np.asarray(values, float) / largest if largest > 0 else np.zeros(np.shape(values))
    return np.ceil(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8).tobytes()


@jax.jit
def _encode(sae, acts, norms, largest, n):
    """Features [B, H, W, F], strongest [B, K], counts above bins' lower edges [BINS, F], pooled [B, F]."""
    feats = sae.encode(acts)
    real = (jnp.arange(acts.shape[0]) < n)[:, None, None, None]
    firing = jnp.where(real, jnp.maximum(feats, 0.0), 0.0)
    edges = jnp.arange(BINS, dtype=jnp.float32) / BINS
    above = jax.lax.map(lambda e: jnp.sum(firing > e * largest[None, None, None, :], axis=(0, 1, 2)), edges)
    pooled = feats.mean(axis=(1, 2))
    _, tops = jax.lax.top_k(pooled * norms[None, :], min(N_STRONGEST, feats.shape[-1]))
    return feats, tops, above, pooled


@jax.jit
def _effects(sae, logits_from, acts, feats, tops, labels):
    """Clean prediction and confidence [B]; the effects of removing each of the strongest features [K, B]."""
    chosen = jnp.take_along_axis(feats, tops[:, None, None, :], axis=-1)  # [B, H, W, K]
    clean = logits_from(acts)
    predicted, target = clean.argmax(-1), jnp.maximum(labels, 0)
    margin, confidence = (
        metrics.measures(clean, of)[name] for of, name in ((target, "margin"), (predicted, "confidence"))
    )

    def without(k):
        rows = sae.w_dec[tops[:, k]]  # [B, C]
        logits = logits_from(edits.subtract(acts, chosen[..., k, None] * rows[:, None, None, :]))
        return {
            "delta_margin": metrics.measures(logits, target)["margin"] - margin,
            "delta_confidence": metrics.measures(logits, predicted)["confidence"] - confidence,
            "prediction": logits.argmax(-1),
        }

    removed = jax.lax.map(without, jnp.arange(tops.shape[1]))
    return {"prediction": predicted, "confidence": confidence}, removed


def _describe(values, tops, largest, effects, i: int, label: int) -> dict:
    """The entry of Survey.images of one image, whose features are `values` [H, W, F]."""
    rows = []
    for k, feature in enumerate(int(f) for f in tops):
        here = values[:, :, feature]
        if not (here > 0).any():
            continue
        y, x = np.unravel_index(int(here.argmax()), here.shape)
        row = {"feature": feature, "value": float(here.max()), "y": int(y), "x": int(x)}
        row["map"] = to_bytes(here, largest[feature])
        if effects is not None:
            row |= {name: by[k, i].item() for name, by in effects[1].items()}
            if label < 0 or not np.isfinite(row["delta_margin"]):  # no label, or one class only
                row["delta_margin"] = None
        rows.append(row)
    clean = {"prediction": None, "confidence": None}
    if effects is not None:
        clean = {name: by[i].item() for name, by in effects[0].items()}
    return {"label": int(label) if label >= 0 else None, **clean, "features": rows}
