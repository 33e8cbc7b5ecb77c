"""The section `sae` of the benchmark: training steps of sparse autoencoders.

vectors/s of whole steps (gradients, projection, Adam, AuxK where a variant has it) at 768 channels, 6,144
features, k = 32 and 4,096 vectors, beside the encoder's product alone and other people's code in the same
run. AuxK is on, and idle as long as no feature is dead, ours and other people's; `auxk_at_work_vectors_per_s`
is the rate with a twentieth of the features dead
growth   the same for F = 2^11 .. 2^15 and for k = 8 .. 128
stream   training from a store five times as large as the shuffle buffer, beside the same store resident, and
         the rate at which the source alone brings vectors to the device; by how much the process grew
"""

import contextlib
import dataclasses
import functools
import gc
import pathlib
import re
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jsae.activations import store
from jsae.runtime import allocator, artifacts, mesh
from jsae.sae import model, train, variants
from jsae.sae.batches import blocks, resident, streamed

SETTINGS = {"relu_l1": {"l1": 1e-3}, "topk": {}, "batch_topk": {}}
FEATURES = tuple(2**i for i in range(11, 16))
ACTIVE = (8, 16, 32, 64, 128)


def make_stepper(
    name: str, n_channels: int, n_features: int, k: int, n: int, n_dead: int = 0
) -> tuple[Callable, dict]:
    """(function that takes one more training step each time it is called, {"compile_s", "peak_mib"}).

    With n_dead, as many features are dead and stay so.
    """
    device_mesh = mesh.make_mesh(devices=jax.devices()[:1])
    batch = {
        "x": jax.random.normal(jax.random.key(0), (blocks.N_BLOCKS, n // blocks.N_BLOCKS, n_channels)),
        "mask": jnp.ones((blocks.N_BLOCKS, n // blocks.N_BLOCKS)),
    }
    recipe = make_recipe()
    state = jax.jit(lambda: fresh(name, n_channels, n_features, k, recipe, n_dead))()
    step = jax.jit(train.make_step(device_mesh, state.sae, recipe), donate_argnums=0)
    start = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    row = {"compile_s": time.perf_counter() - start}
    memory = compiled.memory_analysis()
    if memory is not None:
        row["peak_mib"] = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**20
    held = [state]

    def run():
        held[0], metrics = compiled(held[0], batch)
        return metrics

    return run, row


def make_recipe() -> train.Recipe:
    """A recipe whose steps cost what those of a long run do: features die only after a hundred steps."""
    return train.Recipe(n_steps=1000, learning_rate=1e-4, dead_after_steps=100)


def fresh(
    name: str, n_channels: int, n_features: int, k: int, recipe: train.Recipe, n_dead: int = 0
) -> train.TrainState:
    """A new state of a variant, whose first n_dead features never fire."""
    active = {"k": k} if "k" in variants.settings_of(name) else {}
    made = model.init(
        jax.random.key(2),
        n_channels=n_channels,
        n_features=n_features,
        variant=variants.make(name, **SETTINGS[name], **active),
        mean=jnp.zeros(n_channels),
        scale=1.0,
    )
    state, dead = train.init_state(made, recipe), jnp.arange(n_features) < n_dead
    made = made.with_params(made.params | {"b_enc": jnp.where(dead, -100.0, made.b_enc)})
    return dataclasses.replace(state, sae=made, silent_steps=jnp.where(dead, recipe.dead_after_steps, 0))


def encoder_product(n_channels: int, n_features: int, n: int) -> Callable:
    """A function that multiplies n vectors with the encoder, as every step must."""
    x = jax.random.normal(jax.random.key(0), (n, n_channels))
    weights = jax.random.normal(jax.random.key(1), (n_features, n_channels)) / n_channels**0.5
    product = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    return lambda: product(x, weights)


def rates(
    alternate: Callable,
    rounds: int,
    peer_rows: Callable,
    n_channels: int = 768,
    n_features: int = 6144,
    k: int = 32,
    n: int = 4096,
) -> dict:
    """Vectors/s of a training step by variant, of the encoder's product alone, and of peers.

    `alternate` is that of `launch.benchmark.turns`; `peer_rows` () -> rows of peers, called once per round.
    """
    row, running = {}, {"encoder_product": encoder_product(n_channels, n_features, n)}
    for name in SETTINGS:
        running[name], row[name] = make_stepper(name, n_channels, n_features, k, n)
        if "aux_alpha" in variants.settings_of(name):
            running[f"{name} at work"], _ = make_stepper(name, n_channels, n_features, k, n, n_features // 20)
    found, theirs = [], []
    for _ in range(rounds):
        found.append(alternate(running, n, 1))
        theirs += peer_rows()
    product_rate = statistics.median(rates["encoder_product"] for rates in found)
    row["encoder_product_vectors_per_s"] = product_rate
    for name in SETTINGS:
        row[name]["vectors_per_s"] = rate = statistics.median(rates[name] for rates in found)
        row[name]["step_over_encoder_product"] = product_rate / rate
        if f"{name} at work" in running:
            at_work = statistics.median(rates[f"{name} at work"] for rates in found)
            row[name]["auxk_at_work_vectors_per_s"] = at_work
        for peer in sorted({their["peer"] for their in theirs}):
            rates = [t["vectors_per_s"] for t in theirs if (t["peer"], t["variant"]) == (peer, name)]
            if rates:
                row[name][f"{peer}_vectors_per_s"] = statistics.median(rates)
                row[name][f"over_{peer}"] = rate / statistics.median(rates)
    return row


def growth(alternate: Callable, rounds: int, n_channels: int = 768, n: int = 4096) -> dict:
    """Vectors/s, times of the encoder's product and peak memory by F at k = 32 and by k at F = 6144."""
    points = [(f"F={f}", f, 32) for f in FEATURES] + [(f"K={k}", 6144, k) for k in ACTIVE]
    rows = {}
    for label, n_features, k in points:
        running = {"encoder_product": encoder_product(n_channels, n_features, n)}
        made = {}
        for name in ("topk", "batch_topk"):
            running[name], made[name] = make_stepper(name, n_channels, n_features, k, n)
        found = alternate(running, n, rounds)
        rows[label] = {"encoder_product_vectors_per_s": found["encoder_product"]}
        for name, about in made.items():
            rows[label][name] = {
                "vectors_per_s": found[name],
                "step_over_encoder_product": found["encoder_product"] / found[name],
                "peak_mib": about.get("peak_mib"),
            }
    return rows


def stream(
    rounds: int,
    n_channels: int = 768,
    n_features: int = 6144,
    k: int = 32,
    n: int = 4096,
    buffer_mib: float = 64.0,
) -> dict:
    """Vectors/s and memory of an epoch of TopK training, streamed and resident, and of the source alone.

    Rates are medians over the rounds, in which the three take turns; `_grew_mib` is the most that the process
    grew by in any of them, training and its temporaries included.
    """
    cells = 49
    n_images = int(5 * buffer_mib * 2**20 / (cells * n_channels * 4))
    row = {"n_vectors": n_images * cells, "buffer_mib": buffer_mib}
    row["store_mib"] = n_images * cells * n_channels * 4 / 2**20
    device_mesh = mesh.make_mesh(devices=jax.devices()[:1])
    kinds = ("streamed_alone", "streamed", "resident")
    seconds, grew = ({name: [] for name in kinds} for _ in range(2))
    with tempfile.TemporaryDirectory() as folder:
        opened = _make_store(pathlib.Path(folder), n_images, (7, 7), n_channels)
        for name in kinds * rounds:
            gc.collect()
            allocator.return_freed_memory()
            before = _anonymous_mib()
            if name == "resident":
                shape = resident.shape_of(opened.n_vectors, n_channels, n)
                chunks = (opened.stored_vectors(i, i + n) for i in range(0, opened.n_vectors, n))
                source = resident.Resident(device_mesh, chunks, shape, seed=0)
            else:
                source = streamed.Streamed(
                    device_mesh, opened, n, buffer_mib=buffer_mib, seed=0, last_step=10**6
                )
            with contextlib.closing(source):
                train_too = name != "streamed_alone"
                took, peak = _epoch(device_mesh, source, n_features, k, train_too)
            seconds[name].append(took)
            grew[name].append(peak - before)
    for name in kinds:
        row[f"{name}_vectors_per_s"] = opened.n_vectors / statistics.median(seconds[name])
        row[f"{name}_grew_mib"] = max(grew[name])
    row["streamed_over_resident"] = row["streamed_vectors_per_s"] / row["resident_vectors_per_s"]
    return row


def _make_store(folder, n_images: int, grid, n_channels: int):
    rng, shards = np.random.default_rng(0), []
    for start in range(0, n_images, 512):
        shards.append(min(512, n_images - start))
        acts = rng.standard_normal((shards[-1], *grid, n_channels), np.float32)
        artifacts.write_array(folder / store.shard_name(len(shards) - 1), acts)
    manifest = {"site": "stage4", "grid": list(grid), "n_channels": n_channels, "n_images": n_images}
    artifacts.write_json(folder / "manifest.json", manifest | {"dtype": "float32", "shards": shards})
    return store.ActivationStore.open(folder)


@functools.cache
def _programs(device_mesh, shape: blocks.Shape, n_features: int, k: int, per_dispatch: int):
    """(state factory, dispatch) of TopK training, compiled once for all rounds."""
    recipe = make_recipe()
    make = jax.jit(lambda: fresh("topk", shape.n_channels, n_features, k, recipe))
    abstract = jax.eval_shape(make)
    return make, train.make_dispatch(device_mesh, abstract.sae, recipe, shape, per_dispatch)


def _epoch(device_mesh, source, n_features: int, k: int, train_too: bool):
    """(seconds, largest memory) of an epoch behind a first step, in a loop like fit's."""
    shape, per_dispatch = source.shape, min(4, source.most_steps)
    if train_too:
        make, dispatch = _programs(device_mesh, shape, n_features, k, per_dispatch)
        window = source.at(0)
        state, values = dispatch(make(), window.x, window.mask, window.order, 0, 1)
        jax.block_until_ready(values)
    start, peak, step, pending = time.perf_counter(), _anonymous_mib(), int(train_too), None
    last = step + shape.steps_per_epoch
    while step < last:
        window = source.at(step)
        n = min(per_dispatch, window.stop - step, last - step)
        if train_too:
            state, values = dispatch(state, window.x, window.mask, window.order, window.first, n)
        else:
            values = jax.block_until_ready(window.x)[0, 0]
        jax.block_until_ready(pending)
        source.done(step)
        pending, step, peak = values, step + n, max(peak, _anonymous_mib())
    jax.block_until_ready(pending)
    return time.perf_counter() - start, peak


def _anonymous_mib() -> float:
    """Memory of this process that is not a file's, 0 where the system does not say."""
    try:
        status = pathlib.Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024
