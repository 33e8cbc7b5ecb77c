"""The world of the made-up study: classes, drawn images, activations, stand-ins for the two models."""

from typing import Any

import numpy as np

from jsae.activations.store import make_batches
from jsae.runtime.pytrees import pytree

MARKUP = "<script>alert('a')</script> & \"Co\" F-16A/B"
CLASSES = ("Arrow 100", MARKUP, "Boreal 7", "Cirrus Ünïted", "Arrow 200", "Dart", "Eider Mk IV", "Falke")
N_FEATURES, N_IMAGES, GRID, IMAGE_PX = 64, 40, (3, 3), 96
LARGEST = 3.0  # value that maps are relative to
LABELS = np.arange(N_IMAGES) % len(CLASSES)


def images() -> np.ndarray:
    """uint8 [N, S, S, 3]: a sky gradient with a slanted bar, a different one each."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:IMAGE_PX, :IMAGE_PX] / IMAGE_PX
    found = []
    for _ in range(N_IMAGES):
        angle, offset = rng.uniform(-0.6, 0.6), rng.uniform(0.35, 0.65)
        sky = np.stack([0.45 + 0.3 * y, 0.62 + 0.2 * y, 0.9 - 0.1 * y], -1)
        body = np.abs(y - offset - angle * (x - 0.5)) < 0.05 + 0.03 * np.sin(6 * x)
        found.append(np.where((body & (np.abs(x - 0.5) < 0.4))[..., None], rng.uniform(0, 1, 3), sky))
    return (255 * np.stack(found)).astype(np.uint8)


@pytree
class Repeating:
    """A stand-in for an SAE: feature f is channel f % C above f / 50."""

    w_dec: Any
    n_features = N_FEATURES

    def encode(self, acts):
        features = np.arange(N_FEATURES)
        kept = acts[..., features % acts.shape[-1]] - (features / 50).astype(np.float32)[None, None, None]
        return kept * (kept > 0)


SAE = Repeating(np.eye(8, dtype=np.float32)[np.arange(N_FEATURES) % 8])


@pytree
class Head:
    """A stand-in for the rest of the classifier: class c reads channel c."""

    weights: Any

    def __call__(self, acts):
        return acts.mean((1, 2)) @ self.weights


HEAD = Head(np.eye(8, dtype=np.float32))


def read_acts(start: int, stop: int) -> np.ndarray:
    """A stand-in for an activation store: float32 [stop - start, H, W, 8]."""
    return np.concatenate(
        [
            np.random.default_rng(i).exponential(1.5, (1, *GRID, 8)).astype(np.float32)
            for i in range(start, stop)
        ]
    )


class FakeStore:
    """A stand-in for an activation store of the first `n_images` images."""

    grid, read = GRID, staticmethod(read_acts)

    def __init__(self, n_images: int = N_IMAGES, labels=LABELS):
        self.n_images, self.labels = n_images, np.asarray(labels[:n_images], np.int32)
        self.image_ids = [f"{i:07d}" for i in range(n_images)]

    def batches(self, batch_size: int, images=None):
        return make_batches(self, batch_size, images)
