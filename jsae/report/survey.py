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

import jax
import jax.numpy as jnp
import numpy as np

from jsae import edits, metrics
from jsae.runtime import logs, preemption

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


def wanted_maps(patches: dict[int, list[dict]]) -> dict[int, list[int]]:
    """image -> the features whose map over it is shown, from feature -> top patches; both sorted."""
    wanted: dict[int, set[int]] = {}
    for feature, rows in patches.items():
        for row in rows:
            wanted.setdefault(row["image"], set()).add(feature)
    return {image: sorted(wanted[image]) for image in sorted(wanted)}


def spread(n_images: int, n_wanted: int) -> list[int]:
    """At most `n_wanted` images at equal distances in 0..n_images-1."""
    n = min(n_images, n_wanted)
    return [i * n_images // n for i in range(n)] if n > 0 else []


def take(
    read: Callable,
    sae,
    largest,
    *,
    n_images: int,
    maps: dict[int, list[int]],
    images: list[int],
    logits_from: Callable | None = None,
    labels=None,
) -> Survey:
    """Look at all `n_images` once.

    Args:
      read: (start, stop) -> raw activations float32 [stop - start, H, W, C] of the test split.
      sae: encodes [B, H, W, C] to features [B, H, W, F] in raw units; has w_dec [F, C].
      largest: [F] largest value of each feature on test, raw units; what the maps are relative to.
      maps: image -> features, from `wanted_maps`.
      images: those whose strongest features are described.
      logits_from: a pytree, acts [B, H, W, C] -> logits [B, L]; None: nothing is removed.
      labels: int [n_images], -1 for unknown; needed with `logits_from`.

    Returns:
      A Survey. `images[i]` has label, prediction (None where unknown), confidence (softmax of the
      prediction) and features: at most N_STRONGEST dicts by falling share of the activation, ||w_dec|| times
      the sum over the grid: feature, value (its peak), y, x, map, and, each ablated minus clean with the
      feature removed at every position, delta_margin (of the label, None if unknown), delta_confidence (of
      the clean prediction) and prediction.
    """
    largest = np.where(np.isfinite(np.asarray(largest, float)), np.asarray(largest, float), 0.0)
    listed, counts, of_pooled, found, described = set(images), 0, (0, 0.0, 0.0), {}, {}
    norms = jnp.linalg.norm(sae.w_dec, axis=1)
    with (
        jax.default_matmul_precision("float32"),
        logs.progress(n_images, label="report: activations", unit="image") as bar,
    ):
        for start in range(0, n_images, _BATCH):
            preemption.check_here()
            acts = read(start, min(start + _BATCH, n_images))
            n = len(acts)
            padded = np.zeros((_BATCH, *acts.shape[1:]), np.float32)  # one shape, one compilation
            padded[:n] = acts
            feats, tops, above, pooled = _look(sae, padded, norms, largest.astype(np.float32), n)
            counts = counts + np.asarray(above, np.int64)
            pooled = np.asarray(pooled[:n], np.float64)
            here_of = (n, pooled.mean(0), ((pooled - pooled.mean(0)) ** 2).sum(0))
            of_pooled = metrics.join_moments(of_pooled, here_of)
            here = range(start, start + n)
            values, shown = None, [i for i in here if i in listed]
            if shown or any(i in maps for i in here):
                values = np.asarray(feats)
            for image in here:
                for feature in maps.get(image, ()):
                    found[image, feature] = to_bytes(values[image - start, :, :, feature], largest[feature])
            if shown:
                removed = None if logits_from is None else _removed(sae, logits_from, padded, feats, tops)
                known = np.full(_BATCH, -1)
                known[:n] = -1 if labels is None else labels[start : start + n]
                effects = None if removed is None else jax.tree.map(np.asarray, _effects(*removed, known))
                tops = np.asarray(tops)
                for image in shown:
                    i = image - start
                    described[image] = _describe(values[i], tops[i], largest, effects, i, known[i])
            bar.update(n)
    sd = None
    if n_images:
        sd = np.sqrt(of_pooled[2] / n_images)
        # Counts above each edge become counts within each bin.
        counts = np.diff(-np.concatenate([counts, np.zeros((1, counts.shape[1]), np.int64)]), axis=0).T
    return Survey(found, counts if n_images else None, sd, described)


def to_bytes(values, largest: float) -> bytes:
    """A map [H, W] in raw units as uint8 [H * W], see the module."""
    share = np.asarray(values, float) / largest if largest > 0 else np.zeros(np.shape(values))
    return np.ceil(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8).tobytes()


@jax.jit
def _look(sae, acts, norms, largest, n):
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
def _removed(sae, logits_from, acts, feats, tops):
    """Clean logits [B, L] and those without each of the strongest features [K, B, L]."""
    chosen = jnp.take_along_axis(feats, tops[:, None, None, :], axis=-1)  # [B, H, W, K]

    def without(k):
        rows = sae.w_dec[tops[:, k]]  # [B, C]
        return logits_from(edits.subtract(acts, chosen[..., k, None] * rows[:, None, None, :]))

    return logits_from(acts), jax.lax.map(without, jnp.arange(tops.shape[1]))


@jax.jit
def _effects(clean, without, labels):
    """The clean prediction and confidence [B], and the measures of `take` for each removal [K, B]."""
    predicted = clean.argmax(-1)
    target = jnp.maximum(labels, 0)
    before, sure = metrics.measures(clean, target), metrics.measures(clean, predicted)

    def one(logits):
        return {
            "delta_margin": metrics.measures(logits, target)["margin"] - before["margin"],
            "delta_confidence": metrics.measures(logits, predicted)["confidence"] - sure["confidence"],
            "prediction": logits.argmax(-1),
        }

    return {"prediction": predicted, "confidence": sure["confidence"]}, jax.vmap(one)(without)


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
    first = {"label": int(label) if label >= 0 else None, "prediction": None, "confidence": None}
    if effects is not None:
        first |= {name: by[i].item() for name, by in effects[0].items()}
    return first | {"features": rows}
