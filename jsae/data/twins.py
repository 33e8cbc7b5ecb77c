"""Twins: two classes of a drawn set that differ in one part, and drawings that differ in nothing else.

Only drawn data have them: the renderer shows the same index with and without a part, so what the part does
to a network is known without a model of it.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jsae.data.synthetic_aircraft import drawing
from jsae.data.synthetic_aircraft.builder import pack_masks


class Pair(NamedTuple):
    """Two classes whose drawings of one index differ in `part` alone."""

    part: str
    without: int
    with_part: int


class Combination(NamedTuple):
    """Two aircraft that differ in the part of a pair alone and that are not both a class."""

    pair: Pair
    without: frozenset[str]
    with_part: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Twins:
    """The pairs of a drawn set and its renderer.

    Attributes:
      seed: of the data set.
      image_px: side S of its images.
    """

    seed: int
    image_px: int

    @property
    def variants(self) -> tuple[frozenset[str], ...]:
        """The parts of every class, by label."""
        return tuple(variant.parts for variant in drawing.VARIANTS)

    @functools.cached_property
    def pairs(self) -> tuple[Pair, ...]:
        """All pairs of classes that one added part sets apart, by part."""
        variants = self.variants
        found = [
            Pair(next(iter(b - a)), i, j)
            for i, a in enumerate(variants)
            for j, b in enumerate(variants)
            if a < b and len(b - a) == 1
        ]
        return tuple(sorted(found, key=lambda pair: (drawing.PART_NAMES.index(pair.part), pair[1:])))

    def combinations(self, n: int) -> tuple[Combination, ...]:
        """For each pair the first n such aircraft, made by adding or removing its part in each variant."""
        variants, found = self.variants, []
        for pair in self.pairs:
            two = dict.fromkeys((parts - {pair.part}, parts | {pair.part}) for parts in variants)
            new = (each for each in two if not set(each) <= set(variants) and all(map(_is_aircraft, each)))
            found += [Combination(pair, *each) for each in itertools.islice(new, n)]
        return tuple(found)

    @property
    def part_names(self) -> tuple[str, ...]:
        """Part p is bit p of the masks."""
        return drawing.PART_NAMES

    def draw(self, label: int, split: str, index: int) -> drawing.Example:
        """Image `index` of a split as if its class were `label`; any index >= 0, be it in the set or not."""
        return drawing.draw_variant(label, self.seed, split, index, self.image_px)

    def draw_parts(self, parts: Iterable[str], split: str, index: int) -> drawing.Example:
        """The same for any aircraft (`drawing.draw_parts`)."""
        return drawing.draw_parts(parts, self.seed, split, index, self.image_px)

    def masks(self, example: drawing.Example) -> np.ndarray:
        """The masks of a drawing as a split keeps them, uint16 [S, S] (`jsae.data.cache.Split`)."""
        return pack_masks(example.part_masks, example.aircraft_mask)


def _is_aircraft(parts: frozenset[str]) -> bool:
    try:
        drawing.Variant("any", parts)
    except ValueError:
        return False
    return True


def twins_of(data: Mapping[str, Any]) -> Twins | None:
    """The twins of config.data; None where nothing is drawn."""
    if data["kind"] != "synthetic_aircraft":
        return None
    return Twins(int(data["seed"]), int(data["image_size"]))
