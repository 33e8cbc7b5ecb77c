"""Which cells of the grid are on the foreground and on its parts, where masks or boxes say so.

A cell is positive for a mask that covers at least 10% of it and negative for one that covers nothing of it;
in between it is neither. A box counts as a mask of the foreground.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jsae.data.cache import FOREGROUND_BIT, Split

COVERED = 0.1  # of a positive cell
FOREGROUND = "foreground"


class PartCells:
    """Reads the cells of a split's images, part by part.

    Attributes:
      names: the parts of the masks, then "foreground"; boxes know the foreground only.
    """

    def __init__(self, split: Split, grid: tuple[int, int], stride_px: int) -> None:
        """Raises ValueError if the split has neither masks nor boxes."""
        if split.masks is None and split.boxes is None:
            raise ValueError(f"the split {split.name} has neither masks nor boxes")
        self._split: Any = split  # whose masks or boxes are there
        self._grid, self._stride_px = grid, stride_px
        self.names = (*(split.part_names if split.masks is not None else ()), FOREGROUND)

    def __call__(self, images: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """Positive and negative cells of image numbers [n], bool [n, H * W, P] each.

        A part is compared with the rest of the foreground, in the images that have the part: else any
        foreground detector would find every part. The foreground is compared with the rest of the image.
        """
        images = np.asarray(images)
        foreground = self._of_foreground(images).reshape(len(images), -1, 1)
        on_foreground, off_foreground = foreground >= COVERED, foreground == 0
        if self._split.masks is None:
            return on_foreground, off_foreground
        masks = self._masks(images)
        parts = [self._share(masks >> bit & 1) for bit in range(len(self.names) - 1)]
        parts = np.stack(parts, -1).reshape(len(images), -1, len(parts))  # [n, H * W, P - 1]
        has = parts_visible(self._split, images)
        negative = on_foreground & (parts == 0) & has[:, None, :]
        positive = parts >= COVERED
        return np.concatenate([positive, on_foreground], -1), np.concatenate([negative, off_foreground], -1)

    def on_foreground(self, images: np.ndarray) -> np.ndarray:
        """Cells that the foreground covers by 10% in image numbers [n], bool [n, H, W]."""
        return self._of_foreground(images) >= COVERED

    def _of_foreground(self, images: np.ndarray) -> np.ndarray:
        """The share of each cell that the foreground covers, [n, H, W]."""
        if self._split.masks is not None:
            return self._share(self._masks(images) >> FOREGROUND_BIT & 1)
        x0, y0, x1, y1 = np.asarray(self._split.boxes[images], np.float64).T

        def cover(low, high, n):
            edges = np.arange(n + 1)[None, :] * self._stride_px
            inside = np.minimum(edges[:, 1:], high[:, None]) - np.maximum(edges[:, :-1], low[:, None])
            return np.clip(inside, 0, None) / self._stride_px

        height, width = self._grid
        return cover(y0, y1, height)[:, :, None] * cover(x0, x1, width)[:, None, :]

    def _masks(self, images) -> np.ndarray:
        height, width = (cells * self._stride_px for cells in self._grid)
        return np.asarray(self._split.masks[images])[:, :height, :width]

    def _share(self, mask) -> np.ndarray:
        """The share of each cell that a mask of 0 and 1 [n, S, S] covers, [n, H, W]."""
        (height, width), px = self._grid, self._stride_px
        return mask.reshape(len(mask), height, px, width, px).mean((2, 4))


def parts_visible(split: Any, images: np.ndarray) -> np.ndarray:
    """Which parts of `part_names` are visible in image numbers [n] of a split with masks, bool [n, P]."""
    seen = np.array([np.bitwise_or.reduce(split.masks[image], axis=None) for image in images])
    return (seen[:, None] >> np.arange(len(split.part_names))[None, :] & 1).astype(bool)


def of_stores(splits: Mapping, stores: Mapping, stride_px: int) -> dict[str, PartCells] | None:
    """`PartCells` of each store's images, None where nobody knows where the foreground is.

    Args:
      splits, stores: by the same names.
      stride_px: pixels a cell of the stores' grid.

    Raises ValueError if a split's images are not those of its store.
    """
    for name, store in stores.items():
        if list(splits[name].ids) != list(store.image_ids):
            raise ValueError(
                f"the {len(splits[name].ids)} {name} images of config.data are not the {store.n_images} "
                f"whose activations lie in {store.folder}; extract them again with --restart=activations"
            )
    found = {name: part_cells(splits[name], store.grid, stride_px) for name, store in stores.items()}
    known = {name: cells for name, cells in found.items() if cells is not None}
    return known if len(known) == len(found) else None


def part_cells(split: Split, grid: tuple[int, int], stride_px: int) -> PartCells | None:
    """The split's `PartCells`, None where nobody knows where the foreground is."""
    return None if split.masks is None and split.boxes is None else PartCells(split, grid, stride_px)


def foreground_cells(split: Split, grid: tuple[int, int], stride_px: int) -> Callable | None:
    """A function image numbers [n] -> bool [n, H, W]: the cell is on the foreground; None if nobody knows."""
    cells = part_cells(split, grid, stride_px)
    return None if cells is None else cells.on_foreground
