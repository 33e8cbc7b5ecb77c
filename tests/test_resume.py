"""Both training stages are killed in mid-loop and started again; nothing may differ.

The disturbed run is killed twice, once in each training stage, at a step that is no multiple of the save
interval, and compared bit for bit with a run that was left alone.
"""

import json
import shutil

import jax
import numpy as np
import pytest

from jsae.runtime import checkpoints
from launch.faults import runs

SETTINGS = [
    "--config=configs/demo.py:small",
    "--config.data.image_size=48",
    "--config.data.n_train=192",
    "--config.data.n_val=32",
    "--config.data.n_test=32",
    "--config.classifier.stem_stride=2",
    "--config.classifier.depths=(0,0,0,1)",
    "--config.classifier.dims=(4,4,8,32)",
    "--config.classifier.n_epochs=6",
    "--config.classifier.warmup_epochs=1",
    "--config.classifier.batch_size=32",
    "--config.classifier.log_every_steps=1",
    "--config.classifier.eval_every_steps=15",
    "--config.classifier.save_every_steps=7",
    "--config.sae.n_features=64",
    "--config.sae.n_epochs=40",
    "--config.sae.batch_size=256",
    "--config.sae.steps_per_dispatch=4",
    "--config.sae.log_every_steps=4",
    "--config.sae.save_every_steps=60",
    "--config.sae.eval_every_steps=100",
]
SCRIPTS = {
    "classifier": "launch.train_classifier",
    "activations": "launch.extract",
    "sae": "launch.train_sae",
}
KILL_AT = {"classifier": 25, "sae": 40}  # the dispatch behind which it is killed
SAVED = {"classifier": 21, "sae": 120}  # the last step that is saved by then


@pytest.fixture(scope="module")
def start(clean_environment):
    """start(workdir, stage, *settings, fail=): an Outcome of one stage's script."""

    def start(workdir, stage, *settings, fail=""):
        settings = [*SETTINGS, *settings]
        module = SCRIPTS[stage]
        return runs.run(workdir, settings, environment=clean_environment, module=module, fail=fail)

    return start


def rows(path):
    """Rows of a metrics.jsonl without times; a torn last line is left out."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            break
        found.append(without_times(row))
    return found


def without_times(values):
    """A dict without the values of a clock."""
    return {k: v for k, v in values.items() if not k.endswith(("_s", "_per_s"))}


def kill_in_loop(start, folder):
    """Start the stage and SIGKILL it some steps behind a save."""
    stage = folder.name
    done = start(folder.parent, stage, fail=f"kill@progress/{stage}#{KILL_AT[stage]}")
    assert done.code == -9, done.lines[-5:]
    steps = [int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit()]
    last = rows(folder / "metrics.jsonl")[-1]["step"]
    assert steps and max(steps) <= SAVED[stage] < last, (
        f"killed at step {last} with checkpoints {sorted(steps)}"
    )


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
def both(start, tmp_path_factory):
    """A workdir left alone, and one whose training stages were killed; the SAE's on copied activations."""
    calm, disturbed = (tmp_path_factory.mktemp(name) for name in ("calm", "disturbed"))
    for stage in SCRIPTS:
        done = start(calm, stage)
        assert done.code == 0, done.lines[-9:]
    kill_in_loop(start, disturbed / "classifier")
    assert start(disturbed, "classifier").code == 0
    shutil.copytree(calm / "activations", disturbed / "activations")  # the digest above it is the same
    kill_in_loop(start, disturbed / "sae")
    assert start(disturbed, "sae").code == 0
    return calm, disturbed


@pytest.mark.parametrize("stage", ["classifier", "sae"])
def test_state_metrics_and_results_are_bit_identical_but_for_times(both, stage):
    (step, calm), (again, disturbed) = (final_arrays(workdir / stage) for workdir in both)
    assert step == again and calm.keys() == disturbed.keys() and len(calm) > 10
    for name, array in calm.items():
        np.testing.assert_array_equal(array, disturbed[name], err_msg=name)
    calm, disturbed = (rows(workdir / stage / "metrics.jsonl") for workdir in both)
    assert calm == disturbed and len(calm) > 10
    calm, disturbed = (json.loads((w / stage / "manifest.json").read_text())["results"] for w in both)
    assert without_times(calm) == without_times(disturbed)


def test_the_export_is_identical(both):
    calm, disturbed = ((workdir / "sae/export/sae_weights.safetensors").read_bytes() for workdir in both)
    assert calm == disturbed
