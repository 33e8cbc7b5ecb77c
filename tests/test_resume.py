"""Both training stages are killed in mid-loop and started again; nothing may differ.

The disturbed run is killed twice, once in each training stage, at a step that is no multiple of the save
interval, and compared bit for bit with a run that was left alone.
"""

import json

import jax
import numpy as np
import pytest

from jsae.activations import ActivationStore
from jsae.runtime import checkpoints
from launch.faults import runs

SETTINGS = [
    "--config=configs/demo.py:small",
    "--config.data.image_size=48",
    "--config.data.n_train=192",
    "--config.data.n_val=32",
    "--config.data.n_test=32",
    "--config.classifier.dims=(8,8,16,32)",
    "--config.classifier.n_epochs=6",
    "--config.classifier.warmup_epochs=1",
    "--config.classifier.batch_size=32",
    "--config.classifier.log_every_steps=1",
    "--config.classifier.eval_every_steps=15",
    "--config.classifier.save_every_steps=7",
    "--config.sae.n_features=128",
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
        found.append({k: v for k, v in row.items() if not k.endswith(("_s", "_per_s"))})
    return found


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
    calm, disturbed = tmp_path_factory.mktemp("calm"), tmp_path_factory.mktemp("disturbed")
    for workdir in (calm, disturbed):
        for stage in SCRIPTS:
            if workdir == disturbed and stage in KILL_AT:
                kill_in_loop(start, workdir / stage)
            done = start(workdir, stage)
            assert done.code == 0, done.lines[-9:]
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


def test_another_config_is_refused_by_name_before_anything_is_done(both, start):
    done = start(both[0], "sae", "--config.sae.topk.k=9")
    assert done.code == 1 and not done.says("up to date")
    assert json.loads((both[0] / "config.json").read_text())["sae"]["topk"]["k"] == 16
    assert done.says("config.sae.topk.k: 16 there, 9 now") and done.says("--restart=sae"), done.lines
