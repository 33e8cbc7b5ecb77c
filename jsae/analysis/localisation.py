"""localisation.parquet: does a feature fire where a part is? For all features, where masks or boxes know.

Part AUROC: over cells on the foreground, in the images that have the part (the foreground as a whole: over
all cells of all images). Pointing game: is the feature's peak in the part. Train chooses, test reports, and
beside the SAE stand the best of as many random directions chosen on train in the same way, and priors that
look at no activation: the nearness of a cell to the centre of the image, and how often the part covered the
cell on train. It measures where a feature fires, mostly a matter of position, and not what it stands for: a
table for an appendix. A split is looked at through evenly spaced images, as many as fit into a fixed memory.
"""

import dataclasses
from typing import Any

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.analysis.cells import PartCells
from jsae.tables import Column, Table

MAX_IMAGES = 512  # of a split
_VALUES = 2**27  # features of all cells of these images, 4 bytes each on the host

TABLE = Table(
    "localisation",
    (
        Column("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
        Column("part", pa.string(), "part of the foreground, or foreground"),
        Column("n_images", pa.int32(), "test images that have the part in a cell"),
        Column(
            "auroc_train",
            pa.float64(),
            "AUROC of the feature for cells that the part covers by 10% against the cells on the foreground "
            "of which it covers nothing, in train images that have the part; of the foreground: against all "
            "cells outside it",
        ),
        Column("auroc", pa.float64(), "the same on test"),
        Column(
            "pointing",
            pa.float64(),
            "share of n_images in which the feature's peak is in the part; silent: a miss",
        ),
    ),
)


@dataclasses.dataclass(frozen=True)
class Scores:
    """How well features find parts on one split; arrays on the host.

    Attributes:
      parts: P names.
      n_images: images with a cell of the part, [P].
      auroc, pointing: [F, P].
    """

    parts: tuple[str, ...]
    n_images: np.ndarray
    auroc: np.ndarray
    pointing: np.ndarray

    def best(self) -> np.ndarray:
        """The feature of the largest AUROC for each part, [P]; 0 where there is none."""
        return np.nan_to_num(self.auroc, nan=-1).argmax(0)


def images_of(store: Any, n_features: int) -> np.ndarray:
    """Evenly spaced image numbers of a store, at most 512 and as many as fit into 512 MiB of features."""
    height, width = store.grid
    n = min(store.n_images, MAX_IMAGES, max(1, _VALUES // (height * width * n_features)))
    return np.unique(np.linspace(0, store.n_images - 1, n).astype(np.int64))


def score(maps: np.ndarray, part_cells: PartCells, images: np.ndarray) -> Scores:
    """How well each feature finds each part.

    Args:
      maps: features in every cell of the images [n, H*W, F], raw units, >= 0 (`strength.KeepMaps`).
      part_cells: of the split.
      images: the image numbers [n].
    """
    positive, negative = part_cells(images)  # [n, H*W, P]
    feats, *cells = (array.reshape(-1, array.shape[-1]) for array in (maps, positive, negative))
    parts, foreground = slice(0, -1), slice(-1, None)  # which cells count is another matter for each
    areas = [metrics.cell_auroc(feats, *(each[:, of] for each in cells)) for of in (parts, foreground)]
    return Scores(
        parts=part_cells.names,
        n_images=positive.any(1).sum(0),
        auroc=np.concatenate(areas, axis=1),
        pointing=metrics.pointing(maps, positive),
    )


def priors(
    train_cells: PartCells,
    test_cells: PartCells,
    train_images: np.ndarray,
    test_images: np.ndarray,
    grid: tuple[int, int],
) -> dict[str, np.ndarray]:
    """Test AUROC [P] of scores that look at no activation: "centre" and "position".

    centre: nearness of the cell to the centre of the image. position: share of the train images with the part
    in which it covers the cell, which knows the part's name and where aircraft stand.
    """
    height, width = grid
    y, x = np.mgrid[:height, :width]
    distance = np.hypot((y - (height - 1) / 2) / height, (x - (width - 1) / 2) / width).ravel()
    covered = train_cells(train_images)[0]  # [n, cells, P]
    share = covered.sum(0) / np.maximum(covered.any(1).sum(0), 1)  # [cells, P]
    positive, negative = test_cells(test_images)
    n_parts = positive.shape[-1]
    flat = [array.reshape(-1, n_parts) for array in (positive, negative)]

    def area(scores):  # [cells, F] -> [F, P]
        return metrics.cell_auroc(np.tile(scores, (len(positive), 1)), *flat)

    return {"centre": area(1 + distance.max() - distance[:, None])[0], "position": np.diagonal(area(share))}


def table(train: Scores, test: Scores) -> pa.Table:
    """localisation.parquet: one row per (feature, part)."""
    n_features, n_parts = test.auroc.shape
    columns = {
        "feature": np.repeat(np.arange(n_features), n_parts),
        "part": list(test.parts) * n_features,
        "n_images": np.tile(test.n_images, n_features),
        "auroc_train": train.auroc.ravel(),
        "auroc": test.auroc.ravel(),
        "pointing": test.pointing.ravel(),
    }
    return TABLE.make(columns)
