"""The twins of a study as its network sees them: activations and logits of one index in every class.

A class that several pairs share is drawn and run once. So are aircraft that are no class, which the logits of
a pair read all the same.
"""

import concurrent.futures
import dataclasses
import os
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np

from jsae.classifier.forward import LogitsAndActs
from jsae.data import augment
from jsae.data.twins import Pair
from jsae.runtime.batches import map_rows
from jsae.runtime.context import RunContext
from jsae.study import Study


class Seen(NamedTuple):
    """Drawings of one class: activations float32 [n, H, W, C], raw, and logits [n, L]."""

    acts: np.ndarray
    logits: np.ndarray


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Indices 0 .. n - 1 of a split in the aircraft of all pairs.

    Attributes:
      split: "train" or "test".
      pairs: of `Twins`; of combinations, two numbers of aircraft.
      classes: number of the aircraft, which is the label of a class, -> its drawings.
      contrasts_of: the pairs whose labels are read, of combinations; None: `pairs`.
    """

    split: str
    pairs: tuple[Pair, ...]
    classes: dict[int, Seen]
    contrasts_of: tuple[Pair, ...] | None = None

    @property
    def n(self) -> int:
        """Drawings of a pair."""
        return len(self.classes[self.pairs[0].without].logits)

    def of(self, pair: Pair) -> tuple[Seen, Seen]:
        """Without and with the part."""
        return self.classes[pair.without], self.classes[pair.with_part]

    @property
    def labels(self) -> np.ndarray:
        """What c reads of each pair: the labels without and with the part, int32 [P, 2]."""
        return np.array([pair[1:] for pair in self.contrasts_of or self.pairs], np.int32)

    def contrasts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """c . l without and with the part, float64 [n] each, pair by pair."""
        for pair, (a, b) in zip(self.pairs, self.labels, strict=True):
            logits = (seen.logits.astype(np.float64) for seen in self.of(pair))
            without, with_part = (each[:, b] - each[:, a] for each in logits)
            yield without, with_part

    def totals(self) -> np.ndarray:
        """D = c . (l(A1) - l(A0)), float64 [P, n]."""
        return np.stack([with_part - without for without, with_part in self.contrasts()])


def draw(
    study: Study,
    split: str,
    n: int,
    *,
    batch_size: int,
    n_combinations: int = 0,
    images: dict | None = None,
    context: RunContext | None = None,
) -> Drawn:
    """Draw n indices of a split in every aircraft of the pairs, and run the classifier on them.

    Products are float32. Memory: aircraft * n * H * W * C * 4 bytes on the host of every process.

    Args:
      study: of drawn data.
      split: of the indices.
      n: how many.
      batch_size: images at once.
      n_combinations: draw no classes, but for each pair up to so many other aircraft without and with its
        part (`Twins.combinations`).
      images: drawn before of the same data, (parts, split, index) -> uint8 [S, S, 3]; new ones are added.
      context: shows progress and stops.

    Raises ValueError where nothing is drawn.
    """
    twins = study.twins
    if twins is None:
        raise ValueError(f"{study.workdir}: its data are not drawn, so no image has a twin")
    pairs, read_by, parts_of = twins.pairs, None, list(twins.variants)
    if n_combinations:
        combinations = twins.combinations(n_combinations)
        read_by = tuple(each.pair for each in combinations)
        parts_of = list(dict.fromkeys(parts for each in combinations for parts in each[1:]))
        pairs = tuple(Pair(each.pair.part, *map(parts_of.index, each[1:])) for each in combinations)
    labels = sorted({label for pair in pairs for label in (pair.without, pair.with_part)})
    forward = LogitsAndActs(study.params, study.site)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def image_of(key: tuple) -> np.ndarray:
            if images is not None and key in images:
                return images[key]
            image = twins.draw_parts(*key).image
            if images is not None:
                images[key] = image
            return image

        def read(rows: np.ndarray) -> dict[str, np.ndarray]:
            keys = [(parts_of[labels[row // n]], split, row % n) for row in rows.tolist()]
            return {"image": np.stack(list(pool.map(image_of, keys)))}

        logits, acts = map_rows(
            lambda batch: _seen(forward, batch["image"]),
            read,
            len(labels) * n,
            batch_size=batch_size,
            mesh=study.mesh,
            context=context,
            label=f"counterfactual: drawings of {split}",
        )
    rows = {label: slice(i * n, (i + 1) * n) for i, label in enumerate(labels)}
    return Drawn(split, pairs, {label: Seen(acts[at], logits[at]) for label, at in rows.items()}, read_by)


@jax.jit
def _seen(forward: LogitsAndActs, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return forward(augment.normalise(images))
