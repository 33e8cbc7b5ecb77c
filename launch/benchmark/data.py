"""The section `data` of the benchmark: photos decoded, read from the cache, and augmented."""

import functools
import pathlib
import time

import cv2
import jax
import numpy as np

from jsae.data import augment, cache, decode, pipeline
from launch.benchmark import turns


def rates(data_dir: str, rounds: int, image_size: int = 96, batch: int = 32, n: int = 512) -> dict:
    """Images/s by decoding files one after the other, and by batches from the cache."""
    start = time.perf_counter()
    split = cache.load_splits(kind="fgvc_aircraft", dir=data_dir, image_size=image_size)["train"]
    opening_s = time.perf_counter() - start
    paths = sorted(pathlib.Path(data_dir).rglob("*.jpg"))[:n]

    def decode_files():
        return [
            decode.fit_square(decode.decode_rgb(path.read_bytes()), image_size, "squash") for path in paths
        ]

    def read_batches():
        batches = pipeline.train_batches(split, seed=0, batch_size=batch)
        return [next(batches)["image"][0, 0, 0, 0] for _ in range(len(paths) // batch)]

    rates = turns.alternate({"decoded": decode_files, "cached": read_batches}, len(paths), rounds)
    images = np.asarray(split.images[:batch])
    index = np.arange(batch)
    augmenting, serial = {}, jax.device_count() == 1 and jax.devices()[0].platform == "cpu"
    for name, strength in (("crop_flip", 0.0), ("crop_flip_trivial", 0.5)):
        how = {"crop": "resized", "trivial": strength, "one_by_one": serial}
        on_device = jax.jit(functools.partial(augment.augment, **how))
        augmenting[f"{name}_device"] = lambda f=on_device: f(jax.random.key(0), images, index)
        augmenting[f"{name}_opencv"] = lambda s=strength: _augment_by_opencv(images, s > 0)
    augmented = turns.alternate(augmenting, batch, 4 * rounds)
    return {
        "augmented_images_per_s": augmented,
        "decoded_images_per_s": rates["decoded"],
        "cached_images_per_s": rates["cached"],
        "image_size": image_size,
        "first_file_px": list(decode.decode_rgb(paths[0].read_bytes()).shape[:2]),
        "opening_the_cache_s": opening_s,
    }


def _augment_by_opencv(images: np.ndarray, change: bool) -> np.ndarray:
    """What a loader's thread would do, for its time only: the draws are not those of `augment`."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    size = images.shape[1]
    out = np.empty(images.shape, np.float32)
    for i, image in enumerate(images):
        side = int(size * rng.uniform(0.6, 1))
        y, x = rng.integers(0, size - side + 1, 2)
        image = cv2.resize(image[y : y + side, x : x + side], (size, size))
        image = np.ascontiguousarray(image[:, ::-1]) if rng.random() < 0.5 else image
        if change and i % 3 == 0:
            turn = cv2.getRotationMatrix2D((size / 2, size / 2), float(rng.uniform(-60, 60)), 1)
            image = cv2.warpAffine(image, turn, (size, size))
        elif change and i % 3 == 1:
            image = cv2.LUT(image, np.arange(256, dtype=np.uint8)[::-1].copy())
        elif change:
            image = cv2.blur(image, (3, 3))
        out[i] = (image / 255.0 - 0.45) / 0.22
    return out
