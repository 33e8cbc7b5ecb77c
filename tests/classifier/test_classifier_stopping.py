"""Told to stop while it looks at val, the stage stops between two batches; the next start scores val."""

import jax
import numpy as np
import pytest

import jsae.classifier.run as stage
from configs import demo
from jsae.data import cache, identity
from jsae.runtime import checkpoints, logs, mesh, preemption, stages
from jsae.runtime.context import RunContext
from launch.faults import compare_runs

N_VAL, BATCH, EVAL_EVERY, N_STEPS = 64, 16, 3, 6


def make_config():
    config = demo.get_config("small")
    config.classifier.update(
        {
            **{"dims": (4, 4, 4, 8), "batch_size": BATCH, "n_epochs": 2, "warmup_epochs": 0},
            **{"log_every_steps": 1, "eval_every_steps": EVAL_EVERY, "save_every_steps": 2},
            **{"stem_stride": 2, "depths": (0, 0, 0, 1), "calibrate_norms": False},
        }
    )
    return config


@pytest.fixture(scope="module", autouse=True)
def splits():
    rng = np.random.default_rng(0)
    made = {}
    for name, n in (("train", 48), ("val", N_VAL), ("test", 16)):
        images = rng.integers(0, 256, (n, 16, 16, 3), np.uint8)
        ids = tuple(f"{name} {i}" for i in range(n))
        made[name] = cache.Split(name, images, np.arange(n, dtype=np.int32) % 4, ids, ("a", "b", "c", "d"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "splits_of", lambda *_: made)
        one_device = mesh.make_mesh(devices=jax.devices()[:1])  # compiles faster than eight
        patch.setattr(mesh, "make_mesh", lambda *_: one_device)
        yield made


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calm")
    stage.run(make_config(), workdir)
    return workdir


@pytest.mark.parametrize("at_step", [EVAL_EVERY, N_STEPS])
def test_a_stop_while_val_is_looked_at(calm, tmp_path, monkeypatch, at_step):
    config, looked_at, stop = make_config(), [], []
    make_predict = stage.evaluate.make_predict

    def counting(device_mesh):
        predict = make_predict(device_mesh)

        def counted(params, images):
            looked_at.append(len(images))
            if len(looked_at) == 2 + (at_step == N_STEPS) * N_VAL // BATCH:  # the second batch of four
                stop.append(True)
            return predict(params, images)

        return counted

    monkeypatch.setattr(RunContext, "requested_by_any", lambda self: bool(stop))
    with monkeypatch.context() as patched:
        patched.setattr(stage.evaluate, "make_predict", counting)
        with pytest.raises(preemption.Preempted):
            stage.run(config, tmp_path)
    assert len(looked_at) == 2 + (at_step == N_STEPS) * N_VAL // BATCH, "no batch after the signal"
    folder = tmp_path / "classifier"
    saved = checkpoints.Checkpoints(folder / "checkpoints", best=stage.BEST)
    assert saved.latest_step() == at_step, "the work up to the signal is on disk"
    saved.close()
    rows = logs.read_metrics(folder / "metrics.jsonl")
    assert rows[-1]["step"] == at_step and not stage._has_score(folder / "metrics.jsonl", at_step)

    stop.clear()
    stage.run(config, tmp_path)
    assert stages.read_manifest(config, tmp_path, "classifier")["status"] == "complete"
    assert compare_runs.compare(calm / "classifier", folder) == []
    best = []
    for workdir in (calm, tmp_path):
        saved = checkpoints.Checkpoints(workdir / "classifier" / "checkpoints", best=stage.BEST)
        best.append(saved.best_step())
        saved.close()
    assert best[0] == best[1] is not None


def test_0_steps_between_two_is_never_but_the_end_is_logged_scored_and_saved(calm, tmp_path):
    config = make_config()
    config.classifier.update(dict.fromkeys(("log_every_steps", "eval_every_steps", "save_every_steps"), 0))
    stage.run(config, tmp_path)
    rows = logs.read_metrics(tmp_path / "classifier" / stage.METRICS_FILE)
    assert [row["step"] for row in rows] == [N_STEPS, N_STEPS]  # of training and of val
    saved = checkpoints.Checkpoints(tmp_path / "classifier" / "checkpoints")
    assert saved.latest_step() == N_STEPS
    saved.close()
    found, wanted = (stages.manifest_in(w / "classifier")["results"] for w in (tmp_path, calm))
    assert found["test_accuracy"] == wanted["test_accuracy"]


def test_images_on_the_devices_and_several_steps_a_dispatch_change_nothing(calm, tmp_path):
    config = make_config()
    config.classifier.update(image_store="resident", steps_per_dispatch=2)
    stage.run(config, tmp_path)
    assert compare_runs.compare(calm / "classifier", tmp_path / "classifier") == []
    forms = stages.read_manifest(config, tmp_path, "classifier")["forms"]
    assert forms == {"depthwise": "shifted sums over parts of the batch"}
    config.classifier.image_store = "host"
    with pytest.raises(ValueError, match="image_store='host'"):
        stage.check_config(config)
