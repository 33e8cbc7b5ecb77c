"""How training images reach the devices: all of them once where they fit, else batch by batch.

    run_steps = feeding.open_feed(mesh, split, ...)
    state, metrics = run_steps(state, step, n)      n steps behind `step`; metrics are arrays [at least n]

Resident images are uint8 rows dealt over `data`, and a dispatch has many steps: a device looks up the rows
that it has of a batch, and a reduce-scatter of bytes deals the batch out. Streamed images come a batch and a
step at a time, read ahead by threads and sent while the device works on the step before. Both see the same
batches in the same order with the same numbers, which augmentation draws from.
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jsae.data import order, pipeline
from jsae.data.cache import Split
from jsae.runtime import logs
from jsae.runtime import mesh as meshes

STORES = ("auto", "resident", "streamed")
RESIDENT_SHARE = 0.25  # of a device's free memory, which resident images may take
MOST_STEPS = 256  # of a dispatch of resident images
Step = Callable[[dict, dict], tuple[dict, dict]]  # (state, batch) -> (state, metrics)


class Feed(Protocol):
    """Runs training steps; `most_steps` is the most of one call."""

    most_steps: int

    def __call__(self, state: dict, step: int, n: int) -> tuple[dict, dict]:
        """(the state n steps behind `step`, metrics [n or more]); the state is donated."""
        ...

    def close(self) -> None:
        """Drop images and threads."""
        ...


def open_feed(
    mesh: Mesh, split: Split, step: Step, *, seed: int, batch_size: int, start: int, store: str = "auto"
) -> Feed:
    """The feed of a run from step `start` on.

    Args:
      step: from `train.make_step`.
      store: one of STORES; "auto" is resident where the images of a device take at most RESIDENT_SHARE of its
        free memory, and streamed where nobody says how much that is, as on a CPU.
    """
    if store == "auto":
        store = "resident" if meshes.all_agree(fits(mesh, split.images)) else "streamed"
    logs.get_logger().info("classifier: the images are %s", store)
    kind = Resident if store == "resident" else Streamed
    return kind(mesh, split, step, seed=seed, batch_size=batch_size, start=start)


def fits(mesh: Mesh, images: np.ndarray) -> bool:
    """Whether each of this process's devices has room for its share of the images."""
    needed = images.nbytes / mesh.shape["data"]
    found = [device.memory_stats() for device in mesh.local_devices]
    return all(
        stats is not None
        and needed <= RESIDENT_SHARE * (stats.get("bytes_limit", 0) - stats.get("bytes_in_use", 0))
        for stats in found
    )


class Streamed:
    """One step a call, of the next batch that the threads have read."""

    most_steps = 1

    def __init__(
        self, mesh: Mesh, split: Split, step: Step, *, seed: int, batch_size: int, start: int
    ) -> None:
        process = meshes.process_slice(mesh)
        self._batches: Iterator[dict] = pipeline.train_batches(
            split, seed=seed, batch_size=batch_size, start_step=start, process=process
        )
        self._mesh, everywhere = mesh, meshes.replicated(mesh)
        self._step = jax.jit(
            step,
            in_shardings=(everywhere, meshes.sharded(mesh)),
            out_shardings=(everywhere, everywhere),
            donate_argnums=0,
        )

    def __call__(self, state: dict, step: int, n: int) -> tuple[dict, dict]:
        state, values = self._step(state, meshes.put_batch(self._mesh, next(self._batches)))
        return state, {name: value[None] for name, value in values.items()}

    def close(self) -> None:
        self._batches.close()  # type: ignore[attr-defined]


class Resident:
    """Many steps a call, of images that lie on the devices."""

    most_steps = MOST_STEPS

    def __init__(
        self, mesh: Mesh, split: Split, step: Step, *, seed: int, batch_size: int, start: int
    ) -> None:
        del start
        self._seed, self._n, self._batch_size = seed, len(split.labels), batch_size
        self._images = put_images(mesh, split.images)
        self._labels = meshes.place(mesh, split.labels.astype(np.int32), P())
        self._mesh, self._dispatch = mesh, make_dispatch(mesh, step)

    def __call__(self, state: dict, step: int, n: int) -> tuple[dict, dict]:
        rows = np.zeros((self.most_steps, self._batch_size), np.int32)
        for i in range(n):
            rows[i] = order.batch_indices(self._seed, step + i, self._n, self._batch_size)
        placed = meshes.place(self._mesh, rows, P())
        return self._dispatch(state, self._images, self._labels, placed, np.int32(n))

    def close(self) -> None:
        self._images.delete()


def put_images(mesh: Mesh, images: np.ndarray) -> jax.Array:
    """Images uint8 [N, S, S, 3] on the mesh, their rows dealt over `data` and filled up with zeros."""
    data = mesh.shape["data"]
    shape = (-(-len(images) // data) * data, *images.shape[1:])

    def part(index):
        start, stop, _ = index[0].indices(shape[0])
        rows = np.asarray(images[start:stop])
        return np.pad(rows, ((0, stop - start - len(rows)), (0, 0), (0, 0), (0, 0)))

    return jax.make_array_from_callback(shape, meshes.sharded(mesh), part)


def make_dispatch(mesh: Mesh, step: Step) -> Callable[..., tuple[dict, dict]]:
    """A jitted (state, images, labels, rows, n) -> (state, metrics), n training steps in one loop.

    images: from `put_images`; labels: int32 [N]; rows: int32 [most, B], the batches by their rows; n: how
    many of them. metrics are [most] each, zero behind the n-th. The state is donated.
    """
    look_up = make_look_up(mesh)
    everywhere, dealt = meshes.replicated(mesh), meshes.sharded(mesh)

    def dispatch(state, images, labels, rows, n):
        def batch_of(index):
            batch = {"image": look_up(images, index), "label": labels[index], "index": index}
            return jax.lax.with_sharding_constraint(batch, dealt)

        def one(i, carry):
            state, metrics = carry
            state, values = step(state, batch_of(rows[i]))
            return state, {name: metrics[name].at[i].set(values[name]) for name in metrics}

        values: Any = jax.eval_shape(lambda: step(state, batch_of(rows[0]))[1])
        metrics = {name: jnp.zeros(len(rows), value.dtype) for name, value in values.items()}
        return jax.lax.fori_loop(0, n, one, (state, metrics))

    return jax.jit(
        dispatch,
        in_shardings=(everywhere, dealt, everywhere, everywhere, everywhere),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )


def make_look_up(mesh: Mesh) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """(images [R, ...] dealt over `data`, rows [B]) -> images[rows] [B, ...], dealt over `data`.

    Each device fills in the rows that it has, and bytes that only one device has are sent to where they
    belong by a sum: XLA's own lookup would gather all images first.
    """
    if mesh.shape["data"] == 1:
        return lambda images, rows: images[rows]

    def of_device(images, rows):
        here = rows - jax.lax.axis_index("data") * len(images)
        inside = (here >= 0) & (here < len(images))
        found = images[jnp.clip(here, 0, len(images) - 1)]
        found = jnp.where(inside[:, None, None, None], found, 0)
        return meshes.sum_dealt(found, "data")

    return jax.shard_map(of_device, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
