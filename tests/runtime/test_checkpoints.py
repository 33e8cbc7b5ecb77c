"""Checkpoints: latest and best are kept, a damaged newest one is survived, nothing is dropped in vain."""

import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.runtime import attempts, checkpoints, mesh, stages
from jsae.runtime.context import RunContext


def state_of(step, device_mesh):
    put = jax.jit(lambda: {"w": jnp.full((8, 2), step, jnp.float32), "step": jnp.int32(step)})
    return jax.device_put(put(), mesh.replicated(device_mesh))


@pytest.fixture
def device_mesh():
    return mesh.make_mesh()


def abstract(device_mesh):
    return checkpoints.abstract(state_of(0, device_mesh), mesh.replicated(device_mesh))


def test_latest_and_best_are_kept(tmp_path, device_mesh):
    saved = checkpoints.Checkpoints(tmp_path, keep=2, best="accuracy")
    for step, accuracy in ((1, 0.5), (2, 0.9), (3, 0.1), (4, 0.2), (5, 0.3)):
        saved.save(step, state_of(step, device_mesh), {"accuracy": accuracy})
    saved.wait()
    assert saved.latest_step() == 5 and saved.best_step() == 2
    step, best = saved.restore(abstract(device_mesh), step=2)
    assert step == 2 and np.all(np.asarray(best["w"]) == 2)
    saved.close()


def test_saving_a_saved_step_again_does_nothing(tmp_path, device_mesh):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, state_of(1, device_mesh))
    saved.save(1, state_of(9, device_mesh))
    assert np.all(np.asarray(saved.restore(abstract(device_mesh))[1]["w"]) == 1)
    saved.close()


def test_metrics_found_later_are_added_and_no_file_of_the_state_is_touched(tmp_path, device_mesh):
    saved = checkpoints.Checkpoints(tmp_path, keep=1, best="accuracy")
    saved.save(1, state_of(1, device_mesh))
    saved.wait()

    def files():
        return {path: path.stat().st_ino for path in (tmp_path / "1" / "default").rglob("*")}

    before = files()
    saved.save(1, state_of(9, device_mesh), {"accuracy": 0.5})
    assert len(before) > 3 and files() == before
    saved.save(2, state_of(2, device_mesh), {"accuracy": 0.1})
    saved.close()
    again = checkpoints.Checkpoints(tmp_path, keep=1, best="accuracy")
    assert again.best_step() == 1 and again.latest_step() == 2
    assert np.all(np.asarray(again.restore(abstract(device_mesh), step=1)[1]["w"]) == 1)
    again.close()


def test_saved_on_eight_devices_restored_on_two_in_the_targets_sharding(tmp_path, device_mesh):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, jax.device_put(state_of(3, device_mesh)["w"], mesh.sharded(device_mesh)))
    saved.wait()
    two = mesh.sharded(mesh.make_mesh(devices=jax.devices()[:2]))
    _, w = saved.restore(jax.ShapeDtypeStruct((8, 2), jnp.float32, sharding=two))
    assert w.sharding == two and np.all(np.asarray(w) == 3)
    saved.close()


def test_the_stage_hears_of_every_save_and_of_what_it_goes_on_from(tmp_path, device_mesh):
    points = []
    config = {"seed": 0, "data": {}, "classifier": {}}

    def begin():
        stage = stages.begin(config, tmp_path, "classifier", RunContext(failpoint=points.append))
        return stage, checkpoints.Checkpoints(stage.folder / "checkpoints", stage=stage)

    _, saved = begin()
    saved.save(1, state_of(1, device_mesh))
    assert points == ["begin/classifier", "save/1"], "it may not be on disk yet"
    saved.close()
    _, again = begin()
    assert again.restore(abstract(device_mesh))[0] == 1
    again.close()
    assert points == ["begin/classifier", "save/1", "saved/1", "begin/classifier"]
    first, _ = json.loads((tmp_path / "classifier" / attempts.FILE).read_text())
    assert first["kept_s"] == first["saves"]["1"] > 0


def damage(folder):
    files = [p for p in (folder / "default").rglob("*") if p.is_file()]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


def test_a_damaged_newest_checkpoint_is_dropped_with_a_warning(tmp_path, device_mesh, caplog):
    saved = checkpoints.Checkpoints(tmp_path, keep=3)
    for step in (1, 2, 3):
        saved.save(step, state_of(step, device_mesh))
    saved.close()
    damage(tmp_path / "3")
    again = checkpoints.Checkpoints(tmp_path, keep=3)
    logging.getLogger("jsae").propagate = True
    step, state = again.restore(abstract(device_mesh))
    assert step == 2 and np.all(np.asarray(state["w"]) == 2)
    assert f"{tmp_path / '3'} cannot be read" in caplog.text
    again.save(3, state_of(3, device_mesh))  # the step can be saved again
    assert again.restore(abstract(device_mesh))[0] == 3
    again.close()


def test_where_none_can_be_read_nothing_is_touched(tmp_path, device_mesh):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, state_of(1, device_mesh))
    saved.wait()
    wrong = {"w": jax.ShapeDtypeStruct((4, 4), jnp.float32, sharding=mesh.replicated(device_mesh))}
    with pytest.raises(RuntimeError, match="no checkpoint can be read"):
        saved.restore(wrong)
    with pytest.raises(RuntimeError, match="holds no v"):
        saved.restore({"v": wrong["w"]})
    assert saved.latest_step() == 1
    saved.close()
