"""Where the thing lies that a feature is to be blurred at: its part's mask, or the box of a photo.

The part of a feature is the one that it localises best on train (localisation.parquet). Where no part is
known, and in photos with boxes, it is the foreground as a whole.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from jsae.analysis.cells import FOREGROUND
from jsae.data.cache import FOREGROUND_BIT, Split


@dataclasses.dataclass(frozen=True)
class Marks:
    """The masks or boxes of a split.

    Attributes:
      split: has masks or boxes; masks come first.
      bits: feature -> bit of the masks; one without has the foreground's.
    """

    split: Split
    bits: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @property
    def name(self) -> str:
        """What marks a thing, "mask" or "box"."""
        return "box" if self.split.masks is None else "mask"

    def __call__(self, feature: int, image: int) -> np.ndarray:
        """Pixels of the feature's part on an image, bool [S, T]; none where the image does not show it."""
        return self._pixels(image, self.bits.get(feature, FOREGROUND_BIT))

    def foreground(self, image: int) -> np.ndarray:
        """Pixels on the foreground of an image, bool [S, T]."""
        return self._pixels(image, FOREGROUND_BIT)

    def _pixels(self, image: int, bit: int) -> np.ndarray:
        if self.split.masks is not None:
            return (self.split.masks[image] >> bit & 1).astype(bool)
        assert self.split.boxes is not None
        x0, y0, x1, y1 = np.asarray(self.split.boxes[image], np.float64)
        y, x = (np.arange(n) + 0.5 for n in self.split.images.shape[1:3])
        return ((y >= y0) & (y < y1))[:, None] & ((x >= x0) & (x < x1))[None, :]


def marks_of(split: Split, localised: pa.Table | None) -> Marks | None:
    """The marks of a split; None where neither masks nor boxes are known.

    Args:
      split: the test images.
      localised: localisation.parquet, whose `auroc_train` chooses each feature's part; None: the foreground.
    """
    if split.masks is None:
        return None if split.boxes is None else Marks(split)
    best: dict[int, tuple[float, int]] = {}
    columns = ("feature", "part", "auroc_train")
    rows = zip(*(localised[name].to_pylist() for name in columns), strict=True) if localised else ()
    for feature, part, score in rows:
        if part != FOREGROUND and score is not None and score > best.get(feature, (0.0, 0))[0]:
            best[feature] = (score, split.part_names.index(part))
    return Marks(split, {feature: bit for feature, (_, bit) in best.items()})
