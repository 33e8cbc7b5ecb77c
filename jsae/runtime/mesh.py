"""The one place that makes the device mesh and starts jax.distributed.

Axes: `data` (images and activation vectors) and `model` (the SAE dictionary, F). One process or many
hosts run the same code: arrays that a step takes are global, and `put_batch` assembles them from each
process's rows. Everything that asks which process this is lives in `jsae.runtime`.
"""

import io
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax import lax
from jax._src import distributed  # the public module hides the key-value store
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jsae.runtime.preemption import Signals

_COLLECT_BYTES = 1 << 26  # of an array that devices of several hosts hold, sent around at once


def initialize(signals: Signals | None = None) -> None:
    """Join the other processes of this run, if there are any.

    The launch scripts name them in JSAE_COORDINATOR (host:port), JSAE_NUM_PROCESSES and JSAE_PROCESS_ID
    (JSAE_LOCAL_DEVICE_IDS, a comma list, where a process owns only some of the host's devices). On a TPU
    slice with more than one worker, jax finds the others by itself when JSAE_COORDINATOR is "auto". A
    process that was killed or has lost the network is missed after JSAE_HEARTBEAT_S seconds (100) at the
    latest: the others end then.

    Args:
      signals: the process's handlers, which jax puts its own over, and which hear of the other processes.
    """
    coordinator = os.environ.get("JSAE_COORDINATOR")
    if not coordinator:
        return
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        # Only the first process writes the compilation cache, and XLA:CPU programs that one process took from
        # it and another compiled meet in the wrong collectives: seen as runs that stand still for ever
        jax.config.update("jax_enable_compilation_cache", False)
    patience: dict[str, Any] = {"heartbeat_timeout_seconds": int(os.environ.get("JSAE_HEARTBEAT_S") or 100)}
    if coordinator == "auto":
        jax.distributed.initialize(**patience)
    else:
        missing = [name for name in ("JSAE_NUM_PROCESSES", "JSAE_PROCESS_ID") if name not in os.environ]
        if missing:
            raise ValueError(f"JSAE_COORDINATOR={coordinator} needs {' and '.join(missing)} beside it")
        local = os.environ.get("JSAE_LOCAL_DEVICE_IDS")
        jax.distributed.initialize(
            coordinator,
            num_processes=int(os.environ["JSAE_NUM_PROCESSES"]),
            process_id=int(os.environ["JSAE_PROCESS_ID"]),
            local_device_ids=[int(i) for i in local.split(",")] if local else None,
            **patience,
        )
    if signals is not None:
        signals.handle()  # jax has put its own handler of SIGTERM over ours
        joined = distributed.global_state
        signals.join(joined.client, joined.process_id, joined.num_processes)


