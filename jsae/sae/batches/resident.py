"""All training vectors on the devices, dealt once: the source of batches where they fit.

One seeded permutation deals the vectors to the blocks, so every block is a fair sample and a step is a fair
draw from the whole split. An epoch is one window.
"""

import functools
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

from jsae.runtime import logs
from jsae.sae.batches import blocks


def shape_of(n_vectors: int, n_channels: int, batch_size: int, dtype: str = "float32") -> blocks.Shape:
    """The blocks' sizes. Raises ValueError if N is not a positive multiple of 64 or there is no vector."""
    blocks.check_batch(batch_size, n_vectors)
    rows = batch_size // blocks.N_BLOCKS
    filled = -(-n_vectors // blocks.N_BLOCKS)
    return blocks.Shape(n_vectors, n_channels, batch_size, length=-(-filled // rows) * rows, dtype=dtype)


def deal(n_vectors: int, seed: int) -> np.ndarray:
    """Slot of each vector, [n_vectors] int64: vector i lies in block slot % 64, row slot // 64."""
    slots = np.empty(n_vectors, np.int64)
    slots[np.random.default_rng([seed, blocks.N_BLOCKS]).permutation(n_vectors)] = np.arange(n_vectors)
    return slots


class Resident:
    """The source of batches whose vectors all lie on the devices.

    Args:
      mesh: the mesh.
      chunks: iterable of raw activations [n, C] as stored, all vectors in the store's order.
      shape: from `shape_of`.
      seed: of the one permutation that deals vectors to blocks, and of the order.

    Raises:
      ValueError: the data axis does not divide 64, or the chunks do not add up to shape.n_vectors.

    The host holds this process's blocks once while they are filled.
    """

    def __init__(self, mesh: Mesh, chunks: Iterable[np.ndarray], shape: blocks.Shape, *, seed: int):
        blocks.check_mesh(mesh)
        logs.get_logger().info(
            "sae: %d vectors of %d channels go to the devices: %.0f MiB over %d device(s) of the data axis, "
            "%.0f MiB each",
            shape.n_vectors,
            shape.n_channels,
            shape.mib,
            mesh.shape["data"],
            shape.mib / mesh.shape["data"],
        )
        self.shape = shape
        self._seed = seed
        self._x, self._mask = (blocks.put(mesh, array) for array in _fill(mesh, chunks, shape, seed))
        self._order_of = blocks.make_order(mesh, shape, seed)
        self._whole_order_of = blocks.make_order(mesh, shape, seed, replicated=True)
        self._window: blocks.Window | None = None

    def at(self, step: int) -> blocks.Window:
        """The window that holds the batch of `step` (0 is the first of the run)."""
        epoch = step // self.shape.steps_per_epoch
        window = self._window
        if window is None or not window.first <= step < window.stop:
            first, stop = (e * self.shape.steps_per_epoch for e in (epoch, epoch + 1))
            window = self._window = blocks.Window(self._x, self._mask, self._order_of(epoch), first, stop)
        return window

    @property
    def most_steps(self) -> int:
        """The most steps that one dispatch should run."""
        return self.shape.steps_per_window

    def done(self, step: int) -> None:
        """The devices have finished all steps before `step`: nothing to do."""

    def numbers(self, step: int) -> np.ndarray:
        """Number in the store's order of each vector of a batch [64, N/64], -1 for padding."""
        epoch, position = divmod(step, self.shape.steps_per_epoch)
        order = np.asarray(self._whole_order_of(epoch))
        rows = order[:, position * self.shape.rows : (position + 1) * self.shape.rows]
        slots = rows * blocks.N_BLOCKS + np.arange(blocks.N_BLOCKS)[:, None]
        return self._vector_of[slots]

    @functools.cached_property
    def _vector_of(self) -> np.ndarray:
        """Number of the vector in each slot, -1 for padding."""
        vector_of = np.full(blocks.N_BLOCKS * self.shape.length, -1)
        vector_of[deal(self.shape.n_vectors, self._seed)] = np.arange(self.shape.n_vectors)
        return vector_of

    def close(self) -> None:
        """Free the devices' memory."""
        del self._x, self._mask, self._window


def _fill(mesh, chunks, shape: blocks.Shape, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, mask) of this process's blocks, on the host."""
    first, stop = blocks.local_blocks(mesh)
    x = np.zeros((stop - first, shape.length, shape.n_channels), shape.dtype)
    mask = np.zeros((stop - first, shape.length), np.float32)
    slots, done = deal(shape.n_vectors, seed), 0
    for chunk in chunks:
        chunk = np.asarray(chunk).reshape(-1, shape.n_channels)
        if done + len(chunk) > shape.n_vectors:
            raise ValueError(f"the store holds more than the {shape.n_vectors} vectors it announced")
        slot = slots[done : done + len(chunk)]
        done += len(chunk)
        block, row = slot % blocks.N_BLOCKS, slot // blocks.N_BLOCKS
        ours = (block >= first) & (block < stop)
        x[block[ours] - first, row[ours]] = chunk[ours]
        mask[block[ours] - first, row[ours]] = 1.0
    if done != shape.n_vectors:
        raise ValueError(f"the store announced {shape.n_vectors} vectors and gave {done}")
    return x, mask
