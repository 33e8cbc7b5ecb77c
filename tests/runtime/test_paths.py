"""Every form of path that a shell, a notebook or a sweep produces."""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jsae
from configs import demo
from jsae.data import cache
from jsae.runtime import artifacts, checkpoints, paths, stages, workdirs

HERE = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
NAMES = ["a", "a b", "a#b", "100%20d", "k=16", "ä–", "a'b\"c", "-x", "~x"]


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("runs/x", "{here}/runs/x"),
        ("./runs/../runs/x/", "{here}/runs/x"),
        ("~/x", "{home}/x"),
        ("~", "{home}"),
        (".", "{here}"),
        ("//a//b/", "/a/b"),
        (pathlib.Path("x"), "{here}/x"),
        ("gs://bucket/x/", "gs://bucket/x"),
        ("/", "/"),
    ],
)
def test_a_path_is_absolute_whatever_was_typed(tmp_path, monkeypatch, typed, meant):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/some/home")
    assert paths.absolute(typed) == meant.format(here=tmp_path, home="/some/home")
    assert paths.absolute(paths.absolute(typed)) == paths.absolute(typed)
    assert os.fspath(paths.resolve(typed)) == paths.absolute(typed)


@pytest.mark.parametrize("cloud", ["gs", "s3", "az", "hf"])
def test_a_local_folder_that_is_called_like_a_cloud_is_local(cloud):
    path = paths.resolve(f"/{cloud}/bucket")
    assert not paths.is_remote(path) and os.path.realpath(path) == f"/{cloud}/bucket"
    assert not paths.is_remote(path / "x") and paths.same(path, f"/{cloud}/bucket/")


def test_an_empty_path_is_refused():
    with pytest.raises(ValueError, match="the path is empty"):
        paths.absolute("")


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_is_found_again_under_a_relative_path(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    state = {"a": jnp.arange(4.0)}
    saved = checkpoints.Checkpoints(f"{name}/checkpoints/")
    saved.save(1, state)
    saved.close()
    again = checkpoints.Checkpoints(paths.absolute(f"{name}/checkpoints"))
    step, found = again.restore(checkpoints.abstract(state, HERE))
    again.close()
    assert step == 1 and np.array_equal(found["a"], state["a"])


@pytest.mark.parametrize("name", ["[k=16]", "a*", "what?"])
def test_a_workdir_whose_checkpoints_could_not_be_found_again_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match=r"--workdir=.* cannot be part of a workdir's path"):
        paths.workdir(tmp_path / name / "x")
    assert not (tmp_path / name).exists()


def test_the_paths_of_a_config_are_made_absolute_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = demo.get_config()
    config.data.dir, config.report.twin = "photos/", "~/other"
    paths.of_config(config)
    assert config.data.dir == f"{tmp_path}/photos"
    assert config.report.twin == os.path.expanduser("~/other") and config.data.cache_dir == ""
    config.data.dir = "download"
    paths.of_config(config)
    assert config.data.dir == "download"


def test_every_key_of_the_config_that_holds_a_path_is_known():
    """The config says which ones these are: empty texts with a comment, and no others."""
    config = demo.get_config().to_dict()
    texts = {
        f"{section}.{name}"
        for section, values in config.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if value == ""
    }
    assert texts - {"sae.frozen", "data.tied"} == set(paths.KEYS)


def test_a_workdir_on_a_link_is_one_workdir(tmp_path):
    config = demo.get_config("small")
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    config.classifier.workdir = str(tmp_path / "real")
    assert not stages.is_external(config, tmp_path / "link", "classifier")
    assert stages.is_external(config, tmp_path / "other", "classifier")


def test_a_study_stays_open_after_a_change_of_folder(study_dir, monkeypatch, tmp_path):
    monkeypatch.chdir(study_dir.parent)
    study = jsae.load(study_dir.name + "/")
    monkeypatch.chdir(tmp_path)
    assert study.summary["sae"]["n_features"] == study.sae.n_features
    assert len(study.table("features")) == study.sae.n_features


def test_a_cache_folder_may_be_called_anything(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    splits = cache.load_splits(
        kind="synthetic_aircraft", n_train=16, n_val=16, n_test=16, image_size=32, cache_dir="~/c [x]*#%20d/"
    )
    assert splits["train"].images.shape == (16, 32, 32, 3) and (tmp_path / "c [x]*#%20d").is_dir()


def test_a_lock_and_a_config_lie_where_the_workdir_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = demo.get_config("small")
    workdir = paths.workdir("runs/a b/")
    workdirs.lock(workdir).close()
    workdirs.write_config(config, workdir)
    assert artifacts.read_json(tmp_path / "runs/a b/config.json")["seed"] == 0
