"""Two processes on loopback train one classifier step together, and agree with one process."""

import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from jsae import classifier
from jsae.classifier import train
from jsae.runtime import compilation, mesh

ROOT = pathlib.Path(__file__).parents[1]
BATCH_SIZE = 16


def step_on(device_mesh) -> dict:
    """What one training step on the first 16 images gives, each process with its share of them."""
    arch = classifier.make_model("own", 4, stem_stride=2, depths=(1, 1, 1, 1), dims=(4, 8, 8, 16))
    recipe = train.Recipe(
        n_steps=4,
        warmup_steps=0,
        learning_rate=1e-2,
        weight_decay=0.05,
        clip_norm=1.0,
        label_smoothing=0.1,
        drop_path=0.0,
        ema_decay=0.9,
        augmentation={"crop": "pad", "pad_px": 2, "flip": True},
    )
    whole = mesh.replicated(device_mesh)
    state = jax.jit(
        lambda: train.init_state(jax.random.key(0), arch, recipe, layer_scale=0.5), out_shardings=whole
    )()
    step = jax.jit(
        train.make_step(arch, recipe, 0),
        in_shardings=(whole, mesh.sharded(device_mesh)),
        out_shardings=(whole, whole),
        donate_argnums=0,
    )
    rng = np.random.default_rng(0)
    batch = {
        "image": rng.integers(0, 256, (BATCH_SIZE, 16, 16, 3), np.uint8),
        "label": rng.integers(0, 4, BATCH_SIZE).astype(np.int32),
        "index": np.arange(BATCH_SIZE, dtype=np.int32),
    }
    index, count = mesh.process_slice(device_mesh)
    assert count == jax.process_count() and device_mesh.size == 4
    mine = slice(index * BATCH_SIZE // count, (index + 1) * BATCH_SIZE // count)
    state, values = step(state, mesh.put_batch(device_mesh, {k: v[mine] for k, v in batch.items()}))
    state, values = mesh.to_host((state, values))
    return {
        "loss": values["train/loss"],
        "gradient_norm": values["train/gradient_norm"],
        "head": state["params"]["head"]["kernel"],
    }


def main(folder: str) -> None:
    """What each of the two processes does."""
    mesh.initialize()
    caches = []
    for name in (f"cache-{jax.process_index()}", "cache-all"):
        compilation.cache(f"{folder}/{name}")
        caches.append(str(jax.config.jax_compilation_cache_dir))
    jax.config.update("jax_compilation_cache_dir", None)
    found = step_on(mesh.make_mesh())
    if mesh.is_writer():
        np.savez(f"{folder}/two.npz", caches=caches, **found)


def test_two_processes_take_the_step_of_one(clean_environment, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        joined = {"JSAE_COORDINATOR": f"127.0.0.1:{s.getsockname()[1]}", "JSAE_NUM_PROCESSES": "2"}
    program = f"from tests.test_two_processes import main; main({str(tmp_path)!r})"
    environment = clean_environment | joined | {"JAX_NUM_CPU_DEVICES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            env=environment | {"JSAE_PROCESS_ID": str(i)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    one = step_on(mesh.make_mesh(devices=jax.devices()[:4]))
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        assert "not every process sees" in err, err  # a folder of each node
    two = np.load(tmp_path / "two.npz")
    for name, value in one.items():
        # same four devices, other reductions between processes: the project's bound for a change of topology
        assert np.abs(value - two[name]).max() <= 1e-5 * np.abs(value).max(), name
    assert two["caches"].tolist() == ["None", f"{tmp_path}/cache-all"]
