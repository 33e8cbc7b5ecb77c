"""Where a run's vectors come from: all of them on the devices if they fit, else streamed through a buffer."""

import functools
from typing import Any

from etils import epath
from jax.sharding import Mesh

from jsae.activations import ActivationStore
from jsae.runtime import artifacts, logs
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.sae import memory, paths
from jsae.sae.batches import blocks, resident, streamed
from jsae.sae.variants import Variant

FILE = "source.json"
STORES = ("auto", "resident", "streamed")
_CHUNK_BYTES = 1 << 25


def choose(
    mesh: Mesh,
    store: ActivationStore,
    c: Any,
    variant: Variant,
    folder: epath.Path,
    seed: int,
) -> tuple[bool, blocks.Shape]:
    """(whether the vectors are streamed, the blocks' sizes) for `config.sae`.

    "auto" streams only what does not fit beside the SAE. The order of the vectors depends on the choice, so a
    resumed run keeps the one that lies in its folder (`remember`).

    Raises ValueError for an unknown setting, and where the run does not fit the devices; the message names
    what to lower.
    """
    if c.store not in STORES:
        raise ValueError(f"config.sae.store={c.store!r}; the valid values are {', '.join(STORES)}")
    dtype = store.vector_dtype.name
    shape = resident.shape_of(store.n_vectors, store.n_channels, c.batch_size, dtype)
    estimate = functools.partial(
        memory.estimate,
        n_channels=store.n_channels,
        n_features=c.n_features,
        batch_size=c.batch_size,
        data=mesh.shape["data"],
        model=mesh.shape["model"],
        sparse=paths.is_sparse(mesh, variant, c.n_features),
        has_ema=c.ema_decay > 0,
    )
    available = memory.of_device(mesh)
    needed = estimate(vector_bytes=shape.mib * 2**20)
    path = folder / FILE
    chosen = meshes.of_writer(lambda: artifacts.read_json(path)["store"] if path.exists() else c.store)
    if chosen == "auto":
        everyone_can = meshes.all_agree(memory.fits(needed, available))
        chosen = "resident" if everyone_can else "streamed"
    if chosen == "streamed":
        shape = streamed.plan(store, c.batch_size, c.buffer_mib, seed)[0]
        needed = estimate(vector_bytes=2 * shape.mib * 2**20)
    logs.get_logger().info("sae: %s: training needs about %s", chosen, needed)
    memory.check(needed, available, mesh, streamed=chosen == "streamed")
    return chosen == "streamed", shape


def precision(mesh: Mesh, setting: str, folder: epath.Path) -> str:
    """What config.sae.precision means on this mesh, or meant where the run in this folder began."""
    path = folder / FILE
    kept = meshes.of_writer(lambda: artifacts.read_json(path).get("precision") if path.exists() else None)
    return kept or paths.precision_of(mesh, setting)


def remember(folder: epath.Path, is_streamed: bool, precision: str) -> None:
    """Write the choices into the stage's folder, once all settings have been found good."""
    chosen = {"store": "streamed" if is_streamed else "resident", "precision": precision}
    artifacts.write_json(folder / FILE, chosen)


def open_source(
    mesh: Mesh,
    store: ActivationStore,
    c: Any,
    shape: blocks.Shape,
    context: RunContext,
    *,
    is_streamed: bool,
    seed: int,
    last_step: int,
) -> resident.Resident | streamed.Streamed:
    """The source that `choose` decided on."""
    if is_streamed:
        size = {"buffer_mib": c.buffer_mib, "seed": seed, "last_step": last_step}
        return streamed.Streamed(mesh, store, c.batch_size, **size)
    return resident.Resident(mesh, _chunks(store, context), shape, seed=seed)


def _chunks(store, context):
    """All vectors of a store as stored, in its order, some MiB at a time."""
    n = max(1, _CHUNK_BYTES // (store.n_channels * store.vector_dtype.itemsize))
    for start in range(0, store.n_vectors, n):
        context.check()
        yield store.stored_vectors(start, min(start + n, store.n_vectors))
