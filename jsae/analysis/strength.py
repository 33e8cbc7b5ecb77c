"""How often and how strongly each feature fires, over all vectors of a split and by class."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jsae.activations import Encoded, Reducer
from jsae.runtime.pytrees import pytree


@dataclasses.dataclass(frozen=True)
class Strength:
    """What one pass over a split found; arrays on the host, activations in raw units.

    Attributes:
      n_images, n_vectors: images, and images times grid cells.
      fires: vectors on which a feature is not 0, int64 [F].
      active_images: images in which a feature fires in any cell, int64 [F].
      total: sum over vectors, float64 [F].
      max: largest value, float32 [F].
      class_count: images per class, int64 [L].
      class_mean: mean over the images of a class of the mean over the grid, float64 [F, L]; NaN for a class
        without images.
      class_max: the same of the maximum over the grid.
    """

    n_images: int
    n_vectors: int
    fires: np.ndarray
    active_images: np.ndarray
    total: np.ndarray
    max: np.ndarray
    class_count: np.ndarray
    class_mean: np.ndarray
    class_max: np.ndarray


@pytree
class MeasureStrength(Reducer):
    """`Strength` of every feature; `n_classes` is L, static."""

    n_classes: int = dataclasses.field(metadata={"static": True})

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> Strength:
        labels, n_features = np.asarray(store.labels)[images], dictionary.n_features
        if len(labels) and labels.max() >= self.n_classes:
            raise ValueError(f"label {labels.max()} has no name: the store has {self.n_classes} class names")
        return Strength(
            n_images=len(images),
            n_vectors=len(images) * store.grid[0] * store.grid[1],
            fires=np.zeros(n_features, np.int64),
            active_images=np.zeros(n_features, np.int64),
            total=np.zeros(n_features),
            max=np.zeros(n_features, np.float32),
            class_count=np.bincount(labels[labels >= 0], minlength=self.n_classes),
            class_mean=np.zeros((n_features, self.n_classes)),
            class_max=np.zeros((n_features, self.n_classes)),
        )

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, dict[str, jax.Array]]:
        feats = batch.feats.reshape(batch.feats.shape[0], -1, batch.feats.shape[-1])  # [B, H*W, F]
        pooled, peak = feats.mean(axis=1), feats.max(axis=1)  # [B, F]
        is_class = jax.nn.one_hot(batch.labels, self.n_classes) * batch.real[:, None]  # [B, L]; -1: no class
        return carry, {
            "fires": (feats != 0).sum(axis=(0, 1)),
            "active_images": (feats != 0).any(axis=1).sum(axis=0),
            "total": feats.sum(axis=1).sum(axis=0),
            "max": peak.max(axis=0),
            # products instead of segment sums: float32 scatter-add is slow on some GPU versions
            "class_mean": pooled.T @ is_class,  # [F, L]
            "class_max": peak.T @ is_class,
        }

    def add(self, total: Strength, part: dict, rows: slice, n: int) -> Strength:
        sums = {name: getattr(total, name) + value for name, value in part.items() if name != "max"}
        return dataclasses.replace(total, **sums, max=np.maximum(total.max, part["max"]))

    def finish(self, carry: Any, total: Strength) -> Strength:
        count = np.where(total.class_count > 0, total.class_count, np.nan)[None, :]
        means = {name: getattr(total, name) / count for name in ("class_mean", "class_max")}
        return dataclasses.replace(total, **means)


def spaced(n_images: int, n_features: int, max_values: int | None) -> np.ndarray:
    """Evenly spaced rows of a pass, all if they have no more than `max_values` pooled features together."""
    every = 1 if max_values is None else max(1, -(-n_images * n_features // max_values))
    return np.arange(0, n_images, every)


@pytree
class KeepPooled(Reducer):
    """The mean over the grid of every feature in every image, float32 [n, F] on the host.

    With `max_values`, static, in the `spaced` images only.
    """

    max_values: int | None = dataclasses.field(default=None, metadata={"static": True})

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        kept = spaced(len(images), dictionary.n_features, self.max_values)
        return kept, np.zeros((len(kept), dictionary.n_features), np.float32)

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, jax.Array]:
        feats = batch.feats
        return carry, feats.reshape(feats.shape[0], -1, feats.shape[-1]).mean(axis=1)

    def add(self, total: tuple, part: np.ndarray, rows: slice, n: int) -> tuple:
        kept, pooled = total
        first, last = np.searchsorted(kept, [rows.start, rows.start + n])
        pooled[first:last] = part[kept[first:last] - rows.start]
        return total

    def finish(self, carry: Any, total: tuple) -> np.ndarray:
        return total[1]


@pytree
class KeepMaps(Reducer):
    """Every feature in every cell, float32 [n, H*W, F] on the host: for few images."""

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> np.ndarray:
        return np.empty((len(images), store.grid[0] * store.grid[1], dictionary.n_features), np.float32)

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, jax.Array]:
        return carry, batch.feats

    def add(self, total: np.ndarray, part: np.ndarray, rows: slice, n: int) -> np.ndarray:
        total[rows] = part[:n].reshape(n, *total.shape[1:])
        return total
