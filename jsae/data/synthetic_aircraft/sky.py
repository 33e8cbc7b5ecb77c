"""The background: a graded sky, clouds and, in half of the images, the ground."""

import math

import cv2
import numpy as np


def paint(rng: np.random.Generator, params: dict, size: int) -> np.ndarray:
    """Paints the sky of one image.

    Args:
        rng: gives the clouds and the texture of the ground.
        params: of appearance.sample.
        size: side of the image in pixels.

    Returns:
        float32 [size, size, 3], RGB in 0..1.
    """
    rows = np.linspace(0.0, 1.0, size, dtype=np.float32)
    columns = rows - 0.5
    top, low = (np.asarray(params[name], np.float32) for name in ("sky_top", "sky_low"))
    image = top + (low - top) * rows[:, None, None] + np.zeros((size, size, 1), np.float32)

    billows = sum(
        _smooth_noise(rng, cells, size) * weight for cells, weight in ((5, 0.5), (10, 0.3), (20, 0.2))
    )
    opacity = np.clip((billows - 0.72 + 0.35 * params["cloud_cover"]) * 3.5, 0.0, 0.85)[:, :, None]
    shade = params["cloud_grey"] * (0.85 + 0.15 * _smooth_noise(rng, 8, size))[:, :, None]
    image = image * (1.0 - opacity) + shade * opacity

    texture = 0.75 + 0.5 * _smooth_noise(rng, 16, size)
    if params["horizon"] < 0.5:
        line = params["horizon_y"] + math.tan(math.radians(params["horizon_tilt"])) * columns[None, :]
        depth = rows[:, None] - line  # [size, size], > 0 on the ground
        ground = np.asarray(params["ground"], np.float32) * texture[:, :, None]
        haze = np.exp(-8.0 * np.maximum(depth, 0.0))[:, :, None] * 0.7
        ground = ground * (1.0 - haze) + low * haze
        image = np.where(depth[:, :, None] > 0, ground, image)
    return image.astype(np.float32)


def _smooth_noise(rng: np.random.Generator, cells: int, size: int) -> np.ndarray:
    """Smooth noise in about 0..1 with `cells` bumps a side: float32 [size, size]."""
    coarse = rng.random((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
