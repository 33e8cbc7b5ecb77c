"""A small generated folder of class folders."""

import io
import pathlib

import numpy as np
from PIL import Image

ODD_NAMES = ("707-320", "Flügel <b>&amp;", 'L\'Oiseau "Bleu"', "東京 飛行機")


def png(seed: int, width: int = 12, height: int = 10) -> bytes:
    """A noisy picture."""
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(folder: pathlib.Path, images: dict[str, int]) -> pathlib.Path:
    """Write `images`, {class folder below `folder`: how many}, files 0.png, 1.png, ... in each."""
    for number, (name, n) in enumerate(images.items()):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (folder / name / f"{i}.png").write_bytes(png(1000 * number + i))
    return folder
