"""The control of a blurred patch: another patch of the same image that loses as much to the blur."""

from typing import NamedTuple

import numpy as np

ENERGY_TOLERANCE = 0.2


class ControlPatches(NamedTuple):
    """The control patch of each of M pairs.

    Attributes:
      cells: int [M, 2], the cell (y, x) it lies around.
      matched: bool [M], there is one at all.
      energy_matched: bool [M], its blur energy is within 20%.
      on_foreground: bool [M], it lies on the foreground; False where that is not known.
    """

    cells: np.ndarray
    matched: np.ndarray
    energy_matched: np.ndarray
    on_foreground: np.ndarray


def choose_patches(
    energy: np.ndarray, peaks: np.ndarray, size_cells: int, foreground: np.ndarray | None
) -> ControlPatches:
    """The patch of nearest blur energy among those that do not overlap the peak's.

    Args:
      energy: ||alpha * (x - blur(x))||^2 of the patch around each cell, [M, H, W].
      peaks: int [M, 2].
      size_cells: side of the patches.
      foreground: bool [M, H, W]: which cells are on it; None if nobody knows.
    """
    m, height, width = energy.shape
    y, x = peaks.T
    apart_y = np.abs(np.arange(height)[None, :] - y[:, None]) >= size_cells  # [M, H]
    apart_x = np.abs(np.arange(width)[None, :] - x[:, None]) >= size_cells
    allowed = apart_y[:, :, None] | apart_x[:, None, :]
    on_foreground = np.zeros(m, bool)
    if foreground is not None:
        on = allowed & foreground
        on_foreground = on.any((1, 2))
        allowed = np.where(on_foreground[:, None, None], on, allowed)
    of_peak = energy[np.arange(m), y, x].astype(np.float64)
    gap = np.where(allowed, np.abs(energy - of_peak[:, None, None]), np.inf).reshape(m, -1)
    best = gap.argmin(1)
    matched = allowed.any((1, 2))
    energy_matched = matched & (gap[np.arange(m), best] <= ENERGY_TOLERANCE * of_peak)
    cells = np.stack(np.unravel_index(best, (height, width)), 1)
    return ControlPatches(cells, matched, energy_matched, on_foreground)
