"""Which pixels are blurred: the areas of all placements of every pair, and the control of each.

Worked out on the host, image by image, so that no batch size and no number of devices has a say in which
control is chosen. An area that two placements of a pair share is blurred once.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jsae.ablation.input_space import controls
from jsae.ablation.input_space.placements import Pair, Placement, region
from jsae.analysis.marks import Marks
from jsae.data import blur
from jsae.runtime.context import RunContext

KINDS = ("effect", "control")  # the area itself, then its control
CELL = "cell"


@dataclasses.dataclass(frozen=True)
class Layout:
    """The R areas that M pairs blur.

    Attributes:
      index: int [M, placement, area], the number of the area; -1 where there is none.
      packed: uint8 [R, ceil(S * T / 8)], the pixels as bits (`pixels`).
      sides: (S, T).
      pair: int [R], whose area it is.
      shift: int [R, 2], (down, right) to the control.
      matched: bool [R], there is a control.
      area_px, energy, coverage: [R, kind] pixels (the sum of alpha), blur energy and share on the foreground;
        NaN without a control, or where the foreground is not known.
    """

    index: np.ndarray
    packed: np.ndarray
    sides: tuple[int, int]
    pair: np.ndarray
    shift: np.ndarray
    matched: np.ndarray
    area_px: np.ndarray
    energy: np.ndarray
    coverage: np.ndarray

    def pixels(self, rows: np.ndarray, control: np.ndarray) -> np.ndarray:
        """The areas int [n], or their controls where bool [n] says so, as uint8 [n, S, T]."""
        height, width = self.sides
        bits = np.unpackbits(self.packed[rows], axis=1, count=height * width)
        areas = bits.reshape(len(rows), height, width)
        for i in np.flatnonzero(control):
            areas[i] = np.roll(areas[i], self.shift[rows[i]], (0, 1))
        return areas


def lay_out(
    read_images: Callable[[np.ndarray], np.ndarray],
    features: np.ndarray,
    images: np.ndarray,
    maps: np.ndarray,
    *,
    placements: Mapping[str, Placement],
    marks: Marks | None,
    stride_px: int,
    size_cells: int,
    blurs: tuple[np.ndarray, np.ndarray],
    context: RunContext,
) -> Layout:
    """The areas of all pairs.

    Args:
      read_images: image numbers [n] -> [n, S, T, 3], uint8 or normalised floats.
      features, images: int [M].
      maps: the features' maps on the clean images [M, H, W], raw units.
      placements: by name.
      marks: where the things lie; None: only one area, a patch of cells, is blurred.
      stride_px, size_cells: pixels a cell, and cells along the side of that patch.
      blurs: matrices of rows and of columns.
      context: shows progress and stops.
    """
    half_px, sides = blur.half_feather_px(stride_px), (len(blurs[0]), len(blurs[1]))
    patch_px = min((size_cells * stride_px) ** 2, sides[0] * sides[1])
    index = np.full((len(images), len(placements), 1 if marks is None else 2), -1)
    rows: list[tuple] = []
    with context.progress(len(images), label="ablation: where to blur", unit="pair") as progress:
        for image in np.unique(images).tolist():
            loss = np.asarray(
                _loss(read_images(np.array([image])), *blurs), np.float64
            )  # alone: no batch has a say
            foreground = None if marks is None else marks.foreground(image)
            for row in np.flatnonzero(images == image).tolist():
                feature, thing = int(features[row]), None
                if marks is not None and (mask := marks(feature, image)).any():
                    thing = controls.feathered(mask, half_px) > 0  # so that alpha is 1 on the whole mask
                pair = Pair(row, feature, image, maps[row], thing, sides, stride_px)
                areas_px = [patch_px] + ([] if thing is None else [int(thing.sum())])
                there: dict[bytes, int] = {}
                for area, placement, i in _areas(pair, placements, areas_px):
                    bits = np.packbits(area)
                    if bits.tobytes() not in there:
                        there[bits.tobytes()] = len(rows)
                        rows.append((row, bits, *_with_control(area, loss, foreground, half_px, stride_px)))
                    index[row, placement, i] = there[bits.tobytes()]
                progress.update(1)
            context.check_here()
    if not rows:
        none = np.zeros((0, 2))
        return Layout(index, none, sides, np.zeros(0, int), none, np.zeros(0, bool), none, none, none)
    pair_of, packed, shift, weights = (np.array(each) for each in zip(*rows, strict=True))
    matched = ~np.isnan(weights[:, 1, 0])
    return Layout(index, packed, sides, pair_of, shift, matched, *np.moveaxis(weights, -1, 0))


def _areas(pair: Pair, placements: Mapping[str, Placement], areas_px: list[int]):
    """(area bool [S, T], number of the placement, number of the area); none for a map that is 0."""
    for placement, score in enumerate(placements.values()):
        scores = score(pair) if pair.cells.max() > 0 else None
        if scores is not None:
            yield from ((region(scores, px), placement, i) for i, px in enumerate(areas_px))


@jax.jit
def _loss(images: jax.Array, blur_rows: jax.Array, blur_columns: jax.Array) -> jax.Array:
    """||x - blur(x)||^2 over the colours of each pixel [S, T] of one image [1, S, T, 3]."""
    x = blur.normalised(images)
    return jnp.square(blur.blurred(x, blur_rows, blur_columns) - x).sum(-1)[0]


def _with_control(area, loss, foreground, half_px: int, stride_px: int) -> tuple[tuple[int, int], np.ndarray]:
    """(shift to the control, [kind, (pixels, energy, coverage)] of the area and of the control)."""
    step_px = max(stride_px // 4, 1)
    shift = controls.choose_shift(area, loss, foreground, half_px=half_px, step_px=step_px)
    weights = np.full((len(KINDS), 3), np.nan)
    for kind, where in enumerate([area] if shift is None else [area, np.roll(area, shift, (0, 1))]):
        alpha = controls.feathered(where, half_px)
        weights[kind] = alpha.sum(), *controls.weigh(alpha, loss, foreground)
    return shift or (0, 0), weights
