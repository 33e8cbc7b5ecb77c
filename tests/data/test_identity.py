"""A study is of its data, not of their place: the same go on elsewhere, others are refused by number."""

import json
import pathlib
import shutil

import numpy as np
import pytest

import jsae
from configs import arrays as arrays_config
from configs import demo
from jsae.data import arrays, identity
from jsae.runtime import contents, stages, workdirs
from tests.data.fgvc_folder import jpeg


@pytest.fixture
def config(tmp_path, make_fgvc):
    config = demo.get_config("small")
    config.data.update(
        kind="fgvc_aircraft", dir=str(make_fgvc()), image_size=8, cache_dir=str(tmp_path / "c")
    )
    return config


@pytest.fixture
def workdir(config, tmp_path):
    """A workdir whose classifier stage has begun with the photos of `config`."""
    identity.splits_of(config, tmp_path / "w", stages.begin(config, tmp_path / "w", "classifier"))
    return tmp_path / "w"


def read(config, workdir):
    return identity.splits_of(config, workdir)


def test_the_same_photos_elsewhere_are_the_same_data(config, workdir, tmp_path):
    before = stages.begin(config, workdir, "classifier")
    shutil.copytree(config.data.dir, tmp_path / "moved", copy_function=shutil.copy)  # with other times
    shutil.rmtree(config.data.dir)
    config.data.dir = f"{tmp_path}/moved/"
    after = stages.begin(config, workdir, "classifier")
    assert read(config, workdir)["train"].ids and not after.up_to_date
    assert after.digest == before.digest


def test_a_study_is_opened_where_its_photos_lie_elsewhere(config, workdir, tmp_path):
    workdirs.write_config(config, workdir)
    for name in ("classifier", "activations", "sae"):
        stages.begin(config, workdir, name).finish({})
    shutil.move(config.data.dir, tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"config.data.dir=.* does not exist"):
        _ = jsae.load(workdir).data
    assert jsae.load(workdir, data_dir=tmp_path / "moved").data["test"].ids


def images(config) -> pathlib.Path:
    return pathlib.Path(config.data.dir) / "data" / "images"


def lists(config, split: str) -> list[pathlib.Path]:
    return list((pathlib.Path(config.data.dir) / "data").glob(f"images*_{split}.txt"))


def exchange(config):
    path = sorted(images(config).iterdir())[0]
    path.write_bytes(jpeg(99))
    return "1 exchanged for others", path.stem


def remove(config):
    line = lists(config, "test")[0].read_text().splitlines()[0].split()[0]
    for path in lists(config, "test"):
        path.write_text("".join(x for x in path.read_text().splitlines(True) if not x.startswith(line)))
    return "1 removed", line


def relabel(config):
    for path in lists(config, "train"):  # the first image gets the last one's class, at every level
        rows = [line.split(" ", 1) for line in path.read_text().splitlines()]
        if len(rows[0]) == 2:
            rows[0][1] = rows[-1][1]
            path.write_text("".join(f"{id_} {name}\n" for id_, name in rows))
    return "1 relabelled", rows[0][0]


@pytest.mark.parametrize("change", [exchange, remove, relabel])
def test_other_photos_in_the_same_place_are_refused_by_number_and_name(config, workdir, change):
    words = change(config)
    (workdir / "classifier/checkpoints/1").mkdir(parents=True)
    for stage in (
        None,
        stages.begin(config, workdir, "classifier"),
    ):  # later stages, and the resumed first one
        with pytest.raises(identity.DataChanged) as caught:
            identity.splits_of(config, workdir, stage)
        for word in (*words, "of 18 images", "--restart=classifier", "config.data.dir", str(workdir)):
            assert word in str(caught.value)


def test_added_and_moved_photos_are_counted():
    def data(**splits):
        return {"class_names": ["a", "b"]} | {
            name: {"ids": ids, "labels": [0] * len(ids), "contents": ids} for name, ids in splits.items()
        }

    then = data(train=["1", "2"], val=["3"], test=["4"])
    assert identity.compare(then, then) == ""
    now = data(train=["1", "2", "4"], val=["3"], test=["5"])
    assert identity.compare(then, now) == "of 4 images 1 added (5), 1 moved to another split (4)"
    turned = data(train=["2", "1"], val=["3"], test=["4"])
    assert identity.compare(then, turned) == "the rows of train lie in another order"
    renamed = then | {"class_names": ["a", "c"]}
    assert identity.compare(then, renamed) == "the classes were a, b and are a, c"
    both = data(train=["1", "2", "3"], val=["3"], test=["4"])  # trainval
    assert identity.compare(both, both) == ""


