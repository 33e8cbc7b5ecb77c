"""Training vectors streamed from the activation store through a shuffle buffer: the source for large stores.

The store is cut into runs of a few consecutive images, long enough to be read at once. One seeded
permutation deals the runs to the 64 blocks. Every epoch each block's runs are put into a new order, from
(seed, epoch, block), and the block's vectors come in that order through a window of L rows, in which they are
permuted once more on the device. While the devices work on one window of all blocks, threads read the next
one, so that it is there before it is needed. At most two windows lie on the devices, whatever the store's
size.

The order is a function of (seed, step) and of the window's size, which follows from the settings alone: it
does not depend on devices or processes, each vector comes once per epoch, and a run can go on from any step.
A process reads only the runs of the blocks it holds.
"""

import concurrent.futures
import functools

import numpy as np
from jax.sharding import Mesh

from jsae.activations import ActivationStore
from jsae.runtime import logs
from jsae.sae.batches import blocks

_RUN_BYTES = 1 << 16  # of a read; smaller ones are slow on disk
_RUNS_PER_BLOCK = 16  # at least, if the store has as many images: blocks shall be of even length
_READERS = 4  # threads; reads of the page cache and copies release the interpreter's lock


def plan(
    store: ActivationStore, batch_size: int, buffer_mib: float, seed: int
) -> tuple[blocks.Shape, np.ndarray, np.ndarray]:
    """(shape, starts, lengths): sizes, and where the vectors of each run lie in the store.

    Args:
      store: an ActivationStore.
      batch_size: N.
      buffer_mib: the most that one window may take, over all devices; two lie there at a time.
      seed: of the deal.

    Raises ValueError if N is not a multiple of 64, there is no vector, or the buffer is less than one batch.
    """
    blocks.check_batch(batch_size, store.n_vectors)
    row_bytes = store.n_channels * np.dtype(store.vector_dtype).itemsize + 4
    rows = batch_size // blocks.N_BLOCKS
    most = int(buffer_mib * 2**20) // (blocks.N_BLOCKS * row_bytes) // rows * rows
    if most < rows:
        raise ValueError(
            f"sae.buffer_mib={buffer_mib} holds less than one batch of {batch_size} vectors; "
            f"{batch_size * row_bytes / 2**20:.1f} MiB is the least, some dozens of that mix well"
        )
    cells = store.n_vectors // store.n_images
    images = max(1, _RUN_BYTES // (cells * row_bytes))
    images = max(1, min(images, store.n_images // (blocks.N_BLOCKS * _RUNS_PER_BLOCK)))
    starts = np.arange(0, store.n_vectors, images * cells)
    lengths = np.diff(np.append(starts, store.n_vectors))
    longest = max(lengths[runs].sum() for runs in _deal(len(starts), seed))
    n_windows = -(-int(longest) // most)
    length = -(-int(longest) // (n_windows * rows)) * rows
    n_windows = -(-int(longest) // length)
    shape = blocks.Shape(
        store.n_vectors, store.n_channels, batch_size, length, n_windows, np.dtype(store.vector_dtype).name
    )
    return shape, starts, lengths


def _deal(n_runs: int, seed: int) -> list[np.ndarray]:
    """The runs of each block."""
    shuffled = np.random.default_rng([seed, blocks.N_BLOCKS, 1]).permutation(n_runs)
    return [shuffled[block :: blocks.N_BLOCKS] for block in range(blocks.N_BLOCKS)]


class Streamed:
    """The source of batches whose vectors are read from the store as they are needed.

    Args:
      mesh: the mesh.
      store: an ActivationStore.
      batch_size, buffer_mib, seed: as for `plan`.
      last_step: steps of the whole run; nothing is read beyond it.

    Raises ValueError as `plan` does, or if the data axis does not divide 64.
    """

    def __init__(
        self,
        mesh: Mesh,
        store: ActivationStore,
        batch_size: int,
        *,
        buffer_mib: float,
        seed: int,
        last_step: int,
    ):
        blocks.check_mesh(mesh)
        self.shape, self._starts, self._lengths = plan(store, batch_size, buffer_mib, seed)
        shape = self.shape
        logs.get_logger().info(
            "sae: %d vectors of %d channels are streamed, %d window(s) per epoch; two of %.0f MiB at most "
            "lie on %d device(s) of the data axis, %.0f MiB each",
            shape.n_vectors,
            shape.n_channels,
            shape.n_windows,
            shape.mib,
            mesh.shape["data"],
            2 * shape.mib / mesh.shape["data"],
        )
        self._mesh, self._store, self._seed = mesh, store, seed
        self._last_window = (last_step - 1) // shape.steps_per_window
        self._runs = _deal(len(self._starts), seed)
        self._order_of = blocks.make_order(mesh, shape, seed)
        self._whole_order_of = blocks.make_order(mesh, shape, seed, replicated=True)
        self._ahead = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="windows")
        self._readers = concurrent.futures.ThreadPoolExecutor(_READERS, thread_name_prefix="runs")
        self._window: blocks.Window | None = None
        self._next: tuple[int, concurrent.futures.Future] | None = None  # its number, and the window to come

    def at(self, step: int) -> blocks.Window:
        """The window that holds the batch of `step`; waits if it is not read yet."""
        window = self._window
        if window is None or not window.first <= step < window.stop:
            window = self._window = None  # freed before the next one comes
            wanted, coming, self._next = step // self.shape.steps_per_window, self._next, None
            if coming is None or coming[0] != wanted:
                coming = wanted, self._ahead.submit(self._load, wanted)
            window = self._window = coming[1].result()
        return window

    @property
    def most_steps(self) -> int:
        """The most steps of one dispatch: half a window, so that the next one is read meanwhile."""
        return max(1, self.shape.steps_per_window // 2)

    def done(self, step: int) -> None:
        """The devices have finished all steps before `step`: if that frees a window, read the next one."""
        if self._window is None or step <= self._window.first or self._next is not None:
            return
        number = self._window.stop // self.shape.steps_per_window
        if number <= self._last_window:
            self._next = number, self._ahead.submit(self._load, number)

    def numbers(self, step: int) -> np.ndarray:
        """Number in the store's order of each vector of a batch [64, N/64], -1 for padding."""
        number, position = divmod(step, self.shape.steps_per_window)
        order = np.asarray(self._whole_order_of(number))
        rows = order[:, position * self.shape.rows : (position + 1) * self.shape.rows]
        found = np.full(rows.shape, -1)
        for block in range(blocks.N_BLOCKS):
            held = np.full(self.shape.length, -1)
            for row, start, n in self._spans(number, block):
                held[row : row + n] = np.arange(start, start + n)
            found[block] = held[rows[block]]
        return found

    def close(self) -> None:
        """End the threads and free the devices' memory."""
        self._ahead.shutdown(cancel_futures=True)
        self._readers.shutdown()
        self._window = self._next = None

    def _spans(self, number: int, block: int):
        """(row of the window, first vector, vectors) of everything that a block's window holds."""
        epoch, window = divmod(number, self.shape.n_windows)
        runs = np.random.default_rng([self._seed, epoch, block, 2]).permutation(self._runs[block])
        ends = np.cumsum(self._lengths[runs])
        low, high = window * self.shape.length, (window + 1) * self.shape.length
        for run, end in zip(runs.tolist(), ends.tolist(), strict=True):
            begin = end - int(self._lengths[run])
            a, b = max(begin, low), min(end, high)
            if a < b:
                yield a - low, int(self._starts[run]) + a - begin, b - a

    def _load(self, number: int) -> blocks.Window:
        first, stop = blocks.local_blocks(self._mesh)
        shape = self.shape
        x = np.empty((stop - first, shape.length, shape.n_channels), shape.dtype)
        mask = np.zeros((stop - first, shape.length), np.float32)
        list(self._readers.map(functools.partial(self._read, number, first, x, mask), range(first, stop)))
        steps = number * shape.steps_per_window, (number + 1) * shape.steps_per_window
        return blocks.Window(
            blocks.put(self._mesh, x), blocks.put(self._mesh, mask), self._order_of(number), *steps
        )

    def _read(self, number: int, first: int, x: np.ndarray, mask: np.ndarray, block: int) -> None:
        """Fill one block's window; rows that hold nothing become 0."""
        filled = 0
        for row, start, n in self._spans(number, block):
            x[block - first, row : row + n] = self._store.stored_vectors(start, start + n)
            filled = row + n
        x[block - first, filled:] = 0
        mask[block - first, :filled] = 1.0
