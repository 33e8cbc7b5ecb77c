"""The control of a blurred area: the same shape elsewhere on the image, which loses as much to the blur.

It shares no pixel with the area, its blur energy ||alpha * (x - blur(x))||^2 is within 20% of the area's, and
where the foreground is known, the share of it that lies there is within 10 percentage points of the area's.
An area without such a place has no control.
"""

import numpy as np
import scipy
from numpy.lib.stride_tricks import sliding_window_view

ENERGY_TOLERANCE = 0.2
COVERAGE_TOLERANCE = 0.1


def feathered(area: np.ndarray, half_px: int) -> np.ndarray:
    """alpha of an area: float64 [S, T] in 0..1, of the same sum, from bool [S, T]."""
    alpha, ones = area.astype(np.float64), np.ones(2 * half_px + 1)
    for axis in (0, 1):  # sums of ones, so that what the edge does not reach is exactly 0
        alpha = scipy.ndimage.correlate1d(alpha, ones, axis, mode="reflect")
    return alpha / len(ones) ** 2


def weigh(alpha: np.ndarray, loss: np.ndarray, foreground: np.ndarray | None) -> tuple[float, float]:
    """(blur energy, share on the foreground or NaN) of alpha [S, T].

    Args:
      loss: ||x - blur(x)||^2 over the colours of each pixel, [S, T].
      foreground: bool [S, T]; None if nobody knows.
    """
    coverage = np.nan if foreground is None else float((alpha * foreground).sum() / alpha.sum())
    return float((np.square(alpha) * loss).sum()), coverage


def choose_shift(
    area: np.ndarray, loss: np.ndarray, foreground: np.ndarray | None, *, half_px: int, step_px: int
) -> tuple[int, int] | None:
    """How far (down, right) the area's control lies: the nearest blur energy; None if no place will do.

    Args:
      area: bool [S, T].
      loss, foreground: as for `weigh`.
      half_px: of the soft edge, which stays inside the image.
      step_px: places are tried in these steps.
    """
    alpha = feathered(area, half_px)
    energy, coverage = weigh(alpha, loss, foreground)
    (top, bottom), (left, right) = (np.flatnonzero(area.any(axis))[[0, -1]] for axis in (1, 0))
    kernel = feathered(np.pad(area[top : bottom + 1, left : right + 1], half_px), half_px)
    if any(k > n for k, n in zip(kernel.shape, area.shape, strict=True)):
        return None

    def sums(weights: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        windows = sliding_window_view(pixels, weights.shape)[::step_px, ::step_px]
        return np.einsum("yxhw,hw->yx", windows, weights)

    gap = np.abs(sums(np.square(kernel), loss) - energy)
    fits = (gap <= ENERGY_TOLERANCE * energy) & (sums(kernel, alpha) == 0)
    if foreground is not None:
        covered = sums(kernel, foreground.astype(np.float64)) / kernel.sum()
        fits &= np.abs(covered - coverage) <= COVERAGE_TOLERANCE
    if not fits.any():
        return None
    y, x = np.unravel_index(np.where(fits, gap, np.inf).argmin(), gap.shape)
    return int(y) * step_px + half_px - int(top), int(x) * step_px + half_px - int(left)
