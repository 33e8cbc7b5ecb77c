"""The order of the training vectors: 64 fixed blocks, so that no step needs a gather across devices.

All vectors are dealt to 64 blocks, the blocks to the mesh's `data` axis. A step takes the next N/64 vectors
of every block; its batch is therefore the same set on 1 and on 8 devices, each device takes its share from
its own memory, and each real vector comes once per epoch. What lies on the devices is a window of the
blocks: all their rows (`batches.resident`) or L of them (`batches.streamed`), [64, L, C] as stored, with a
mask [64, L]. Every time a window is used each block of it is permuted by itself, from
fold_in(fold_in(key, number of the window), block). Blocks are filled up with masked rows.

Both sources are used alike: `at(step)` gives the window of a step, `done(step)` says how far the devices are,
`numbers(step)` which vectors a batch holds.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from jsae.runtime import mesh as meshes

N_BLOCKS = 64


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the blocks.

    Attributes:
      n_vectors: real vectors, over all blocks.
      n_channels: C.
      batch_size: N, vectors of a step, real and masked.
      length: L, rows of a block in one window, a multiple of N/64.
      n_windows: windows of an epoch.
      dtype: of the activations on the devices, as they are stored.
    """

    n_vectors: int
    n_channels: int
    batch_size: int
    length: int
    n_windows: int = 1
    dtype: str = "float32"

    @property
    def rows(self) -> int:
        """Rows a step takes from each block, N/64."""
        return self.batch_size // N_BLOCKS

    @property
    def steps_per_window(self) -> int:
        return self.length // self.rows

    @property
    def steps_per_epoch(self) -> int:
        return self.n_windows * self.steps_per_window

    @property
    def mib(self) -> float:
        """Size of a window with its mask, over all devices."""
        return N_BLOCKS * self.length * (self.n_channels * jnp.dtype(self.dtype).itemsize + 4) / 2**20


@dataclasses.dataclass(frozen=True)
class Window:
    """What the devices hold for the steps first..stop-1 of a run.

    Attributes:
      x: raw activations as stored [64, L, C], dealt over `data`; any finite value in padding rows.
      mask: 1 for real rows [64, L].
      order: the permutation of each block's rows [64, L] int32.
      first, stop: of the steps, counted from 0.
    """

    x: jax.Array
    mask: jax.Array
    order: jax.Array
    first: int
    stop: int


def check_batch(batch_size: int, n_vectors: int) -> None:
    """Raise ValueError if N is not a positive multiple of 64 or there is no vector."""
    if batch_size < 1 or batch_size % N_BLOCKS:
        raise ValueError(
            f"sae.batch_size={batch_size} must be a positive multiple of {N_BLOCKS}, the number of blocks; "
            f"{max(1, round(batch_size / N_BLOCKS)) * N_BLOCKS} would do"
        )
    if n_vectors < 1:
        raise ValueError("there are no activation vectors to train on")


def check_mesh(mesh: Mesh) -> None:
    """Raise ValueError unless the mesh's data axis divides the 64 blocks."""
    data = mesh.shape["data"]
    if N_BLOCKS % data:
        raise ValueError(
            f"the mesh's data axis, {data}, must divide the {N_BLOCKS} blocks: take 1, 2, 4, 8, 16, 32 or 64"
        )


def local_blocks(mesh: Mesh) -> tuple[int, int]:
    """(first, stop) of the blocks that lie on this process's devices."""
    indices = meshes.sharded(mesh).addressable_devices_indices_map((N_BLOCKS,)).values()
    spans = [index[0].indices(N_BLOCKS)[:2] for index in indices if index]
    return min(a for a, _ in spans), max(b for _, b in spans)


def put(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """This process's blocks [n, ...] as a part of the global array [64, ...], dealt over `data`."""
    first, _ = local_blocks(mesh)

    def part(index):
        a, b, _ = index[0].indices(N_BLOCKS)
        return array[a - first : b - first]

    return jax.make_array_from_callback((N_BLOCKS, *array.shape[1:]), meshes.sharded(mesh), part)


def make_order(
    mesh: Mesh, shape: Shape, seed: int, *, replicated: bool = False
) -> Callable[[int], jax.Array]:
    """A jitted (number of the window) -> order [64, L] int32: each block's permutation of its rows.

    Windows are counted on through all epochs. The order is dealt over `data`, or whole on every device.
    """

    def order(window):
        key = jax.random.fold_in(jax.random.key(seed), window)

        def of_block(block):
            return jax.random.permutation(jax.random.fold_in(key, block), shape.length)

        return jax.vmap(of_block)(jnp.arange(N_BLOCKS)).astype(jnp.int32)

    return jax.jit(order, out_shardings=meshes.replicated(mesh) if replicated else meshes.sharded(mesh))


def take(
    x: jax.Array,
    mask: jax.Array,
    order: jax.Array,
    position: jax.Array | int,
    shape: Shape,
    mean: jax.Array,
    scale: jax.Array,
) -> dict[str, jax.Array]:
    """The batch at `position` of a window: {"x": float32 [64, N/64, C], "mask": [64, N/64]}.

    x is scaled, (x - mean) / scale, and 0 in padding rows.
    """
    rows = lax.dynamic_slice_in_dim(order, position * shape.rows, shape.rows, axis=1)  # [64, N/64]
    pick = jax.vmap(lambda block, index: jnp.take(block, index, axis=0))
    x, mask = pick(x, rows), pick(mask, rows)
    scaled = (x.astype(jnp.float32) - mean[None, None, :]) / scale
    return {"x": jnp.where(mask[:, :, None] > 0, scaled, 0.0), "mask": mask}


def bad_vectors(mesh: Mesh, source: Any, step: int) -> list[int]:
    """Numbers, in the store's order, of the vectors of one step's batch that are not finite, rising."""
    shape, window = source.shape, source.at(step)

    def find(x, order):
        rows = lax.dynamic_slice_in_dim(order, (step - window.first) * shape.rows, shape.rows, axis=1)
        return ~jax.vmap(lambda block, index: jnp.isfinite(jnp.take(block, index, axis=0)).all(-1))(x, rows)

    bad = jax.jit(find, out_shardings=meshes.replicated(mesh))(window.x, window.order)
    numbers = source.numbers(step)
    return sorted(int(i) for i in numbers[np.asarray(meshes.to_host(bad))] if i >= 0)
