"""The report stage end to end on a made-up workdir with a real activation store."""

import json
import pathlib
import types

import ml_collections
import numpy as np
import pytest

from jsae.activations import ActivationStore
from jsae.report import run as report_run
from jsae.runtime import artifacts, stages
from jsae.study import Study
from tests.report import fake_study, fake_world


@pytest.fixture
def study(tmp_path, monkeypatch):
    """(config, workdir); images and SAE are stand-ins, the rest lies on disk."""
    workdir = fake_study.make_workdir(tmp_path)
    n, classes = fake_world.N_IMAGES, len(fake_world.CLASSES)
    store = workdir / "activations" / "test"
    artifacts.write_array(store / "shard-00000.npy", fake_world.read_acts(0, n))
    artifacts.write_array(store / "labels.npy", fake_world.LABELS.astype(np.int32))
    artifacts.write_array(store / "logits.npy", np.eye(classes, dtype=np.float32)[fake_world.LABELS])
    artifacts.write_json(store / "image_ids.json", [f"{i:07d}" for i in range(n)])
    manifest = {"site": "stage4", "grid": fake_world.GRID, "n_channels": 8, "n_images": n, "shards": [n]}
    manifest |= {"dtype": "float32", "mean": [0.0] * 8, "scale": 1.0, "class_names": fake_world.CLASSES}
    artifacts.write_json(store / "manifest.json", manifest)
    split = types.SimpleNamespace(
        images=fake_world.images(), labels=fake_world.LABELS, class_names=fake_world.CLASSES, skipped=()
    )

    class StandIn(Study):
        data, sae, params = {"test": split}, fake_world.SAE, None

        def activations(self, split):
            return ActivationStore.open(self.workdir / "activations" / split)

    monkeypatch.setattr(report_run, "Study", StandIn)
    monkeypatch.setattr(report_run, "LogitsFromActs", lambda params, site: fake_world.HEAD)
    config = ml_collections.ConfigDict(fake_study.CONFIG)
    config.runtime = {"deterministic": False, "data_axis": -1, "model_axis": 1}
    return config, workdir


def written(workdir) -> dict[str, bytes]:
    """All files of the report but its manifest."""
    folder = pathlib.Path(workdir) / "report"
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_run_writes_pages_and_summary_and_drops_pages_of_an_earlier_report(study):
    config, workdir = study
    report_run.run(config, workdir)
    pages = {path.name for path in (workdir / "report" / "features").iterdir()}
    assert len(pages) == 12
    first = written(workdir)
    assert len(first) > 60 and "images.html" in first
    page = (workdir / "report" / "features" / "feature-0.html").read_text()
    assert page.count('<canvas class="heat"') == 16
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["seconds"]["report"] is not None
    assert stages.results(config, workdir, "report") == {"n_feature_pages": 12}

    (workdir / "report" / "images-9.html").write_text("left over")
    report_run.run(config, workdir)  # made again; its own seconds are in the manifest only
    assert written(workdir) == first
    config.report.n_features = 3
    report_run.run(config, workdir)
    assert len(list((workdir / "report" / "features").iterdir())) == 3


def test_run_without_the_stage_above_says_which_command_makes_it(study):
    config, workdir = study
    (workdir / "ablation" / "manifest.json").unlink()
    with pytest.raises(stages.StageMissing, match=r"launch\.ablate"):
        report_run.run(config, workdir)
