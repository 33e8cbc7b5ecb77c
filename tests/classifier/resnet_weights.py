"""Random ResNet weights and images that numpy can make again anywhere: seeded by a tensor's name."""

import zlib

import numpy as np

IMAGE_SHAPES = ((64, 64), (65, 70))
N_CLASSES = 20
SIZES = ("resnet18", "resnet34", "resnet50")


def make_tensor(name: str, shape) -> np.ndarray:
    """float32 values of one tensor, drawn so that mistakes show: no batch norm is near the identity."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return np.array(7, np.int64)
    if name.endswith("running_var"):
        return rng.uniform(0.5, 2, shape).astype(np.float32)
    values = rng.standard_normal(shape)
    if len(shape) == 4:
        values *= (1 / np.prod(shape[1:])) ** 0.5
    elif len(shape) == 2:
        values *= 0.05
    elif name.endswith("weight"):
        values = rng.uniform(0.5, 1.2, shape)
    else:
        values *= 0.2
    return values.astype(np.float32)


def make_image(height: int, width: int) -> np.ndarray:
    """float32 [1, height, width, 3], as if normalised."""
    rng = np.random.default_rng([height, width])
    return rng.standard_normal((1, height, width, 3)).astype(np.float32)
