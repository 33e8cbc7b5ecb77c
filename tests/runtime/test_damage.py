"""Damage is found: in any file of a checkpoint, in an artifact; and the stage it belongs to is open again."""

import gc
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest

from configs import demo
from jsae.runtime import artifacts, checkpoints, digests, mesh, stages


def flipped(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


DAMAGES = {"flipped": flipped, "halved": lambda data: data[: len(data) // 2], "gone": None}


def damage(path, kind):
    if DAMAGES[kind] is None:
        path.unlink()
    else:
        path.write_bytes(DAMAGES[kind](path.read_bytes()))


def state_of(step):
    return {"w": jnp.arange(3000.0) + step, "step": jnp.int32(step)}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A folder with checkpoints 1 and 2, and the abstract state."""
    folder = tmp_path_factory.mktemp("intact")
    whole = mesh.replicated(mesh.make_mesh(devices=jax.devices()[:1]))
    saved = checkpoints.Checkpoints(folder, best="accuracy")
    for step in (1, 2):
        saved.save(step, jax.device_put(state_of(step), whole), {"accuracy": step / 10})
    saved.close()
    return folder, checkpoints.abstract(state_of(0), whole)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore's other futures
@pytest.mark.parametrize("kind", DAMAGES)
def test_whatever_file_of_the_newest_checkpoint_is_damaged_the_state_is_right(intact, kind, tmp_path, caplog):
    folder, abstract = intact
    names = sorted(str(path.relative_to(folder)) for path in folder.glob("2/**/*") if path.is_file())
    fell_back = []
    for number, name in enumerate(names):
        copy = tmp_path / str(number)
        shutil.copytree(folder, copy)
        damage(copy / name, kind)
        saved = checkpoints.Checkpoints(copy, best="accuracy")
        step, state = saved.restore(abstract)
        saved.close()
        np.testing.assert_array_equal(np.asarray(state["w"]), np.arange(3000.0) + step, err_msg=name)
        assert int(state["step"]) == step
        if step == 1:
            fell_back.append(name)
            assert not (copy / "2").exists(), "the damaged one is dropped"
    assert any("/d/" in name for name in fell_back), f"of {names} only {fell_back}"
    gc.collect()  # the futures that tensorstore left behind complain here, where that is expected


def test_a_step_that_was_asked_for_is_not_replaced_by_another(intact, tmp_path):
    folder, abstract = intact
    shutil.copytree(folder, tmp_path / "copy")
    data = max((tmp_path / "copy/2/default").rglob("*"), key=lambda path: path.stat().st_size)
    damage(data, "flipped")
    saved = checkpoints.Checkpoints(tmp_path / "copy", best="accuracy")
    with pytest.raises(digests.Damaged, match=r"copy/2 cannot be read: .*not what was saved") as caught:
        saved.restore(abstract, step=2)
    assert caught.value.path == tmp_path / "copy" / "2" and saved.latest_step() == 2
    saved.close()


def test_one_changed_element_changes_the_digest_and_a_sharding_does_not():
    x = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    whole = np.asarray(digests.of_tree({"x": jnp.asarray(x)}))
    dealt = jax.device_put(x, mesh.sharded(mesh.make_mesh()))
    np.testing.assert_array_equal(np.asarray(digests.of_tree({"x": dealt})), whole)
    for row, column in np.ndindex(8, 6):
        changed = x.copy()
        changed.view(np.uint32)[row, column] ^= 1
        assert digests.differing({"x": jnp.asarray(changed)}, ["x"], whole) == ["x"]
    swapped = x[::-1].copy()
    assert digests.differing({"x": jnp.asarray(swapped)}, ["x"], whole) == ["x"]
    small = {"b": jnp.array([True, False]), "h": jnp.ones(3, jnp.bfloat16), "i": jnp.int8(4)}
    assert digests.differing(small, small, digests.of_tree(small)) == []


def write_all(folder):
    artifacts.write_array(folder / "a.npy", np.arange(100))
    artifacts.write_json(folder / "a.json", {"a": 12345}, checked=True)
    artifacts.write_table(folder / "a.parquet", pa.table({"a": range(100)}), {})
    artifacts.write_bytes(folder / "a.bin", b"0123456789", checked=True)


READ = {
    "a.npy": [artifacts.read_array, lambda path: artifacts.read_array(path, mmap=True)],
    "a.json": [artifacts.read_json],
    "a.parquet": [artifacts.read_table],
    "a.bin": [artifacts.read_bytes],
}


@pytest.mark.parametrize("kind", ["flipped", "halved"])
@pytest.mark.parametrize("name", READ)
def test_a_changed_artifact_is_named(name, kind, tmp_path):
    write_all(tmp_path)
    for read in READ[name]:
        read(tmp_path / name)
    damage(tmp_path / name, kind)
    for read in READ[name]:
        with pytest.raises(digests.Damaged, match=rf"{name} is damaged") as caught:
            read(tmp_path / name)
        assert caught.value.path == tmp_path / name
    write_all(tmp_path)  # made again, it can be read
    for read in READ[name]:
        read(tmp_path / name)


def test_killed_between_checksum_and_file_the_old_file_can_be_read(tmp_path, monkeypatch):
    path = tmp_path / "a.bin"
    artifacts.write_bytes(path, b"old", checked=True)

    replace = os.replace

    def killed(source, target):
        if str(target).endswith("a.bin"):
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        artifacts.write_bytes(path, b"new", checked=True)
    assert artifacts.read_bytes(path) == b"old"
    assert len(list(tmp_path.iterdir())) == 3  # the file, the checksums, and what the kill left
    artifacts.drop_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.bin", "checksums.json"]


def test_a_damaged_list_of_checksums_is_named(tmp_path):
    write_all(tmp_path)
    (tmp_path / artifacts.CHECKSUMS).write_text("{")
    with pytest.raises(digests.Damaged, match=r"checksums.json, the folder's checksums, is damaged"):
        artifacts.read_bytes(tmp_path / "a.bin")


@pytest.mark.parametrize("index", [0, 1])
def test_a_file_that_is_gone_opens_its_stage_whichever_process_misses_it(tmp_path, monkeypatch, index):
    config = demo.get_config("small")
    for name in ("classifier", "activations"):
        stages.begin(config, tmp_path, name).finish({})
    shard = tmp_path / "activations/train/shard-00000.npy"
    artifacts.write_array(shard, np.zeros(3))
    shard.unlink()
    with pytest.raises(digests.Damaged, match=r"shard-00000.npy is gone, although it was written") as caught:
        artifacts.read_array(shard, mmap=True)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    for _ in range(2):  # and both of them
        assert stages.reopen(tmp_path, caught.value.path) == "activations"
    assert stages.manifest_in(tmp_path / "activations")["status"] == "started"


def test_a_stage_with_a_damaged_file_is_open_again_and_no_other(tmp_path):
    config = demo.get_config("small")
    for name in ("classifier", "activations", "sae"):
        stages.begin(config, tmp_path, name).finish({})
    shard = tmp_path / "activations/train/shard-00000.npy"
    artifacts.write_array(shard, np.zeros(3))
    assert stages.reopen(tmp_path, shard) == "activations"
    assert not shard.exists(), "what is damaged is made again"
    status = {name: stages.manifest_in(tmp_path / name)["status"] for name in stages.STAGES[:3]}
    assert status == {"classifier": "complete", "activations": "started", "sae": "complete"}
    stages.begin(config, tmp_path, "activations").finish({})
    assert stages.begin(config, tmp_path, "sae").up_to_date, "the same activations: nothing below changes"
    assert stages.reopen(tmp_path, tmp_path / "elsewhere/x.npy") is None
    (tmp_path / "classifier/checkpoints/3").mkdir(parents=True)
    assert stages.reopen(tmp_path, tmp_path / "classifier/checkpoints/3") == "classifier"
    assert (tmp_path / "classifier/checkpoints/3").exists(), "the stage itself falls back to the one before"
