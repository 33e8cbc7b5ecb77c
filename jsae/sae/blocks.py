"""The training activations on the device: 64 fixed blocks, and an order that needs no gather across devices.

One seeded permutation deals all vectors to 64 blocks, so every block is a fair sample. The blocks,
[64, L, C] with a mask [64, L], are dealt over the mesh's `data` axis and stay on the device. Every epoch
each block is permuted by itself, from fold_in(fold_in(key, epoch), block), and a step takes the next N/64
vectors of every block. A step's batch is therefore the same set on 1 and on 8 devices, each device takes
its share from its own memory, and each real vector comes once an epoch. Blocks are filled up with masked
rows to a multiple of N/64.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jsae.runtime import logs
from jsae.runtime import mesh as meshes

N_BLOCKS = 64


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes of the resident blocks.

    Attributes:
      n_vectors: real vectors, over all blocks.
      n_channels: C.
      batch_size: N, vectors of a step, real and masked.
      length: L, rows of a block, a multiple of N/64.
    """

    n_vectors: int
    n_channels: int
    batch_size: int
    length: int

    @property
    def rows(self) -> int:
        """Rows a step takes from each block, N/64."""
        return self.batch_size // N_BLOCKS

    @property
    def steps_per_epoch(self) -> int:
        return self.length // self.rows

    @property
    def mib(self) -> float:
        """Size of the blocks in float32, with their mask, over all devices."""
        return N_BLOCKS * self.length * (self.n_channels + 1) * 4 / 2**20


def shape_of(n_vectors: int, n_channels: int, batch_size: int) -> Shape:
    """The blocks' sizes. Raises ValueError if N is not a positive multiple of 64 or there is no vector."""
    if batch_size < 1 or batch_size % N_BLOCKS:
        raise ValueError(
            f"sae.batch_size={batch_size} must be a positive multiple of {N_BLOCKS}, the number of blocks; "
            f"{max(1, round(batch_size / N_BLOCKS)) * N_BLOCKS} would do"
        )
    if n_vectors < 1:
        raise ValueError("there are no activation vectors to train on")
    rows = batch_size // N_BLOCKS
    filled = -(-n_vectors // N_BLOCKS)
    return Shape(n_vectors, n_channels, batch_size, length=-(-filled // rows) * rows)


def check_mesh(mesh) -> None:
    """Raise ValueError unless the mesh's data axis divides the 64 blocks."""
    data = mesh.shape["data"]
    if N_BLOCKS % data:
        raise ValueError(
            f"the mesh's data axis, {data}, must divide the {N_BLOCKS} blocks: take 1, 2, 4, 8, 16, 32 or 64"
        )


def deal(n_vectors: int, seed: int) -> np.ndarray:
    """Slot of each vector, [n_vectors] int64: vector i lies in block slot % 64, row slot // 64."""
    slots = np.empty(n_vectors, np.int64)
    slots[np.random.default_rng([seed, N_BLOCKS]).permutation(n_vectors)] = np.arange(n_vectors)
    return slots


def build(mesh, chunks, shape: Shape, *, seed: int, mean, scale) -> tuple[jax.Array, jax.Array]:
    """The resident blocks, scaled, dealt over `data`.

    Args:
      mesh: the mesh.
      chunks: iterable of raw activations [n, C], all vectors in the store's order.
      shape: from `shape_of`.
      seed: of the one permutation that deals vectors to blocks.
      mean, scale: constants of the scaling, (x - mean) / scale; computed in float32.

    Returns:
      x [64, L, C] float32, 0 in padding rows, and mask [64, L] float32.

    Raises:
      ValueError: the data axis does not divide 64, or the chunks do not add up to shape.n_vectors.

    The host holds this process's blocks once while they are filled.
    """
    check_mesh(mesh)
    logs.get_logger().info(
        "sae: %d vectors of %d channels go to the devices: %.0f MiB over %d device(s) of the data axis, "
        "%.0f MiB each",
        *(shape.n_vectors, shape.n_channels, shape.mib, mesh.shape["data"]),
        shape.mib / mesh.shape["data"],
    )
    sharding = meshes.sharded(mesh)
    whole = (N_BLOCKS, shape.length)
    spans = [
        index[0].indices(N_BLOCKS)[:2] for index in sharding.addressable_devices_indices_map(whole).values()
    ]
    first, stop = min(a for a, _ in spans), max(b for _, b in spans)
    x = np.zeros((stop - first, shape.length, shape.n_channels), np.float32)
    mask = np.zeros((stop - first, shape.length), np.float32)
    mean, scale = np.asarray(mean, np.float32), np.float32(scale)
    slots, done = deal(shape.n_vectors, seed), 0
    for chunk in chunks:
        chunk = np.asarray(chunk, np.float32).reshape(-1, shape.n_channels)
        if done + len(chunk) > shape.n_vectors:
            raise ValueError(f"the store holds more than the {shape.n_vectors} vectors it announced")
        slot = slots[done : done + len(chunk)]
        done += len(chunk)
        block, row = slot % N_BLOCKS, slot // N_BLOCKS
        ours = (block >= first) & (block < stop)
        x[block[ours] - first, row[ours]] = (chunk[ours] - mean) / scale
        mask[block[ours] - first, row[ours]] = 1.0
    if done != shape.n_vectors:
        raise ValueError(f"the store announced {shape.n_vectors} vectors and gave {done}")

    def shard(array):
        def piece(index):
            a, b, _ = index[0].indices(N_BLOCKS)
            return array[a - first : b - first]

        return jax.make_array_from_callback((N_BLOCKS, *array.shape[1:]), sharding, piece)

    return shard(x), shard(mask)


def make_order(mesh, shape: Shape, seed: int):
    """A jitted epoch -> order [64, L] int32, dealt over `data`: each block's permutation of its rows."""

    def order(epoch):
        key = jax.random.fold_in(jax.random.key(seed), epoch)

        def of_block(block):
            return jax.random.permutation(jax.random.fold_in(key, block), shape.length)

        return jax.vmap(of_block)(jnp.arange(N_BLOCKS)).astype(jnp.int32)

    return jax.jit(order, out_shardings=meshes.sharded(mesh))


def take(x, mask, order, position, shape: Shape) -> dict:
    """The batch at `position` of the epoch: {"x": [64, N/64, C], "mask": [64, N/64]}."""
    rows = lax.dynamic_slice_in_dim(order, position * shape.rows, shape.rows, axis=1)  # [64, N/64]
    pick = jax.vmap(lambda block, index: jnp.take(block, index, axis=0))
    return {"x": pick(x, rows), "mask": pick(mask, rows)}


def bad_vectors(mesh, x, mask, order, position: int, shape: Shape, seed: int) -> list[int]:
    """Numbers, in the store's order, of the vectors of one batch that are not finite, rising.

    Args:
      mesh, x, mask: the mesh and the resident blocks.
      order, position: the epoch's order and the batch's place in it.
      shape, seed: as for `build`.
    """

    def find(x, mask, order):
        batch = take(x, mask, order, position, shape)
        rows = lax.dynamic_slice_in_dim(order, position * shape.rows, shape.rows, axis=1)
        return ~jnp.isfinite(batch["x"]).all(-1) & (batch["mask"] > 0), rows  # [64, N/64] each

    bad, rows = meshes.to_host(jax.jit(find, out_shardings=meshes.replicated(mesh))(x, mask, order))
    block, place = np.nonzero(np.asarray(bad))
    slots = np.asarray(rows)[block, place] * N_BLOCKS + block
    return sorted(np.argsort(deal(shape.n_vectors, seed))[slots].tolist())
