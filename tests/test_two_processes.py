"""Two processes on loopback train one classifier step and an SAE together, and agree with one process."""

import os
import sys

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from jsae import classifier, sae
from jsae.classifier import train
from jsae.runtime import compilation, mesh, preemption, stages
from jsae.sae import loop
from jsae.sae.run import run as train_sae
from tests.sae import conftest as examples
from tests.together import together

BATCH_SIZE = 16
SLOW = pytest.mark.skipif(
    not os.environ.get("JSAE_SLOW_TESTS"), reason="four more processes; JSAE_SLOW_TESTS=1 runs it"
)
AGREEMENTS = ("process_allgather", "broadcast_one_to_all", "sync_global_devices")


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


def counting(monkeypatch) -> list[str]:
    """A list to which each call comes by which the hosts wait for each other."""
    waits: list[str] = []
    for name in AGREEMENTS:
        wait = getattr(multihost_utils, name)

        def counted(*arguments, name=name, wait=wait, **named):
            waits.append(name)
            return wait(*arguments, **named)

        monkeypatch.setattr(multihost_utils, name, counted)
    return waits


def sae_config():
    """100 steps, a dispatch of one step each, and one save."""
    config = examples.small_config()
    config.sae.update(n_epochs=20.0, steps_per_dispatch=1, save_every_steps=0, eval_every_steps=0)
    return config


def main(folder: str) -> None:
    """What each of the processes does."""
    mesh.initialize(preemption.install())
    caches = []
    for name in (f"cache-{jax.process_index()}", "cache-all"):
        compilation.cache(f"{folder}/{name}")
        caches.append(str(jax.config.jax_compilation_cache_dir))
    jax.config.update("jax_compilation_cache_dir", None)
    found = step_on(mesh.make_mesh())
    if mesh.is_writer():
        np.savez(f"{folder}/found.npz", caches=caches, **found)
    run_steps = loop.run_steps
    with pytest.MonkeyPatch.context() as patch:
        waits = counting(patch)

        def steps(*arguments, saved, **named):
            waits.clear()
            patch.setattr(saved, "save", lambda *_, save=saved.save: print("waits:", waits) or save(*_))
            return run_steps(*arguments, saved=saved, **named)

        patch.setattr(loop, "run_steps", steps)
        train_sae(sae_config(), folder)


@pytest.mark.parametrize("n", [2, pytest.param(4, marks=SLOW)])
def test_several_processes_do_what_one_does(clean_environment, tmp_path, n):
    ours, theirs = tmp_path / "one", tmp_path / "several"
    for folder in (ours, theirs):
        examples.make_activations(sae_config(), folder)
    program = f"from tests.test_two_processes import main; main({str(theirs)!r})"
    ended = together([sys.executable, "-c", program], clean_environment, n, 4 // n)
    assert [code for code, *_ in ended] == [0] * n, ended
    for _, out, err in ended:
        assert "not every process sees" in err, err  # a folder of each node
        assert out.count("waits: []") == 1, "100 dispatches before the save"
    several = np.load(theirs / "found.npz")
    for name, value in step_on(mesh.make_mesh(devices=jax.devices()[:4])).items():
        # same four devices, other reductions between processes: the project's bound for a change of topology
        assert np.abs(value - several[name]).max() <= 1e-5 * np.abs(value).max(), name
    assert several["caches"].tolist() == ["None", f"{theirs}/cache-all"]
    train_sae(sae_config(), ours)
    one, several = (sae.load(folder / "sae") for folder in (ours, theirs))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(several), strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(a).max()
    fvu, other = (stages.results(sae_config(), folder, "sae")["fvu"] for folder in (ours, theirs))
    assert other == pytest.approx(fvu, rel=1e-5)
