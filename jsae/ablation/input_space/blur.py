"""Gaussian blur of images, and the soft-edged patches that it is confined to."""

import numpy as np


def blur_matrix(n_px: int, sigma_px: float) -> np.ndarray:
    """Gaussian weights float32 [n_px, n_px], rows sum to 1 (renormalised at the border); sigma 0 is none.

    Raises ValueError if sigma_px is negative.
    """
    if sigma_px < 0:
        raise ValueError(f"sigma_px is at least 0, got {sigma_px}")
    distance = np.arange(n_px)[:, None] - np.arange(n_px)[None, :]
    weights = np.exp(-0.5 * np.square(distance / sigma_px)) if sigma_px else np.eye(n_px)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def patch_profiles(n_cells: int, n_px: int, stride_px: int, size_cells: int) -> np.ndarray:
    """alpha along one axis for a patch around each cell: float32 [n_cells, n_px].

    1 in the inside, falling linearly over a quarter of a cell to 0 at the patch's border.

    Raises ValueError if size_cells is not positive.
    """
    if size_cells < 1:
        raise ValueError(f"size_cells is at least 1, got {size_cells}")
    centres = (np.arange(n_cells)[:, None] + 0.5) * stride_px
    distance = np.abs(np.arange(n_px)[None, :] + 0.5 - centres)
    return np.clip((size_cells * stride_px / 2 - distance) / max(stride_px / 4, 1.0), 0, 1).astype(np.float32)
