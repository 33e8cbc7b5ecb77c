"""Both training stages are killed by another process in mid-loop and started again; nothing may differ.

The disturbed run is killed twice, once in each training stage, at a step that is no multiple of the save
interval, and compared bit for bit with a run that was left alone.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jsae.activations import ActivationStore
from jsae.runtime import checkpoints

ROOT = pathlib.Path(__file__).parents[1]
SETTINGS = [
    "--config=configs/demo.py:small",
    "--config.data.n_train=320",
    "--config.data.n_val=64",
    "--config.data.n_test=64",
    "--config.classifier.dims=(8,16,32,64)",
    "--config.classifier.n_epochs=6",
    "--config.classifier.warmup_epochs=1",
    "--config.classifier.batch_size=32",
    "--config.classifier.log_every_steps=1",
    "--config.classifier.eval_every_steps=25",
    "--config.classifier.save_every_steps=7",
    "--config.sae.n_features=256",
    "--config.sae.n_epochs=40",
    "--config.sae.batch_size=1024",
    "--config.sae.steps_per_dispatch=4",
    "--config.sae.log_every_steps=4",
    "--config.sae.save_every_steps=60",
    "--config.sae.eval_every_steps=200",
]
PROGRAM = "from launch import start; start.run_stages(['classifier', 'activations', 'sae'])"
KILL_AT = {"classifier": 38, "sae": 130}  # rows from these steps on appear in metrics.jsonl before the kill
SAVE_EVERY = {"classifier": 7, "sae": 60}


def start(workdir, environment, *more):
    command = [sys.executable, "-c", PROGRAM, f"--workdir={workdir}", *SETTINGS, *more]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def finish(workdir, environment):
    process = start(workdir, environment)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-4000:]


def rows(path):
    """Rows of a metrics.jsonl without times; a torn last line is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        found.append({k: v for k, v in row.items() if not k.endswith(("_s", "_per_s"))})
    return found


def kill_in_loop(folder, environment):
    """Start the run and SIGKILL it once the loop of this stage has written the row of KILL_AT."""
    process = start(folder.parent, environment)
    deadline = time.monotonic() + 240
    try:
        while time.monotonic() < deadline and process.poll() is None:
            seen = [row["step"] for row in rows(folder / "metrics.jsonl")]
            if seen and seen[-1] >= KILL_AT[folder.name]:
                os.kill(process.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL, "the stage ended before it could be killed"
    last = rows(folder / "metrics.jsonl")[-1]["step"]
    steps = [int(p.name) for p in (folder / "checkpoints").iterdir() if p.name.isdigit()]
    assert steps and 0 < max(steps) < last, f"killed at step {last} with checkpoints {sorted(steps)}"
    assert last % SAVE_EVERY[folder.name], "killed at a step that was being saved"


def final_arrays(folder):
    """Every array of the newest checkpoint, by name."""
    saved = checkpoints.Checkpoints(folder / "checkpoints")
    step = saved.latest_step()
    names = saved.names(step)
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    tree = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for name, (shape, dtype) in names.items()
    }
    _, arrays = saved.restore(tree, step)
    saved.close()
    return step, {name: np.asarray(array) for name, array in arrays.items()}


@pytest.fixture(scope="module")
def both(clean_environment, tmp_path_factory):
    calm, disturbed = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("disturbed")
    finish(calm, clean_environment)
    kill_in_loop(disturbed / "classifier", clean_environment)
    kill_in_loop(disturbed / "sae", clean_environment)
    finish(disturbed, clean_environment)
    return calm, disturbed


@pytest.mark.parametrize("stage", ["classifier", "sae"])
def test_state_is_bit_identical(both, stage):
    (step, calm), (again, disturbed) = (final_arrays(workdir / stage) for workdir in both)
    assert step == again and calm.keys() == disturbed.keys() and len(calm) > 10
    for name, array in calm.items():
        np.testing.assert_array_equal(array, disturbed[name], err_msg=name)


@pytest.mark.parametrize("stage", ["classifier", "sae"])
def test_metrics_are_identical_but_for_times(both, stage):
    calm, disturbed = (rows(workdir / stage / "metrics.jsonl") for workdir in both)
    assert calm == disturbed and len(calm) > 10


def test_activations_and_export_are_identical(both):
    for split in ("train", "val", "test"):
        calm, disturbed = (ActivationStore.open(workdir / "activations" / split) for workdir in both)
        np.testing.assert_array_equal(calm.read(0, calm.n_images), disturbed.read(0, calm.n_images))
        np.testing.assert_array_equal(calm.logits, disturbed.logits)
    calm, disturbed = ((workdir / "sae/export/sae_weights.safetensors").read_bytes() for workdir in both)
    assert calm == disturbed


def test_results_are_identical(both):
    for stage in ("classifier", "activations", "sae"):
        calm, disturbed = (json.loads((w / stage / "manifest.json").read_text())["results"] for w in both)
        without_times = [
            {k: v for k, v in r.items() if not k.endswith(("_s", "_per_s"))} for r in (calm, disturbed)
        ]
        assert without_times[0] == without_times[1]


def test_another_config_is_refused_by_name_before_anything_is_done(both, clean_environment):
    process = start(both[0], clean_environment, "--config.sae.k=9")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "up to date" not in err
    assert json.loads((both[0] / "config.json").read_text())["sae"]["k"] == 16
    assert "config.sae.k: 16 there, 9 now" in err and "--restart=sae" in err
