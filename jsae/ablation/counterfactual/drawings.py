"""The twins of a study as its network sees them: activations and logits of one index in every class.

A class that several pairs share is drawn and run once.
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
    """Indices 0 .. n - 1 of a split in the classes of all pairs.

    Attributes:
      split: "train" or "test".
      pairs: of `Twins`.
      classes: label -> its drawings.
    """

    split: str
    pairs: tuple[Pair, ...]
    classes: dict[int, Seen]

    @property
    def n(self) -> int:
        """Drawings of a pair."""
        return len(self.classes[self.pairs[0].without].logits)

    def of(self, pair: Pair) -> tuple[Seen, Seen]:
        """Without and with the part."""
        return self.classes[pair.without], self.classes[pair.with_part]

    def contrasts(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """c . l without and with the part, float64 [n] each, pair by pair."""
        for pair in self.pairs:
            logits = (seen.logits.astype(np.float64) for seen in self.of(pair))
            without, with_part = (each[:, pair.with_part] - each[:, pair.without] for each in logits)
            yield without, with_part

    def totals(self) -> np.ndarray:
        """D = c . (l(A1) - l(A0)), float64 [P, n]."""
        return np.stack([with_part - without for without, with_part in self.contrasts()])


def draw(study: Study, split: str, n: int, *, batch_size: int, context: RunContext | None = None) -> Drawn:
    """Draw n indices of a split in every class that is in a pair, and run the classifier on them.

    Products are float32. Memory: classes * n * H * W * C * 4 bytes on the host of every process.

    Raises ValueError where nothing is drawn.
    """
    twins = study.twins
    if twins is None:
        raise ValueError(f"{study.workdir}: its data are not drawn, so no image has a twin")
    labels = sorted({label for pair in twins.pairs for label in (pair.without, pair.with_part)})
    forward = LogitsAndActs(study.params, study.site)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:

        def read(rows: np.ndarray) -> dict[str, np.ndarray]:
            drawn = pool.map(lambda row: twins.draw(labels[row // n], split, row % n).image, rows.tolist())
            return {"image": np.stack(list(drawn))}

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
    return Drawn(split, twins.pairs, {label: Seen(acts[at], logits[at]) for label, at in rows.items()})


@jax.jit
def _seen(forward: LogitsAndActs, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    return forward(augment.normalise(images))
