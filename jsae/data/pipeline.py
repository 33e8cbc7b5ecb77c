"""Batches of a split through grain: item s of a random-access source is the batch of step s.

Because a batch is a pure function of (seed, step), there is no iterator state to save: a resumed run
starts at its step. Threads read ahead; images come from the memory-mapped cache as uint8, and everything
that is random about a batch's pixels happens on the device (augment.py). Rows are this process's; the
global batch is the concatenation over processes.
"""

import dataclasses
from collections.abc import Iterator

import grain.python as grain
import numpy as np

from jsae.data import order
from jsae.data.cache import Split

_THREADS = 2  # a batch is one gather from the page cache; more threads only compete with the CPU backend
_READ_AHEAD = 4  # batches
_ENDLESS = 1 << 40  # steps; no run reaches it


def train_batches(
    split: Split, *, seed: int, batch_size: int, start_step: int = 0, process: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, np.ndarray]]:
    """Endless iterator over the training batches of steps start_step, start_step + 1, ...

    Yields dicts of this process's rows: "image" uint8 [B/count,S,S,3], "label" int32 [B/count], "index"
    int32 [B/count] (row in the split). `batch_size` is global. Closing or dropping the iterator ends its
    threads. Raises ValueError at once if the batch cannot be divided by the processes.
    """
    if start_step < 0:
        raise ValueError(f"start_step={start_step} must be >= 0")
    order.process_slice(batch_size, process)
    order.batch_indices(seed, 0, len(split.labels), batch_size)
    return _iterate(TrainSource(split, seed, batch_size, start_step, process))


def eval_batches(
    split: Split, *, batch_size: int, process: tuple[int, int] = (0, 1)
) -> Iterator[dict[str, np.ndarray]]:
    """Iterator over a split once, in order: the dicts of train_batches and "mask" float32 [B/count].

    The last batch is filled up with zero images, label 0 and index 0, whose mask is 0: sums weighted with
    the mask do not depend on the batch size. Every process gets the same number of batches.
    """
    order.process_slice(batch_size, process)
    return _iterate(EvalSource(split, batch_size, process))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainSource:
    """Random access: item i is the training batch of step start_step + i."""

    split: Split
    seed: int
    batch_size: int
    start_step: int
    process: tuple[int, int]

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, item: int) -> dict[str, np.ndarray]:
        n = len(self.split.labels)
        rows = order.batch_indices(self.seed, self.start_step + int(item), n, self.batch_size)
        return _gather(self.split, rows[order.process_slice(self.batch_size, self.process)])


@dataclasses.dataclass(frozen=True, eq=False)
class EvalSource:
    """Random access: item i is the i-th batch of the split, masked beyond its end."""

    split: Split
    batch_size: int
    process: tuple[int, int]

    def __len__(self) -> int:
        return -(-len(self.split.labels) // self.batch_size)

    def __getitem__(self, item: int) -> dict[str, np.ndarray]:
        n = len(self.split.labels)
        rows = np.arange(item * self.batch_size, (item + 1) * self.batch_size)
        rows = rows[order.process_slice(self.batch_size, self.process)]
        real = rows < n
        batch = _gather(self.split, np.where(real, rows, 0))
        for values in batch.values():
            values[~real] = 0
        return batch | {"mask": real.astype(np.float32)}


def _gather(split: Split, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {
        "image": np.take(split.images, rows, axis=0).view(np.ndarray),
        "label": np.take(split.labels, rows).astype(np.int32),
        "index": rows.astype(np.int32),
    }


def _iterate(source: TrainSource | EvalSource) -> Iterator[dict[str, np.ndarray]]:
    # a generator: its `finally` runs on close() and when it is dropped
    options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_READ_AHEAD)
    iterator = iter(grain.MapDataset.source(source).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
