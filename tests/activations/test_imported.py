"""Activations from a file: the store holds their rows; SAE, analysis, report and load need no classifier."""

import json
import os

import numpy as np
import pytest
from etils import epath

import jsae
from configs import arrays as config_file
from jsae.activations import ActivationStore
from jsae.activations import run as extraction
from jsae.analysis import run as analysis
from jsae.report import run as report
from jsae.runtime import artifacts, preemption, stages, workdirs
from jsae.runtime.context import RunContext
from jsae.sae import run as sae

N = 60


def make_config(path):
    config = config_file.get_config()
    config.data.dir = str(path)
    config.activations.images_per_shard = 16
    config.sae.update(n_features=64, batch_size=512, n_epochs=2.0, save_every_steps=0, eval_every_steps=0)
    config.sae.topk.k = 4
    config.analysis.n_permutations = 3
    config.report.n_features = 4
    return config


def resnet_like(seed=0, channels=2048):
    """float32 [N,7,7,channels], >= 0, as behind a ReLU; each class has a channel of its own."""
    rng = np.random.default_rng(seed)
    x = np.maximum(rng.normal(size=(N, 7, 7, channels)).astype(np.float32) - 1, 0)
    labels = np.arange(N) % 3
    x[np.arange(N), :, :, labels] += 3.0
    return x, labels


