"""Where to blur for a feature: a placement gives every pixel a score, and the best pixels are the area.

So all placements can blur equal areas: the first `area_px` pixels in the order of the score. A new placement
is one function of a `Pair` and one name in the dict that `patches.effects_of_blurring` gets.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy


class Pair(NamedTuple):
    """A feature on an image, as placements see it.

    Attributes:
      row: number of the pair among all that are measured.
      feature, image: numbers.
      cells: the feature's map on the clean image [H, W], raw units, somewhere above 0.
      marked: bool [S, T], where the thing lies; None where nobody knows, or the image does not show it.
      sides: (S, T) of the image.
      stride_px: pixels a cell.
    """

    row: int
    feature: int
    image: int
    cells: np.ndarray
    marked: np.ndarray | None
    sides: tuple[int, int]
    stride_px: int


Placement = Callable[[Pair], np.ndarray | None]


def active_cells(maps: np.ndarray) -> np.ndarray:
    """Cells in which a feature has at least half its maximum on the image: bool, of maps [..., H, W]."""
    return (maps > 0) & (maps >= maps.max((-2, -1), keepdims=True) / 2)


def peak(pair: Pair) -> np.ndarray:
    """A square around the centre of the first largest cell."""
    at_peak = np.zeros(pair.cells.shape, bool)
    at_peak.flat[pair.cells.argmax()] = True
    return _near(at_peak, pair)


def active(pair: Pair) -> np.ndarray:
    """Squares around the centres of all active cells, of equal size; whole cells where there is room."""
    return _near(active_cells(pair.cells), pair)


def marked(pair: Pair) -> np.ndarray | None:
    """The mask or box: its inside first, the farther from its border the earlier, then what lies around."""
    if pair.marked is None:
        return None
    inside = np.pad(pair.marked, 1)  # the image's edge is a border
    depth = scipy.ndimage.distance_transform_edt(inside) - scipy.ndimage.distance_transform_edt(~inside)
    return depth[1:-1, 1:-1]


def of_maps(maps: Mapping[int, np.ndarray]) -> Placement:
    """The pixels that a feature depends on most, by row -> pixel map [S, T]; none for a pair without one."""
    return lambda pair: maps.get(pair.row)


def of_marks(name: str | None) -> dict[str, Placement]:
    """The placements of a study: where it fires, and, with a name ("mask" or "box"), where the thing lies."""
    fires: dict[str, Placement] = {"peak": peak, "active": active}
    return fires if name is None else fires | {name: marked}


def region(scores: np.ndarray, area_px: int) -> np.ndarray:
    """The area_px pixels of the largest scores [S, T], equal ones in reading order, as bool [S, T]."""
    found = np.zeros(scores.shape, bool)
    found.flat[np.argsort(-scores, axis=None, kind="stable")[:area_px]] = True
    return found


def _near(cells: np.ndarray, pair: Pair) -> np.ndarray:
    """Minus the distance of each pixel to the nearest centre of the cells, along the farther axis.

    Of pixels on the same square those nearer in a straight line come first.
    """
    offsets = [
        np.abs(np.arange(n)[None, :] + 0.5 - (at[:, None] + 0.5) * pair.stride_px)
        for at, n in zip(np.nonzero(cells), pair.sides, strict=True)
    ]
    y, x = offsets[0][:, :, None], offsets[1][:, None, :]
    straight = (np.square(y) + np.square(x)) / np.square(
        pair.sides
    ).sum()  # below 1, the step between squares
    return -(np.maximum(y, x) + straight).min(0)
