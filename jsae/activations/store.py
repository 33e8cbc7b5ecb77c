"""The activation store: one folder a split.

    manifest.json       site, grid, n_channels, n_images, dtype, shard sizes, mean and scale of train,
                        class names, classifier digest
    shard-00000.npy     [n, H, W, C] raw activations of images 0..n-1 of the split, and so on
    labels.npy          int32 [n_images], -1 for unknown
    logits.npy          float32 [n_images, L], the classifier's clean logits; absent without a classifier
    image_ids.json      [n_images] strings

Vector (image i, y, x) is acts[i, y, x]; image i is image i of the data split, so image id, position and
label of every vector are known. Shards are written whole (a rename), so an interrupted extraction goes
on with the first shard that is missing.
"""

import bisect
import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from etils import epath
from numpy.typing import ArrayLike

from jsae.activations import local_copy
from jsae.runtime import artifacts, paths

DTYPES = ("float32", "bfloat16")


class ActivationBatch(NamedTuple):
    """B images of a split; a padded row is zeros, with mask 0 and label -1.

    Attributes:
      acts: raw activations, float32 [B, H, W, C].
      labels: int32 [B], -1 for unknown.
      images: int32 [B], their numbers in the split.
      mask: float32 [B], 1 for an image and 0 for padding.
    """

    acts: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    mask: np.ndarray


def make_batches(store: Any, batch_size: int, images: ArrayLike | None = None) -> Iterator[ActivationBatch]:
    """The batches of anything with n_images, labels and read(start, stop) -> [n, H, W, C]."""
    numbers = np.arange(store.n_images) if images is None else np.asarray(images)
    for start in range(0, len(numbers), batch_size):
        chosen = numbers[start : start + batch_size].astype(np.int32)
        n, padding = len(chosen), batch_size - len(chosen)
        if chosen[-1] - chosen[0] == n - 1:
            acts = store.read(int(chosen[0]), int(chosen[-1]) + 1)
        else:
            acts = np.concatenate([store.read(i, i + 1) for i in chosen.tolist()])
        if padding:
            acts = np.concatenate([acts, np.zeros((padding, *acts.shape[1:]), np.float32)])
        yield ActivationBatch(
            acts=acts,
            labels=np.pad(np.asarray(store.labels, np.int32)[chosen], (0, padding), constant_values=-1),
            images=np.pad(chosen, (0, padding), mode="edge"),
            mask=np.pad(np.ones(n, np.float32), (0, padding)),
        )