def run_all(config, workdir):
    workdirs.write_config(config, workdir)
    for stage in (extraction, sae, analysis, report):
        stage.run(config, workdir)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(config, workdir, activations, labels); the activations have the shape of those of ResNet-50."""
    folder = tmp_path_factory.mktemp("resnet")
    x, labels = resnet_like()
    names = np.array(["<b>A</b>", "B/2", "Ç"])
    np.savez(folder / "set.npz", activations=x, labels=labels, class_names=names)
    config = make_config(folder / "set.npz")
    run_all(config, epath.Path(folder) / "study")
    return config, epath.Path(folder) / "study", x, labels


def test_the_store_holds_the_rows_of_the_file(study):
    _, workdir, x, labels = study
    seen = []
    for name in ("train", "val", "test"):
        store = ActivationStore.open(workdir / "activations" / name)
        rows = [int(id_) for id_ in store.image_ids]
        np.testing.assert_array_equal(store.read(0, store.n_images), x[rows])
        np.testing.assert_array_equal(store.labels, labels[rows])
        assert rows == sorted(rows) and store.grid == (7, 7) and store.site == "arrays"
        assert store.class_names == ["<b>A</b>", "B/2", "Ç"]
        assert store.logits is None and set(store.predictions.tolist()) == {-1}
        assert max(store.manifest["shards"]) <= 16
        seen += rows
    assert sorted(seen) == list(range(N))
    train = ActivationStore.open(workdir / "activations" / "train")
    vectors = train.read(0, train.n_images).reshape(-1, 2048).astype(np.float64)
    np.testing.assert_allclose(train.mean, vectors.mean(0), rtol=1e-6)  # a float32 of it


def test_summary_tables_and_report_do_without_a_classifier(study):
    config, workdir, _, labels = study
    summary = json.loads((workdir / "summary.json").read_text())
    assert set(summary["classifier"].values()) == {None}
    assert summary["seconds"]["classifier"] is None and summary["seconds"]["ablation"] is None
    assert set(summary["ablation"]["feature_space"].values()) == {None}
    assert summary["sae"]["accuracy_recovered"] is None and summary["sae"]["fvu"] < 1
    assert summary["sae"]["n_channels"] == 2048
    patches = artifacts.read_table(workdir / "analysis/top_patches.parquet").to_pylist()
    assert {row["prediction"] for row in patches} == {row["prediction_name"] for row in patches} == {None}
    assert all(labels[int(row["image_id"])] == row["label"] for row in patches)
    page = (workdir / "report" / "index.html").read_text()
    assert "What the features of these activations see" in page and "There is no classifier here" in page
    assert "&lt;b&gt;A&lt;/b&gt;" in "".join(p.read_text() for p in (workdir / "report/features").iterdir())
    assert not (workdir / "report" / "images").exists()
    for stage in (extraction, sae, analysis):
        stage.run(config, workdir)
        assert stages.read_manifest(config, workdir, "activations")["status"] == "complete"


def test_load_gives_sae_activations_and_tables_and_says_that_there_is_no_classifier(study):
    _, workdir, x, _ = study
    loaded = jsae.load(workdir)
    store = loaded.activations("test")
    feats = np.asarray(loaded.sae.encode(store.read(0, 2)))
    assert feats.shape == (2, 7, 7, 64) and loaded.site == "arrays"
    assert len(loaded.table("features")) == 64
    with pytest.raises(stages.StageMissing, match=r"of bare activations, .*set\.npz: it has no classifier"):
        _ = loaded.classifier
    with pytest.raises(stages.StageMissing, match="no stage 'ablation'"):
        loaded.table("feature_space")
    with pytest.raises(stages.StageMissing, match=r"it has no images; study\.activations"):
        _ = loaded.data
    edit = loaded.suppress([1])  # an edit is a function of activations: no classifier is needed
    assert np.asarray(edit(x[:2])).shape == (2, 7, 7, 2048)


def test_vectors_without_labels_are_one_class_without_a_name(tmp_path):
    np.save(tmp_path / "vectors.npy", resnet_like(channels=32)[0][:, 0, 0])
    config, workdir = make_config(tmp_path / "vectors.npy"), epath.Path(tmp_path) / "study"
    config.activations.dtype = "bfloat16"
    run_all(config, workdir)
    store = ActivationStore.open(workdir / "activations" / "train")
    assert store.grid == (1, 1) and store.n_channels == 32 and set(store.labels.tolist()) == {-1}
    rows = artifacts.read_table(workdir / "analysis/features.parquet").to_pydict()
    for name in ("top_class", "purity16", "selectivity", "label_entropy", "auroc", "polysemanticity"):
        assert set(rows[name]) == {None}, name
    assert any(rows["alive"]) and not any(rows["class_selective"])
    page = (workdir / "report" / "index.html").read_text()
    assert (
        "1 classes" not in page and "no label" not in page and "nan" not in page.lower().replace("finan", "")
    )
    pages = [path.read_text() for path in (workdir / "report" / "features").iterdir()]
    assert all("No classes are known for these activations." in page for page in pages)


@pytest.mark.parametrize(("value", "text"), [(np.nan, "nan"), (np.inf, "inf"), (1e300, "1e\\+300")])
def test_a_number_that_is_not_finite_is_named_with_its_row(tmp_path, value, text):
    x = resnet_like(channels=8)[0].astype(np.float64)
    x[41, 2, 3, 5] = value
    np.save(tmp_path / "x.npy", x)
    message = rf"x\.npy: activations\[41\] \(id '000041'\) is {text} at y=2, x=3, channel 5"
    with pytest.raises(ValueError, match=message):
        extraction.run(make_config(tmp_path / "x.npy"), epath.Path(tmp_path) / "study")


def test_an_import_that_was_stopped_goes_on_with_the_shards_that_are_missing(tmp_path, monkeypatch):
    x = resnet_like(channels=8)[0]
    np.save(tmp_path / "x.npy", x)
    config, workdir = make_config(tmp_path / "x.npy"), epath.Path(tmp_path) / "study"
    calls = []

    def stop_at_second(context):
        calls.append(0)
        if len(calls) == 2:
            raise preemption.Preempted

    with monkeypatch.context() as patch:
        patch.setattr(RunContext, "check_here", stop_at_second)
        with pytest.raises(preemption.Preempted):
            extraction.run(config, workdir)
    first = workdir / "activations" / "train" / "shard-00000.npy"
    assert [path.name for path in first.parent.glob("*.npy")] == [first.name]
    written = os.stat(first).st_mtime_ns
    extraction.run(config, workdir)
    assert os.stat(first).st_mtime_ns == written
    train = ActivationStore.open(workdir / "activations" / "train")
    np.testing.assert_array_equal(train.read(0, train.n_images), x[[int(i) for i in train.image_ids]])


def test_trainval_joins_train_and_val(tmp_path):
    np.save(tmp_path / "x.npy", resnet_like(channels=8)[0])
    config = make_config(tmp_path / "x.npy")
    extraction.run(config, epath.Path(tmp_path) / "a")
    config.data.train_split = "trainval"
    extraction.run(config, epath.Path(tmp_path) / "b")

    def ids(study, split):
        return ActivationStore.open(epath.Path(tmp_path) / study / "activations" / split).image_ids

    assert ids("b", "train") == sorted(ids("a", "train") + ids("a", "val")) and ids("b", "val") == ids(
        "a", "val"
    )


def test_channels_first_are_stored_channels_last(tmp_path):
    x = resnet_like(channels=8)[0][:, :5]
    np.savez(tmp_path / "x.npz", activations=np.moveaxis(x, -1, 1), layout=np.array("NCHW"))
    config, workdir = make_config(tmp_path / "x.npz"), epath.Path(tmp_path) / "study"
    extraction.run(config, workdir)
    train = ActivationStore.open(workdir / "activations" / "train")
    assert train.grid == (5, 7)
    rows = [int(i) for i in train.image_ids]
    np.testing.assert_array_equal(train.read(0, train.n_images), x[rows])


def test_site_and_data_that_do_not_fit_are_named(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((9, 4, 4, 3), np.uint8), labels=np.arange(9) % 3)
    config = make_config(tmp_path / "x.npz")
    with pytest.raises(ValueError, match=r"holds images: .* set config.activations.site=stage4"):
        extraction.run(config, epath.Path(tmp_path) / "a")
    config.data.kind = "image_folder"
    with pytest.raises(ValueError, match=r"site=arrays needs data.kind=arrays, not 'image_folder'"):
        extraction.run(config, epath.Path(tmp_path) / "b")
