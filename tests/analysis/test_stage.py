"""The stage on a workdir: its files, its results, and what it says of a bad setting."""

import functools
import json

import numpy as np
import pytest
from ml_collections import ConfigDict

from jsae.activations import store as stores
from jsae.analysis import run
from jsae.runtime import artifacts, stages
from tests.analysis import toy


@pytest.fixture
def study(tmp_path, monkeypatch):
    """(config, workdir) whose stages above analysis are complete; the SAE is a toy."""
    config = ConfigDict({"seed": 0, "classifier": {"workdir": ""}})
    config.analysis = {"n_top": 16, "batch_size": 16, "n_permutations": 5, "embedding_workdir": ""}
    config.analysis.pixel_maps = {"n_features": 4, "n_patches": 2, "method": "occlusion"}
    config.runtime = {"data_axis": -1, "model_axis": 1}
    stages.begin(config, tmp_path, "classifier").finish({})
    stage = stages.begin(config, tmp_path, "activations")
    for seed, name in enumerate(("train", "val", "test")):
        split, folder = toy.store(seed, n=50), stage.folder / name
        for i, rows in enumerate((slice(0, 30), slice(30, 50))):
            artifacts.write_array(folder / stores.shard_name(i), split.acts[rows])
        artifacts.write_array(folder / "labels.npy", split.labels)
        artifacts.write_array(folder / "logits.npy", np.eye(4, dtype=np.float32)[split.predictions])
        artifacts.write_json(folder / "image_ids.json", split.image_ids)
        manifest = {"grid": [3, 2], "n_channels": 5, "n_images": 50, "dtype": "float32", "shards": [30, 20]}
        artifacts.write_json(folder / "manifest.json", manifest | {"class_names": split.class_names})
    stage.finish({})
    stages.begin(config, tmp_path, "sae").finish({})
    monkeypatch.setattr("jsae.sae.load", lambda folder, mesh=None: toy.sae())
    monkeypatch.setattr(run.images, "tables_of", lambda *_, **__: ({"parts": None}, {}))
    return config, tmp_path


def test_the_stage_writes_both_tables_and_is_then_up_to_date(study, monkeypatch):
    config, workdir = study
    run.run(config, workdir)
    folder = stages.folder(config, workdir, "analysis")
    rows, patches = (artifacts.read_table(folder / f"{name}.parquet") for name in ("features", "top_patches"))
    toys = toy.Study(toy.sae(), {"train": toy.store(0, n=50), "test": toy.store(2, n=50)})
    over = functools.partial(toys.run_pass, batch_size=50)
    expected = run.analyze(toys, over, n_top=16, n_permutations=5, seed=0)
    assert stages.results(config, workdir, "analysis") == expected.results | {"parts": None}
    assert rows["n_active_images"].to_pylist() == expected.features["n_active_images"].to_pylist()
    assert patches["image"].to_pylist() == expected.patches["image"].to_pylist()
    assert patches["prediction_name"].to_pylist() == expected.patches["prediction_name"].to_pylist()
    kept = json.loads(rows.schema.metadata[artifacts.MANIFEST_KEY])
    assert kept["digest"] == stages.read_manifest(config, workdir, "analysis")["digest"]
    monkeypatch.setattr(run, "analyze", None)  # would raise if it were called
    run.run(config, workdir)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("n_top", 15, "n_top=15 must be at least 16"),
        ("n_permutations", 0, "n_permutations=0"),
        ("embedding_workdir", "nowhere", "embedding_workdir='nowhere' has no finished classifier"),
        ("batch_size", 12, "config.analysis.batch_size=12 must be a positive multiple"),
    ],
)
def test_a_bad_setting_is_named(study, key, value, message):
    config, workdir = study
    config.analysis[key] = value
    with pytest.raises(ValueError, match=message):
        run.run(config, workdir)
    assert stages.read_manifest(config, workdir, "analysis") is None  # the setting can be put right
