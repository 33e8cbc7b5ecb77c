"""localisation.parquet: does a feature fire where a part is? For all features, where masks or boxes know.

Part AUROC: over cells on the aircraft, in the images that have the part (the aircraft as a whole: over all
cells of all images). Pointing game: is the feature's peak in the part. Train chooses, test reports, and
beside the SAE stand the best of as many random directions chosen on train in the same way, and priors that
look at no activation: the nearness of a cell to the centre of the image, and how often the part covered the
cell on train. A split is looked at through evenly spaced images, as many as fit into a fixed memory.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.analysis import tables
from jsae.runtime import preemption

FILE = "localisation.parquet"
MAX_IMAGES = 512  # of a split
_VALUES = 2**27  # features of all cells of these images, 4 bytes each on the host

SCHEMA = tables.schema(
    ("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
    ("part", pa.string(), "part of the aircraft, or aircraft"),
    ("n_images", pa.int32(), "test images looked at that have the part in a cell"),
    (
        "auroc_train",
        pa.float64(),
        "AUROC of the feature for cells that the part covers by 10% against the other cells on the aircraft, "
        "in train images that have the part; of the aircraft: against all other cells",
    ),
    ("auroc", pa.float64(), "the same on test"),
    (
        "pointing",
        pa.float64(),
        "share of n_images in which the feature's peak is in the part; silent: a miss",
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


def images_of(store, n_features: int) -> np.ndarray:
    """Evenly spaced image numbers of a store, at most 512 and as many as fit into 512 MiB of features."""
    height, width = store.grid
    n = min(store.n_images, MAX_IMAGES, max(1, _VALUES // (height * width * n_features)))
    return np.unique(np.linspace(0, store.n_images - 1, n).astype(np.int64))


def measure(dictionary, store, part_cells, *, batch_size: int, on_batch=lambda n_images: None) -> Scores:
    """How well each feature of a dictionary finds each part.

    Args:
      dictionary: a pytree with encode(acts [..., C]) -> features [..., F] >= 0, n_features and w_dec [F, C].
      store: an activation store: grid, n_images, read().
      part_cells: a `cells.PartCells` of the same images.
      batch_size: images encoded at once.
      on_batch: called with the number of images after each batch.
    """
    images = images_of(store, dictionary.n_features)
    values = _encoded(dictionary, store, images, batch_size, on_batch)  # [n, cells, F]
    positive, negative = part_cells(images)  # [n, cells, P]
    flat = [array.reshape(-1, array.shape[-1]) for array in (values, positive, negative)]
    parts, aircraft = slice(0, -1), slice(-1, None)  # which cells count is another matter for each
    return Scores(
        parts=part_cells.names,
        n_images=positive.any(1).sum(0),
        auroc=np.concatenate(
            [
                metrics.cell_auroc(flat[0], *(cells[:, columns] for cells in flat[1:]))
                for columns in (parts, aircraft)
            ],
            axis=1,
        ),
        pointing=metrics.pointing(values, positive),
    )


def _encoded(dictionary, store, images, batch_size: int, on_batch) -> np.ndarray:
    """Features [n, cells, F] of the images, float32."""
    cells = store.grid[0] * store.grid[1]
    values = np.empty((len(images), cells, dictionary.n_features), np.float32)
    for start in range(0, len(images), batch_size):
        numbers = images[start : start + batch_size].tolist()
        acts = np.zeros((batch_size, *store.grid, dictionary.w_dec.shape[-1]), np.float32)
        for row, image in enumerate(numbers):
            acts[row] = store.read(image, image + 1)[0]
        feats = np.asarray(_encode(dictionary, jnp.asarray(acts)))[: len(numbers)]
        values[start : start + len(numbers)] = feats.reshape(len(numbers), cells, -1)
        on_batch(len(numbers))
        preemption.check_here()
    return values


@jax.jit
def _encode(dictionary, acts):
    with jax.default_matmul_precision("float32"):
        return dictionary.encode(acts)


def priors(train_cells, test_cells, train_images, test_images, grid) -> dict[str, np.ndarray]:
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
    """localisation.parquet: one row a (feature, part)."""
    n_features, n_parts = test.auroc.shape
    columns = {
        "feature": np.repeat(np.arange(n_features), n_parts),
        "part": list(test.parts) * n_features,
        "n_images": np.tile(test.n_images, n_features),
        "auroc_train": train.auroc.ravel(),
        "auroc": test.auroc.ravel(),
        "pointing": test.pointing.ravel(),
    }
    return tables.make(columns, SCHEMA)