@dataclasses.dataclass(frozen=True)
class ActivationStore:
    """Read side of one split's activations; made by `open`."""

    folder: epath.Path
    manifest: dict

    @classmethod
    def open(cls, folder: paths.PathLike) -> "ActivationStore":
        """Open a finished store. Raises FileNotFoundError if extraction has not finished there."""
        folder = paths.resolve(folder)
        path = folder / "manifest.json"
        if not path.exists():
            raise FileNotFoundError(f"{folder} holds no finished activation store; run launch.extract first")
        return cls(folder, artifacts.read_json(path))

    @property
    def site(self) -> str:
        return self.manifest["site"]

    @property
    def grid(self) -> tuple[int, int]:
        """(H, W)."""
        return tuple(self.manifest["grid"])

    @property
    def n_images(self) -> int:
        return self.manifest["n_images"]

    @property
    def n_channels(self) -> int:
        return self.manifest["n_channels"]

    @property
    def n_vectors(self) -> int:
        """n_images * H * W."""
        return self.n_images * self.grid[0] * self.grid[1]

    @property
    def class_names(self) -> list[str]:
        return self.manifest["class_names"]

    @functools.cached_property
    def mean(self) -> np.ndarray:
        """Mean vector over the train split's raw activations, float32 [C]."""
        return np.asarray(self.manifest["mean"], np.float32)

    @property
    def scale(self) -> float:
        """sqrt(mean ||x - mean||^2 / C) over the train split."""
        return self.manifest["scale"]

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """int32 [n_images], -1 for unknown."""
        return artifacts.read_array(self.folder / "labels.npy")

    @functools.cached_property
    def logits(self) -> np.ndarray | None:
        """Clean logits, float32 [n_images, L]; None where the activations come without a classifier."""
        path = self.folder / "logits.npy"
        return artifacts.read_array(path) if path.exists() else None

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """Clean predictions, int32 [n_images]; -1 where the activations come without a classifier."""
        if self.logits is None:
            return np.full(self.n_images, -1, np.int32)
        return self.logits.argmax(-1).astype(np.int32)

    @functools.cached_property
    def image_ids(self) -> list[str]:
        return artifacts.read_json(self.folder / "image_ids.json")

    @functools.cached_property
    def _shards(self) -> list[np.ndarray]:
        sizes = self.manifest["shards"]
        shards = []
        for i, n in enumerate(sizes):
            path = self.folder / shard_name(i)
            array = open_shard(path)
            self._check_shape(path, array.shape, n)
            shards.append(array)
        return shards

    def read(self, start: int, stop: int) -> np.ndarray:
        """Raw activations of images start..stop-1, float32 [n, H, W, C]."""
        pieces, first = [], 0
        for shard in self._shards:
            low, high = max(start - first, 0), min(stop - first, len(shard))
            if low < high:
                pieces.append(from_stored(shard[low:high], self.manifest["dtype"]))
            first += len(shard)
        if not pieces:
            return np.zeros((0, *self.grid, self.n_channels), np.float32)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    @property
    def vector_dtype(self) -> np.dtype:
        """Of `stored_vectors`: float32 or bfloat16."""
        return np.dtype(np.float32 if self.manifest["dtype"] == "float32" else ml_dtypes.bfloat16)

    def stored_vectors(self, start: int, stop: int) -> np.ndarray:
        """Raw vectors start..stop-1 in the store's order, as stored [n, C].

        They are read, not mapped: the process's memory does not grow with what it has read. Safe to call from
        several threads at once. Raises `digests.Damaged` if a shard is not what was written.
        """
        row_bytes, pieces = self.n_channels * self.vector_dtype.itemsize, []
        at = bisect.bisect_right(self._files, start, key=lambda shard: shard[1]) - 1
        for path, first, n, offset in self._files[max(at, 0) :]:
            low, high = max(start - first, 0), min(stop - first, n)
            if low >= high:
                break
            with path.open("rb") as file:
                file.seek(offset + low * row_bytes)
                data = file.read((high - low) * row_bytes)
            pieces.append(np.frombuffer(data, self.vector_dtype).reshape(-1, self.n_channels))
        if not pieces:
            return np.zeros((0, self.n_channels), self.vector_dtype)
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    @functools.cached_property
    def _files(self) -> list[tuple]:
        """(path, number of its first vector, vectors, bytes before them) of each shard."""
        cells, files, first = self.grid[0] * self.grid[1], [], 0
        for i, images in enumerate(self.manifest["shards"]):
            path = local_copy.local(self.folder / shard_name(i))
            with path.open("rb") as file:
                version = np.lib.format.read_magic(file)
                shape, _, _ = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(file)
                offset = file.tell()
            self._check_shape(path, shape, images)
            files.append((path, first, images * cells, offset))
            first += images * cells
        return files

    def _check_shape(self, path, shape: tuple, n_images: int) -> None:
        expected = (n_images, *self.grid, self.n_channels)
        if tuple(shape) != expected:
            raise ValueError(f"{path} has shape {shape}, its manifest says {expected}; it is damaged")

    def batches(self, batch_size: int, images: ArrayLike | None = None) -> Iterator["ActivationBatch"]:
        """All images, or the numbers `images` [n] of some, `batch_size` at a time; the last one is padded."""
        return make_batches(self, batch_size, images)


def open_shard(path: paths.PathLike) -> np.ndarray:
    """One shard [n, H, W, C] as stored, checked and mapped; of a remote store, from a copy here."""
    return artifacts.read_array(local_copy.local(path), mmap=True)


def shard_name(i: int) -> str:
    """File name of shard i."""
    return f"shard-{i:05d}.npy"


def to_stored(acts: np.ndarray, dtype: str) -> np.ndarray:
    """Float32 activations as they lie on disk; .npy has no bfloat16, so its bits are kept as uint16."""
    return acts.astype(np.float32) if dtype == "float32" else acts.astype(ml_dtypes.bfloat16).view(np.uint16)


def from_stored(stored: np.ndarray, dtype: str) -> np.ndarray:
    """Stored activations as float32."""
    stored = np.asarray(stored)
    return (
        stored.astype(np.float32)
        if dtype == "float32"
        else stored.view(ml_dtypes.bfloat16).astype(np.float32)
    )
