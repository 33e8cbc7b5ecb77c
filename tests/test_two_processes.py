"""Two processes on loopback train one classifier step together, and agree with one process."""

import pathlib
import socket
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = """
import sys
import jax, numpy as np
from jsae import classifier
from jsae.classifier import train
from jsae.runtime import compilation, mesh
mesh.initialize()
caches = []
for folder in sys.argv[3].format(process=jax.process_index()), sys.argv[3].format(process="all"):
    compilation.cache(folder)
    caches.append(jax.config.jax_compilation_cache_dir)
jax.config.update("jax_compilation_cache_dir", None)
device_mesh = mesh.make_mesh()
arch = classifier.make_model("own", 4, stem_stride=2, depths=(1, 1, 1, 1), dims=(4, 8, 8, 16))
recipe = train.Recipe(n_steps=4, warmup_steps=0, learning_rate=1e-2, weight_decay=0.05, clip_norm=1.0,
    label_smoothing=0.1, drop_path=0.0, ema_decay=0.9,
    augmentation={"crop": "pad", "pad_px": 2, "flip": True})
everywhere = mesh.replicated(device_mesh)
make = lambda: train.init_state(jax.random.key(0), arch, recipe, layer_scale=0.5)
state = jax.jit(make, out_shardings=everywhere)()
step = jax.jit(train.make_step(arch, recipe, 0), in_shardings=(everywhere, mesh.sharded(device_mesh)),
    out_shardings=(everywhere, everywhere), donate_argnums=0)
index, count = mesh.process_slice(device_mesh)
assert count == int(sys.argv[2]) and jax.device_count() == 4, (count, jax.device_count())
rng = np.random.default_rng(0)
batch = {"image": rng.integers(0, 256, (16, 16, 16, 3), np.uint8),
    "label": rng.integers(0, 4, 16).astype(np.int32), "index": np.arange(16, dtype=np.int32)}
mine = slice(index * 16 // count, (index + 1) * 16 // count)
state, values = step(state, mesh.put_batch(device_mesh, {k: v[mine] for k, v in batch.items()}))
state, values = mesh.to_host((state, values))
if mesh.is_writer():
    np.savez(sys.argv[1], loss=values["train/loss"], gradient_norm=values["train/gradient_norm"],
        head=state["params"]["head"]["kernel"], caches=[str(folder) for folder in caches])
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def run(n_processes, path, environment):
    port = free_port()
    processes = []
    for i in range(n_processes):
        joined = {
            "JSAE_COORDINATOR": f"127.0.0.1:{port}",
            "JSAE_NUM_PROCESSES": str(n_processes),
            "JSAE_PROCESS_ID": str(i),
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(path), str(n_processes), f"{path}-{{process}}"],
                env=environment
                | {"JAX_NUM_CPU_DEVICES": str(4 // n_processes)}
                | (joined if n_processes > 1 else {}),
                cwd=ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    for process in processes:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err[-3000:]
        assert ("not every process sees" in err) == (n_processes > 1), err  # a folder of each node
    return np.load(path)


def test_two_processes_take_the_step_of_one(clean_environment, tmp_path):
    one = run(1, tmp_path / "one.npz", clean_environment)
    two = run(2, tmp_path / "two.npz", clean_environment)
    for name in ("loss", "gradient_norm", "head"):
        # same four devices, other reductions between processes: the project's bound for a change of topology
        assert np.abs(one[name] - two[name]).max() <= 1e-5 * np.abs(one[name]).max(), name
    assert one["caches"].tolist() == [f"{tmp_path}/one.npz-0", f"{tmp_path}/one.npz-all"]
    assert two["caches"].tolist() == ["None", f"{tmp_path}/two.npz-all"]