def make_mesh(data: int = -1, model: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with axes ("data", "model"); data=-1 takes all devices that `model` leaves.

    Raises ValueError if data * model is not the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    n = len(devices)
    if model < 1 or n % model:
        raise ValueError(f"runtime.model_axis={model} must divide the {n} devices")
    data = n // model if data == -1 else data
    if data * model != n:
        raise ValueError(
            f"runtime.data_axis={data} x runtime.model_axis={model} is not the number of devices, {n}; "
            "data_axis=-1 takes what model_axis leaves"
        )
    grid = np.asarray(devices).reshape(data, model)
    return Mesh(grid, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def replicated(mesh: Mesh) -> NamedSharding:
    """Every device holds the whole array."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree: Any) -> Any:
    """The tree with every array whole on every device; what lies on this mesh already stays as it is."""
    return jax.tree.map(lambda leaf: place(mesh, leaf, PartitionSpec()), tree)


def place(mesh: Mesh, array: Any, spec: PartitionSpec) -> jax.Array:
    """An array that every process has, dealt over the mesh; one that lies on it already stays as it is."""
    if isinstance(array, jax.Array) and getattr(array.sharding, "mesh", None) == mesh:
        return array
    if isinstance(array, jax.Array) and jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key):
        data = place(mesh, jax.random.key_data(array), spec)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    sharding = NamedSharding(mesh, spec)
    return jax.make_array_from_callback(np.shape(array), sharding, np.asarray(array).__getitem__)


def sharded(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Array axis `axis` is dealt over the mesh's `data` axis, the others are whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, "data"))


def process_slice(mesh: Mesh) -> tuple[int, int]:
    """(index, count): which of `count` equal shares of every batch this process reads.

    Processes whose devices differ only along `model` read the same share.

    Raises ValueError if the data axis cannot be dealt to the processes evenly.
    """
    here = jax.process_index()
    rows = [i for i, row in enumerate(mesh.devices) if any(d.process_index == here for d in row)]
    data, n = mesh.shape["data"], len(rows)
    if data % n or rows[0] % n or rows != list(range(rows[0], rows[0] + n)):
        raise ValueError(
            f"process {here} holds rows {rows} of the mesh's data axis, {data}: expected an equal share "
            "without gaps; choose runtime.model_axis so that it divides, or is a multiple of, the devices of "
            "a process"
        )
    return rows[0] // n, data // n


def is_writer() -> bool:
    """True in the one process that writes logs, tables and manifests."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Wait until every process is here; `name` says where in an error. Nothing with one process."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def put_batch(mesh: Mesh, batch: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
    """Global arrays [B, ...] sharded over `data`, from this process's rows of each array."""
    sharding = sharded(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, np.asarray(v)) for k, v in batch.items()}


def check_batch(mesh: Mesh, batch_size: int, name: str) -> None:
    """Raise ValueError unless the batch can be dealt evenly over the `data` axis."""
    data = mesh.shape["data"]
    if batch_size < 1 or batch_size % data:
        raise ValueError(f"{name}={batch_size} must be a positive multiple of the mesh's data axis, {data}")


def all_agree(answer: bool) -> bool:
    """Whether every process answers yes; all of them get the same reply."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.process_allgather(np.asarray(answer)).all())


def of_writer(make: Callable[[], Any]) -> Any:
    """What `make()` returns in the writer process, a value that JSON can hold, on every process.

    The others do not call it. For what decides how often a collective follows: two processes that read a
    disk, or compute the same, may come to different answers.
    """
    if jax.process_count() == 1:
        return make()
    return json.loads(bytes_of_writer(json.dumps(make()).encode() if is_writer() else b""))


def bytes_of_writer(data: bytes) -> bytes:
    """The writer process's bytes on every process."""
    return data if jax.process_count() == 1 else _bytes_of(data, 0)


def _bytes_of(data: bytes, process: int) -> bytes:
    is_source = jax.process_index() == process
    length = np.array([len(data) >> 20, len(data) & 0xFFFFF], np.uint32)
    high, low = multihost_utils.broadcast_one_to_all(length, is_source)
    n = int(high) << 20 | int(low)
    mine = np.frombuffer(data, np.uint8) if is_source else np.zeros(n, np.uint8)
    parts = [mine[start : start + _COLLECT_BYTES] for start in range(0, n, _COLLECT_BYTES)]
    sent = (multihost_utils.broadcast_one_to_all(part, is_source) for part in parts)
    return b"".join(np.asarray(part).tobytes() for part in sent)


def shared(n: int, make: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
    """make(0), ..., make(n - 1) on every process, each made by one of them; as many at once as there are.

    For work of the hosts that no mesh deals. A collective: all processes must take all of them.
    """
    count, here = jax.process_count(), jax.process_index()
    for first in range(0, n, count):
        mine = make(first + here) if first + here < n else np.empty(0)
        if count == 1:
            yield mine
            continue
        stream = io.BytesIO()
        np.save(stream, mine, allow_pickle=False)
        for process in range(min(count, n - first)):
            yield np.load(io.BytesIO(_bytes_of(stream.getvalue(), process)), allow_pickle=False)


def sum_dealt(value: jax.Array, axis: str) -> jax.Array:
    """The sum of a value over the devices of a mesh axis, of which each gets its rows; under shard_map.

    Between processes on CPUs a sum of everything stands in: over Gloo XLA's reduce-scatter is wrong,
    in silence, from some MiB on (jax#40830).
    """

    def scatter(value):
        return lax.psum_scatter(value, axis, tiled=True)

    def whole(value):
        n = len(value) // lax.axis_size(axis)
        return lax.dynamic_slice_in_dim(lax.psum(value, axis), lax.axis_index(axis) * n, n)

    if jax.process_count() == 1:
        return scatter(value)
    return lax.platform_dependent(value, cpu=whole, default=scatter)


def collect(tree: Any) -> Any:
    """The whole tree as numpy arrays on every host, whatever its shardings.

    Devices are never sent more than a part of an array at a time, so arrays may be larger than a device.
    """
    return jax.tree.map(_collect, tree)


def _collect(x: Any) -> Any:
    if not isinstance(x, jax.Array):
        return x
    if x.is_fully_addressable:
        return np.asarray(x)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    return _collect_in_parts(x)


def _collect_in_parts(x: jax.Array) -> np.ndarray:
    whole, rows = np.empty(x.shape, x.dtype), max(1, _COLLECT_BYTES * len(x) // x.nbytes)
    for start in range(0, len(x), rows):
        part = rows_on_all_devices(cast(Any, x.sharding).mesh, start, start + rows)(x)
        whole[start : start + rows] = part.addressable_data(0)
    return whole


def rows_on_all_devices(mesh: Mesh, start: int, stop: int) -> Callable[[jax.Array], jax.Array]:
    """A jitted (array) -> its rows start..stop-1 on every device; never more of it is sent than a shard."""
    # Fixed bounds: with traced ones XLA sends the whole array and then takes the rows
    return jax.jit(lambda x: x[start:stop], out_shardings=replicated(mesh))


def to_host(tree: Any) -> Any:
    """The tree as numpy arrays; replicated global arrays are read from this process's first copy."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0)) if isinstance(x, jax.Array) else x, tree)
