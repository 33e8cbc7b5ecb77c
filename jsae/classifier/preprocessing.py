"""How images are prepared for published weights: as files beside them say, or as their source does."""

import dataclasses
import json
import pathlib

import numpy as np
from PIL import Image

from jsae.data.augment import IMAGENET_MEAN, IMAGENET_STD

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How images are prepared for evaluating published weights.

    Attributes:
      image_size: side of the square that the network sees, px.
      resize_px: the shorter side is scaled to this first.
      interpolation: "bicubic" or "bilinear".
      mean, std: of RGB in 0..1, as the file says; `pretrained.load` has folded any difference from
        ImageNet's into the stem.
      origin: where these numbers come from.
    """

    image_size: int
    resize_px: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    origin: str

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """RGB uint8 [h, w, 3] -> uint8 [S, S, 3]: shorter side to resize_px, then the centre."""
        shorter = min(rgb.shape[:2])
        height, width = (int(self.resize_px * side / shorter) for side in rgb.shape[:2])
        resized = Image.fromarray(rgb).resize((width, height), _RESAMPLING[self.interpolation])
        top, left = (round((side - self.image_size) / 2) for side in (height, width))
        return np.asarray(resized)[top : top + self.image_size, left : left + self.image_size]


def read(folder: pathlib.Path, usual: Preprocessing) -> Preprocessing:
    """The preprocessing told by the JSON files in `folder`, or else the usual one.

    Raises ValueError for an interpolation that there is not.
    """
    timm, hf = folder / "config.json", folder / "preprocessor_config.json"
    if hf.exists():
        found = json.loads(hf.read_text("utf-8"))
        side = found["size"] if isinstance(found["size"], int) else next(iter(found["size"].values()))
        resize = side if side >= 384 else int(side / found.get("crop_pct", 0.875))
        mode = "bilinear" if found.get("resample", 3) == 2 else "bicubic"
        mean, std = found.get("image_mean", IMAGENET_MEAN), found.get("image_std", IMAGENET_STD)
        return Preprocessing(side, resize, mode, tuple(mean), tuple(std), str(hf))
    if timm.exists() and "pretrained_cfg" in (found := json.loads(timm.read_text("utf-8"))):
        found = found["pretrained_cfg"]
        side = int(found["input_size"][-1])
        resize = int(side / found.get("crop_pct", 0.875))
        mode = found.get("interpolation", "bicubic")
        if mode not in _RESAMPLING:
            raise ValueError(f"{timm}: interpolation {mode!r}; valid are {', '.join(_RESAMPLING)}")
        mean, std = found.get("mean", IMAGENET_MEAN), found.get("std", IMAGENET_STD)
        return Preprocessing(side, resize, mode, tuple(mean), tuple(std), str(timm))
    return usual
