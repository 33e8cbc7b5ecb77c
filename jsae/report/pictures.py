"""Pictures of the report: JPEG files of test images, shared by all pages, and heat maps of features.

Images are read one by one from the memory-mapped cache and activations a few images at a time, so the
memory needed does not grow with the data set.
"""

import io
from collections.abc import Callable, Iterator

import jax
import numpy as np
from PIL import Image

from jsae.runtime import preemption

_JPEG_QUALITY = 85
_MAX_SIDE_PX = 320
_BATCH = 16


def jpeg(image: np.ndarray) -> bytes:
    """The JPEG of one uint8 [H, W, 3] image, at most 320 pixels wide and high."""
    picture = Image.fromarray(np.asarray(image))
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def wanted_maps(patches: dict[int, list[dict]]) -> dict[int, list[int]]:
    """image -> the features whose map over it is shown, from feature -> top patches; both sorted."""
    wanted: dict[int, set[int]] = {}
    for feature, rows in patches.items():
        for row in rows:
            wanted.setdefault(row["image"], set()).add(feature)
    return {image: sorted(wanted[image]) for image in sorted(wanted)}


def heat_maps(read: Callable, encode: Callable, wanted: dict[int, list[int]]) -> dict:
    """(image, feature) -> the feature's map float32 [H, W], raw units.

    Args:
      read: (start, stop) -> raw activations float32 [stop - start, H, W, C] of the test split.
      encode: [B, H, W, C] -> features [B, H, W, F] in raw units.
      wanted: image -> features, from `wanted_maps`.
    """
    encode = jax.jit(encode)
    maps = {}
    with jax.default_matmul_precision("float32"):
        for images in _chunks(list(wanted)):
            preemption.check()
            acts = np.concatenate([read(image, image + 1) for image in images])
            padded = np.zeros((_BATCH, *acts.shape[1:]), np.float32)  # one shape, one compilation
            padded[: len(images)] = acts
            feats = np.asarray(encode(padded))  # [B, H, W, F]
            for i, image in enumerate(images):
                for feature in wanted[image]:
                    maps[image, feature] = feats[i, :, :, feature].copy()
    return maps


def _chunks(images: list[int]) -> Iterator[list[int]]:
    for start in range(0, len(images), _BATCH):
        yield images[start : start + _BATCH]
