"""Random weights and images that numpy can make again anywhere: seeded by a tensor's name."""

import zlib

import numpy as np

IMAGE_SHAPES = ((224, 224), (225, 230))
N_CLASSES = 20
SIZES = {"atto": ((2, 2, 6, 2), (40, 80, 160, 320)), "tiny": ((3, 3, 9, 3), (96, 192, 384, 768))}


def make_tensor(name: str, shape) -> np.ndarray:
    """float32 values of one tensor, drawn so that mistakes show.

    Layer scales lie in 0..0.5: at the published 1e-6 the blocks would be invisible. Kernels and biases
    have the published 0.02: with larger ones the variances that layer norms see would hide a wrong eps.
    """
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    values = rng.standard_normal(shape)
    if "gamma" in name or "layer_scale" in name:
        values = rng.uniform(0, 0.5, shape)
    elif len(shape) == 1 and name.endswith("weight"):
        values = 1 + 0.1 * values
    else:
        values = 0.02 * values
    return values.astype(np.float32)


def make_image(height: int, width: int) -> np.ndarray:
    """float32 [1, height, width, 3], as if normalised."""
    rng = np.random.default_rng([height, width])
    return rng.standard_normal((1, height, width, 3)).astype(np.float32)
