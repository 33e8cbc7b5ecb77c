"""Passes over the stored test activations for what the tables do not hold and the pages draw.

    maps         (image, feature) -> the feature's map, bytes uint8 [H * W]: 255 is the feature's largest
                 value on test, 0 is silent, anything active is at least 1
    histograms   [F, BINS] vectors on which a feature fires, by value, in equal bins from 0 to its largest
    pooled_sd    [F] standard deviation over images of the activation's mean over the grid
    images       image -> its strongest features and what the classifier says without each

All three are reducers of `jsae.activations.run_pass`; what is kept are small integers.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae import edits, metrics
from jsae.activations import Encoded, Reducer
from jsae.runtime.pytrees import pytree
from jsae.sae import dealt

BINS = 24
N_STRONGEST = 6


@dataclasses.dataclass(frozen=True)
class Survey:
    """What `take` found; empty where there are no activations. Attributes: see the module and `take`."""

    maps: dict[tuple[int, int], bytes] = dataclasses.field(default_factory=dict)
    histograms: np.ndarray | None = None
    pooled_sd: np.ndarray | None = None
    images: dict[int, dict] = dataclasses.field(default_factory=dict)


def spread(n_images: int, n_wanted: int) -> list[int]:
    """At most `n_wanted` images at equal distances in 0..n_images-1."""
    n = min(n_images, n_wanted)
    return [i * n_images // n for i in range(n)] if n > 0 else []


def take(
    pass_over: Callable[..., dict[str, Any]],
    largest: list[float],
    *,
    maps: set[tuple[int, int]],
    images: list[int],
    logits_from: Callable | None = None,
) -> Survey:
    """One pass over the test split, and one over the `images` that are described.

    Args:
      pass_over: (reducers, images=None) -> results of a pass (`Study.run_pass`).
      largest: [F] largest value of each feature on test, raw units; what the maps are relative to.
      maps: the pairs (image, feature) whose map is shown.
      images: those whose strongest features are described, rising.
      logits_from: a pytree, acts [B, H, W, C] -> logits [B, L]; None: nothing is removed.

    Returns:
      A Survey. `images[i]` has label, prediction (None where unknown), confidence (softmax of the
      prediction) and features: at most N_STRONGEST dicts by falling share of the activation, ||w_dec|| times
      the sum over the grid: feature, value (its peak), y, x, map, and, each ablated minus clean with the
      feature removed at every position, delta_margin (of the label, None if unknown), delta_confidence (of
      the clean prediction) and prediction.
    """
    largest = np.nan_to_num(np.asarray(largest, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    features = np.unique([feature for _, feature in maps]).astype(np.int32)
    pairs = np.array(sorted(maps), np.int32).reshape(-1, 2)
    found = pass_over({"values": CountValues(largest), "maps": KeepMapsOf(features, pairs, largest)})
    histograms, pooled_sd = found["values"]
    described = {}
    if images:
        reducers = {"images": DescribeImages(largest, logits_from)}
        described = pass_over(reducers, images=np.asarray(images))["images"]
    return Survey(found["maps"], histograms, pooled_sd, described)


def to_bytes(values: np.ndarray, largest: float) -> bytes:
    """A map [H, W] in raw units as uint8 [H * W], see the module."""
    share = np.asarray(values, float) / largest if largest > 0 else np.zeros(np.shape(values))
    return np.ceil(255 * np.clip(share, 0.0, 1.0)).astype(np.uint8).tobytes()


@pytree
class CountValues(Reducer):
    """(histograms [F, BINS], pooled_sd [F]) of the module; `largest` [F] is the end of the last bin."""

    largest: jax.Array | np.ndarray

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> tuple:
        return np.zeros((BINS, dictionary.n_features), np.int64), (0, 0.0, 0.0)

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, tuple]:
        firing, largest = jnp.maximum(batch.feats, 0.0), self.largest[None, None, None, :]
        edges = jnp.arange(BINS, dtype=jnp.float32) / BINS
        above = jax.lax.map(lambda edge: jnp.sum(firing > edge * largest, axis=(0, 1, 2)), edges)
        return carry, (above, batch.feats.mean(axis=(1, 2)))  # [BINS, F], [B, F]

    def add(self, total: tuple, part: tuple, rows: slice, n: int) -> tuple:
        above, pooled = part[0], part[1][:n].astype(np.float64)
        moments = (n, pooled.mean(0), ((pooled - pooled.mean(0)) ** 2).sum(0))
        return total[0] + above, metrics.join_moments(total[1], moments)

    def finish(self, carry: Any, total: tuple) -> tuple[np.ndarray, np.ndarray]:
        above, (n, _, m2) = total
        within = above - np.concatenate([above[1:], np.zeros_like(above[:1])])
        return within.T, np.sqrt(m2 / max(n, 1))


@pytree
class KeepMapsOf(Reducer):
    """(image, feature) -> map as bytes, of `pairs` int32 [P, 2]; `features` int32 [K] are all that occur."""

    features: jax.Array | np.ndarray
    pairs: jax.Array | np.ndarray
    largest: jax.Array | np.ndarray

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> tuple[dict, dict]:
        place = {int(feature): k for k, feature in enumerate(self.features)}
        wanted: dict[int, list[tuple[int, int]]] = {}
        for image, feature in self.pairs.tolist():
            wanted.setdefault(image, []).append((feature, place[feature]))
        return wanted, {}

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, jax.Array]:
        return carry, dealt.feature_maps(dictionary, batch.feats, self.features)  # [B, H, W, K]

    def add(self, total: tuple[dict, dict], part: np.ndarray, rows: slice, n: int) -> tuple[dict, dict]:
        wanted, found = total
        for i in range(n):
            for feature, k in wanted.get(rows.start + i, ()):
                found[rows.start + i, feature] = to_bytes(part[i, :, :, k], float(self.largest[feature]))
        return total

    def finish(self, carry: Any, total: tuple[dict, dict]) -> dict[tuple[int, int], bytes]:
        return total[1]


@pytree
class DescribeImages(Reducer):
    """Image -> its strongest features and what the classifier says without each, see `take`."""

    largest: jax.Array | np.ndarray
    logits_from: Any

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> dict:
        return {}

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, dict]:
        pooled = batch.feats.mean(axis=(1, 2))  # [B, F]
        scores = pooled * jnp.linalg.norm(dictionary.w_dec, axis=1)[None, :]
        k = min(N_STRONGEST, dictionary.n_features)
        tops = dealt.largest(dictionary, scores[:, None, :], pooled, k)[0][:, 0]  # [B, K]
        maps = [dealt.map_per_image(dictionary, batch.feats, tops[:, i]) for i in range(k)]
        found = {"images": batch.images, "labels": batch.labels, "tops": tops, "maps": jnp.stack(maps)}
        if self.logits_from is None:
            return carry, found
        logits = self.logits_from(batch.acts)
        predicted, label = logits.argmax(-1), jnp.maximum(batch.labels, 0)
        margin = metrics.measures(logits, label)["margin"]
        confidence = metrics.measures(logits, predicted)["confidence"]

        def without(removed: tuple[jax.Array, jax.Array]) -> dict[str, jax.Array]:
            amounts, rows = removed  # [B, H, W], [B, C]
            acts = edits.subtract(batch.acts, amounts[..., None] * rows[:, None, None, :])
            ablated = self.logits_from(acts)
            return {
                "delta_margin": metrics.measures(ablated, label)["margin"] - margin,
                "delta_confidence": metrics.measures(ablated, predicted)["confidence"] - confidence,
                "prediction": ablated.argmax(-1),
            }

        rows = jnp.moveaxis(dealt.decoder_rows(dictionary, tops), 1, 0)  # [K, B, C]
        effects = jax.lax.map(without, (found["maps"], rows))
        clean = {"prediction": predicted, "confidence": confidence}
        return carry, found | {"clean": clean, "effects": effects}

    def add(self, total: dict, part: dict, rows: slice, n: int) -> dict:
        fires = (part["maps"] > 0).any(axis=(2, 3))  # [K, B]
        for i in range(n):
            image, label = int(part["images"][i]), int(part["labels"][i])
            clean = {name: value[i].item() for name, value in part.get("clean", {}).items()}
            total[image] = {
                "label": label if label >= 0 else None,
                "prediction": clean.get("prediction"),
                "confidence": clean.get("confidence"),
                "features": [self._row(part, i, k) for k in np.flatnonzero(fires[:, i]).tolist()],
            }
        return total

    def _row(self, part: dict, i: int, k: int) -> dict:
        feature, values = int(part["tops"][i, k]), part["maps"][k, i]  # [H, W]
        y, x = np.unravel_index(int(values.argmax()), values.shape)
        row: dict[str, Any] = {"feature": feature, "value": float(values.max()), "y": int(y), "x": int(x)}
        row["map"] = to_bytes(values, float(self.largest[feature]))
        row |= {name: by[k, i].item() for name, by in part.get("effects", {}).items()}
        if "effects" in part and (part["labels"][i] < 0 or not np.isfinite(row["delta_margin"])):
            row["delta_margin"] = None  # no label, or one class only
        return row