def test_a_study_that_was_refused_before_it_made_anything_takes_other_photos(config, workdir):
    exchange(config)
    config.classifier.batch_size = 3
    stage = stages.begin(config, workdir, "classifier")
    identity.splits_of(config, workdir, stage)
    assert stages.manifest_in(workdir / "classifier")["data"] == stage.manifest["data"]


def test_the_classifier_of_another_study_brings_its_data(config, workdir, tmp_path):
    config.classifier.workdir = str(workdir)
    read(config, tmp_path / "second")
    exchange(config)
    with pytest.raises(identity.DataChanged, match=f"are not those that {workdir} was made on"):
        read(config, tmp_path / "second")


def test_a_classifier_made_anew_from_other_photos_is_another_one(config, workdir):
    before = stages.manifest_in(workdir / "classifier")["digest"]
    stages.restart(config, workdir, "classifier")
    exchange(config)
    stage = stages.begin(config, workdir, "classifier")
    identity.splits_of(config, workdir, stage)
    assert stage.digest != before


def test_bare_activations_are_known_by_their_rows(tmp_path):
    config = arrays_config.get_config()
    rng = np.random.default_rng(0)
    acts, labels = rng.normal(size=(40, 2, 2, 4)).astype(np.float32), np.arange(40) % 2

    def begin(folder):
        config.data.dir = str(folder)
        found = arrays.read(folder, seed=0, shares={"val": 0.2, "test": 0.2})
        stage = stages.begin(config, tmp_path / "w", "activations")
        identity.check_arrays(config, tmp_path / "w", found, found.rows, stage)

    np.savez(tmp_path / "one.npz", activations=acts, labels=labels)
    begin(tmp_path / "one.npz")
    (tmp_path / "w/activations/train").mkdir()  # something was made
    np.savez(tmp_path / "other.npz", activations=acts, labels=labels)
    begin(tmp_path / "other.npz")
    acts[[3, 5]] += 1
    labels[7] ^= 1
    np.savez(tmp_path / "other.npz", activations=acts, labels=labels)
    with pytest.raises(
        identity.DataChanged,
        match=r"1 relabelled \(000007\), 2 exchanged for others \(00000[35], 00000[35]\)",
    ):
        begin(tmp_path / "other.npz")


def test_pretrained_weights_are_known_by_content_and_needed_once(config, tmp_path):
    def begin(pretrained):
        config.classifier.pretrained = str(pretrained)
        return stages.begin(config, tmp_path / "w", "classifier")

    (tmp_path / "a").mkdir()
    (tmp_path / "a/model.safetensors").write_bytes(b"weights")
    begin(tmp_path / "a").note(arch={})
    (tmp_path / "w/classifier/checkpoints/1").mkdir(parents=True)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    begin(tmp_path / "b")
    begin(tmp_path / "b/model.safetensors")
    begin(tmp_path / "gone.safetensors")
    (tmp_path / "b/model.safetensors").write_bytes(b"others")
    with pytest.raises(stages.ConfigMismatch, match=r"config.classifier.pretrained: 'sha256:"):
        begin(tmp_path / "b")
    (tmp_path / "a/config.json").write_text(json.dumps({"mean": 0}))  # says how images are prepared for them
    with pytest.raises(stages.ConfigMismatch, match=r"config.classifier.pretrained"):
        begin(tmp_path / "a")
    with pytest.raises(
        stages.ConfigMismatch, match=r"config.classifier.pretrained: 'sha256:.* there, '' now"
    ):
        begin("")


def test_another_study_in_a_config_is_known_by_its_classifier(config, tmp_path):
    stages.begin(config, tmp_path / "one", "classifier").finish({})
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    digests = {contents.of("embedding_workdir", str(tmp_path / name)) for name in ("one", "two")}
    assert len(digests) == 1 and contents.is_known(digests.pop())
