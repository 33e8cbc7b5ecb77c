"""A folder of class folders: layouts, drawn splits, what is left out, and errors that name things."""

import collections
import os
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow_datasets as tfds

from jsae.data import cache, copies, decode, drawn_splits, pipeline
from jsae.data.image_folder import ImageFolder, ImageFolderConfig, files
from tests.data.class_folders import ODD_NAMES, png, write
from tests.data.fgvc_folder import CLASSES, write_folder

SPLITS = ("train", "val", "test")


@pytest.fixture
def load(tmp_path):
    """load(folder, **settings) -> splits of an image_folder at 8 px."""

    def load(folder, **settings):
        settings = {"image_size": 8, "val_share": 0.2, "test_share": 0.3} | settings
        return cache.load_splits(
            kind="image_folder", dir=str(folder), cache_dir=str(tmp_path / "cache"), **settings
        )

    return load


def listing(folder, seed=0, val_share=0.2, test_share=0.3):
    return files.read_folder(folder, seed=seed, val_share=val_share, test_share=test_share)


def given(folder, classes=("a", "b")):
    return write(folder, {f"{split}/{name}": 2 for split in SPLITS for name in classes})


def test_given_splits_are_kept_and_decoded(load, tmp_path):
    splits = load(given(tmp_path / "set", ODD_NAMES))
    assert list(splits) == list(SPLITS)
    for name, split in splits.items():
        assert split.class_names == tuple(sorted(ODD_NAMES))
        assert split.ids == tuple(sorted(f"{name}/{c}/{i}.png" for c in ODD_NAMES for i in range(2)))
        for id_, label, image in zip(split.ids, split.labels, split.images, strict=True):
            assert split.class_names[label] == id_.split("/")[1]
            rgb = decode.decode_rgb((tmp_path / "set" / id_).read_bytes())
            np.testing.assert_array_equal(image, decode.fit_square(rgb, 8, "squash"))
        assert split.levels == {} and split.boxes is None


def test_one_file_name_in_two_classes_makes_two_ids(tmp_path):
    ids = [
        photo.id for photos in listing(write(tmp_path, {"a": 5, "b": 5})).photos.values() for photo in photos
    ]
    assert sorted(ids) == sorted(f"{c}/{i}.png" for c in "ab" for i in range(5))


def test_splits_are_drawn_by_class_from_the_seed_alone(tmp_path):
    folder = write(tmp_path / "one", {"a": 10, "b": 20})
    first = listing(folder)
    assert first.drawn == ("val", "test")
    for split, share in (("test", 0.3), ("val", 0.2), ("train", 0.5)):
        counts = collections.Counter(photo.label for photo in first.photos[split])
        assert counts == {0: 10 * share, 1: 20 * share}
    assert listing(folder).photos == first.photos
    ids = {s: [p.id for p in photos] for s, photos in first.photos.items()}
    assert {s: [p.id for p in photos] for s, photos in listing(folder, seed=1).photos.items()} != ids
    moved = shutil.copytree(folder, tmp_path / "two")  # another place, other times: the same splits
    assert {s: [p.id for p in photos] for s, photos in listing(moved).photos.items()} == ids


@pytest.mark.parametrize(
    ("n", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (10, (7, 1, 2)), (100, (75, 10, 15))]
)
def test_every_class_keeps_an_image_in_train(n, expected):
    drawn = drawn_splits.draw(
        [str(i) for i in range(n)], ["c"] * n, seed=3, shares={"val": 0.1, "test": 0.15}
    )
    assert tuple(drawn.count(split) for split in SPLITS) == expected


def test_a_missing_val_is_drawn_from_train_and_test_is_kept(load, tmp_path):
    folder = write(tmp_path / "set", {"train/a": 10, "train/b": 10, "test/a": 3, "test/b": 1})
    splits = load(folder)
    assert [len(splits[s].ids) for s in SPLITS] == [16, 4, 4]
    assert all(id_.startswith("train/") for id_ in splits["val"].ids)
    assert np.bincount(splits["val"].labels).tolist() == [2, 2]


def test_what_is_no_image_is_left_out_and_nested_folders_belong_to_their_class(tmp_path):
    folder = write(tmp_path, {"a": 4, "b": 4, "b/deep/er": 3})
    (folder / "a" / "labels.csv").write_bytes(b"x")
    (folder / "a" / ".DS_Store").write_bytes(b"x")
    (folder / "a" / "._0.png").write_bytes(b"x")
    (folder / "a" / "UPPER.JPEG").write_bytes(png(0))
    (folder / ".cache").mkdir()
    (folder / "readme.txt").write_text("x")
    (folder / "loose.png").write_bytes(png(1))
    os.symlink(folder / "b", folder / "b" / "deep" / "up")
    read = listing(folder)
    ids = [photo.id for photos in read.photos.values() for photo in photos]
    assert len(ids) == 12 and "a/UPPER.JPEG" in ids and "b/deep/er/2.png" in ids
    assert read.class_names == ("a", "b")
    assert any("1 files are no images, left out: a/labels.csv" in note for note in read.notes)
    assert any("1 images lie outside the class folders, left out: loose.png" in note for note in read.notes)


def test_a_class_folder_may_be_called_train(tmp_path):
    assert listing(write(tmp_path, {"train": 5, "bus": 5})).class_names == ("bus", "train")


def test_one_class_and_a_class_without_images_are_accepted(load, tmp_path, caplog):
    folder = write(tmp_path / "set", {"only": 6, "none": 0})
    split = load(folder)["train"]
    assert split.class_names == ("none", "only") and set(split.labels.tolist()) == {1}
    assert "1 of 2 classes (class) have no training photo: 'none'" in caplog.text


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({}, "holds no images"),
        ({"a": 0}, "holds no images"),
        ({"train/a": 3, "test/a": 2, "extra/b": 2}, "train, test look like splits, but extra lie beside"),
        ({"val/a": 3, "test/a": 3}, "holds val, test but no train"),
        ({"train/b747": 3, "val/b74": 1, "test/b747": 1}, "val/b74 (1 images); nearest is 'b747'"),
        ({"train/a": 3, "val/a": 0, "test/a": 1}, "val holds no images"),
        ({"a": 2, "b": 2}, "split 'val' has no image; no class has enough images to draw it from"),
        ({"set/train/a": 3}, "holds one folder with splits; give config.data.dir="),
        ({"Ju 52": 3, "Ju  52": 3}, "have one class name, 'Ju 52'"),
    ],
)  # fmt: skip
def test_wrong_folders_are_named(tmp_path, images, message):
    with pytest.raises(files.FolderError) as error:
        listing(write(tmp_path, images))
    assert message in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_wrong_places_shares_and_names_are_named(load, tmp_path):
    for directory, message in (("", "config.data.dir is empty"), (tmp_path / "no", "is no folder")):
        with pytest.raises(FileNotFoundError, match=message):
            load(directory)
    folder = write(tmp_path / "set", {"a": 9})
    with pytest.raises(ValueError, match=r"data.val_share=0 must lie between 0 and 1: .* no val split"):
        load(folder, val_share=0)
    with pytest.raises(
        ValueError, match=r"data.val_share=0.5 and data.test_share=0.5 leave nothing for train"
    ):
        load(folder, val_share=0.5, test_share=0.5)
    (folder / "loose.png").write_bytes(png(0))
    shutil.rmtree(folder / "a")
    with pytest.raises(files.FolderError, match="holds images, but none in a class folder"):
        load(folder)
    os.mkdir(os.fsencode(folder) + b"/a")
    with open(os.fsencode(folder) + b"/a/\xff.png", "wb") as file:
        file.write(png(0))
    with pytest.raises(files.FolderError, match=r"\\xff.png': the file name is not UTF-8"):
        load(folder)


def test_a_folder_in_fgvc_layout_is_read_as_one(load, tmp_path):
    splits = load(write_folder(tmp_path / "photos"), label_level="family")
    assert splits["train"].class_names == ("Boeing 707", "F-16")
    assert load(tmp_path / "photos")["test"].class_names == CLASSES


def test_damaged_images_are_skipped_as_in_every_set(load, tmp_path):
    folder = given(tmp_path / "set")
    (folder / "train" / "a" / "0.png").write_text("<html>404</html>")
    with pytest.raises(ValueError) as error:
        load(folder)
    assert str(folder / "train" / "a" / "0.png") in str(error.value)
    split = load(folder, on_bad_image="skip")["train"]
    assert [id_ for id_, _ in split.skipped] == ["train/a/0.png"] and len(split.ids) == 3


def test_a_changed_file_or_seed_makes_another_cache(load, tmp_path):
    folder = write(tmp_path / "set", {"a": 6, "b": 6})
    before = load(folder)["train"]
    assert load(folder, seed=1)["train"].ids != before.ids
    (folder / before.ids[0]).write_bytes(png(77))
    after = load(folder)["train"]
    assert after.ids == before.ids
    assert [bool((x != y).any()) for x, y in zip(before.images, after.images, strict=True)][:2] == [
        True,
        False,
    ]


def test_processes_share_the_batches_and_the_order_is_not_that_of_the_classes(load, tmp_path):
    split = load(write(tmp_path / "set", {"a": 20, "b": 20}))["train"]
    assert split.labels.tolist() == sorted(split.labels.tolist())  # by class, as on disk

    def batch(process):
        batches = pipeline.train_batches(split, seed=0, batch_size=8, process=process)
        found = next(batches)
        batches.close()
        return found

    whole = batch((0, 1))
    halves = [batch((i, 2)) for i in range(2)]
    for name in whole:
        np.testing.assert_array_equal(np.concatenate([half[name] for half in halves]), whole[name])
    assert set(whole["label"].tolist()) == {0, 1}


def test_the_builder_keeps_bytes_ids_and_labels(tmp_path):
    folder = given(tmp_path / "set", ODD_NAMES)
    config = ImageFolderConfig(name="mine", folder=str(folder))
    builder = ImageFolder(config=config, data_dir=tmp_path / "tfds", file_format="array_record")
    builder.download_and_prepare()
    source = builder.as_data_source("val", decoders={"image": tfds.decode.SkipDecoding()})
    names = builder.info.features["label"].names
    assert names == sorted(ODD_NAMES) and len(source) == 8
    for example in source:
        id_ = example["id"].decode()
        assert example["image"] == (folder / id_).read_bytes()
        assert names[int(example["label"])] == id_.split("/")[1]


@pytest.mark.parametrize(
    "names",
    [
        ("Train", "Valid", "Test"),
        ("training", "validation", "testing"),
        ("TRAIN", "dev", "EVAL"),
        ("train_set", "val-set", "Test images"),
        ("Training ", "eval", "test"),
        ("trainset", "development", "holdout"),
    ],
)
def test_split_folders_in_any_case_and_of_any_usual_name_are_splits(tmp_path, names):
    read = listing(write(tmp_path, {f"{name}/{c}": 2 for name in names for c in "ab"}))
    assert read.class_names == ("a", "b") and read.drawn == ()
    for split, name in zip(SPLITS, names, strict=True):
        assert [photo.id for photo in read.photos[split]] == [
            f"{name}/{c}/{i}.png" for c in "ab" for i in "01"
        ]


def test_train_and_testing_alone_get_a_val(tmp_path):
    read = listing(write(tmp_path, {"Training/a": 10, "Testing/a": 3}))
    assert read.drawn == ("val",) and [len(read.photos[s]) for s in SPLITS] == [8, 2, 3]
    assert any("8 train, 2 val, 3 test" in note and "damaged ones included" in note for note in read.notes)


@pytest.mark.parametrize("classes", [("train", "bus"), ("Train", "bus", "test"), ("valid", "invalid")])
def test_classes_that_are_called_like_splits_stay_classes(tmp_path, classes):
    read = listing(write(tmp_path, dict.fromkeys(classes, 5)))
    assert read.class_names == tuple(sorted(classes)) and read.drawn == ("val", "test")


SYSTEM = (
    "@eaDir",
    "#recycle",
    "$RECYCLE.BIN",
    "System Volume Information",
    "__MACOSX",
    "lost+found",
    ".ipynb_checkpoints",
    ".Trash-1000",
    "@Recycle",
    "#snapshot",
    ".AppleDouble",
)


@pytest.mark.parametrize("place", ["", "train", "train/a"])
def test_system_folders_and_thumbnails_are_left_out_counted_and_never_classes(tmp_path, place):
    given(tmp_path)
    for name in SYSTEM:
        (tmp_path / place / name / "a").mkdir(parents=True)
        (tmp_path / place / name / "a" / "SYNOPHOTO_THUMB_M.jpg").write_bytes(png(5))
    for name in ("._0.png", "Thumbs.db", "desktop.ini", ".DS_Store"):
        (tmp_path / place / name).write_bytes(png(6))
    read = listing(tmp_path)
    assert read.class_names == ("a", "b") and [len(read.photos[s]) for s in SPLITS] == [4, 4, 4]
    (note,) = read.notes
    assert note.startswith(f"{tmp_path}: 15 hidden or system files and folders left out: #recycle (1), ")


def test_a_set_of_classes_with_system_folders_beside_has_no_other_class(tmp_path):
    folder = write(tmp_path, {"a": 5, "b": 5} | dict.fromkeys(SYSTEM, 3))
    assert listing(folder).class_names == ("a", "b")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"set/Train/a": 3, "set/test/a": 1, "d": 0}, "one folder with splits; give config.data.dir={}/set"),
        ({"set/train/a": 3, "preview": 2}, "one folder with splits; give config.data.dir={}/set"),
        ({"x/set/train/a": 3}, "holds one folder with splits; give config.data.dir={}/x/set"),
        ({"set/a": 3, "set/b": 3, "docs": 0}, "in one folder, {}/set, which holds a, b. If these are th"),
        ({"x/set/a": 3, "x/set/b": 3}, "are the classes, give config.data.dir={}/x/set"),
        ({"train": 3, "test": 3}, "{}/train holds images, but none in a class folder"),
        ({"train": 3}, "{}/train holds images, but none in a class folder"),
        ({"train/a": 3, "training/a": 3, "test/a": 1}, "'train' and 'training' both mean train; join"),
        ({"train/a": 3, "val/a": 1, "Valid/a": 1}, "both mean val; join them"),
        ({"train/a": 3, "val/a": 1, "eval/a": 1, "test/a": 1}, "both mean val; join them"),
    ],
)  # fmt: skip
def test_folders_that_are_not_what_they_seem_are_told(tmp_path, images, message):
    with pytest.raises(files.FolderError) as error:
        listing(write(tmp_path, images))
    assert message.format(tmp_path) in str(error.value)


def test_the_fgvc_layout_further_down_is_told(load, tmp_path):
    write_folder(tmp_path / "set" / "fgvc-aircraft-2013b")
    with pytest.raises(files.FolderError, match=r"the FGVC-Aircraft layout; give config.data.dir=.*2013b"):
        load(tmp_path / "set")


def test_one_split_of_several_is_told(tmp_path):
    given(tmp_path)
    (note, *_) = listing(write(tmp_path, {"train/a": 9}) / "train").notes
    assert note.endswith("holds test, val as well; splits are drawn from it alone")


def test_empty_folders_beside_splits_are_left_out_with_a_word(tmp_path):
    read = listing(write(given(tmp_path), {"docs": 0, "logs/old": 0}))
    assert read.class_names == ("a", "b")
    assert any("nothing else holds images: docs, logs" in note for note in read.notes)


def test_links_to_nowhere_are_damaged_images(load, tmp_path):
    folder = given(tmp_path / "set")
    (folder / "train" / "a" / "gone.jpg").symlink_to("/no/where.jpg")
    (folder / "train" / "a" / "deeper").symlink_to("/no/folder")
    (folder / "train" / "c").symlink_to("/no/class")
    with pytest.raises(ValueError, match=r"train/(a|c).*a link that leads nowhere: /no/.*on_bad_image=skip"):
        load(folder)
    split = load(folder, on_bad_image="skip")["train"]
    assert dict(split.skipped) == {
        "train/a/deeper": "a link that leads nowhere: /no/folder",
        "train/a/gone.jpg": "a link that leads nowhere: /no/where.jpg",
        "train/c": "a link that leads nowhere: /no/class",
    }
    assert split.class_names == ("a", "b", "c") and len(split.ids) == 4
    (folder / "valid").symlink_to("/no/split")
    shutil.rmtree(folder / "val")
    with pytest.raises(files.FolderError, match=r"valid is a link that leads nowhere \(/no/split\)"):
        load(folder)


def test_a_folder_and_a_file_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    folder = write(tmp_path, {"a": 3, "b": 3})
    scandir = os.scandir

    def forbidden(path):
        if os.fspath(path).endswith("/b"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", forbidden)
    with pytest.raises(files.FolderError, match=r"/b: the folder cannot be read \(Permission denied\)"):
        listing(folder)


def test_one_file_in_two_splits_is_an_error_that_names_both(tmp_path):
    folder = given(tmp_path)
    shutil.copy(folder / "train/a/0.png", folder / "test/a/copy.png")
    os.link(folder / "train/b/1.png", folder / "val/b/linked.png")
    with pytest.raises(files.FolderError) as error:
        listing(folder)
    assert "2 images lie in two splits, byte for byte" in str(error.value)
    assert "\n  train/a/0.png = test/a/copy.png\n  train/b/1.png = val/b/linked.png" in str(error.value)


def test_copies_in_one_split_or_class_are_a_warning(tmp_path):
    folder = given(tmp_path)
    shutil.copy(folder / "train/a/0.png", folder / "train/a/copy.png")
    shutil.copy(folder / "train/a/1.png", folder / "train/b/other.png")
    for name in ("train/a/empty.png", "test/a/empty.png"):  # damaged files are no copies of each other
        (folder / name).write_bytes(b"")
    for name in ("train/a/page.jpg", "test/a/page.jpg"):
        (folder / name).write_bytes(b"<html>404</html>")
    same, classes = listing(folder).notes
    assert "1 images lie there twice or more, byte for byte:\n  train/a/0.png = train/a/copy.png" in same
    assert "1 images lie in two classes, byte for byte:\n  train/a/1.png = train/b/other.png" in classes


def test_copies_are_drawn_into_one_split(tmp_path):
    folder = write(tmp_path, {"a": 30})
    before = {photo.id: split for split, photos in listing(folder).photos.items() for photo in photos}
    for i in range(30):
        shutil.copy(folder / "a" / f"{i}.png", folder / "a" / f"{i}_copy.png")
    after = {photo.id: split for split, photos in listing(folder).photos.items() for photo in photos}
    assert len(after) == 60 and all(after[id_.replace("_copy", "")] == split for id_, split in after.items())
    assert {id_: after[id_] for id_ in before} == before


def test_hardly_any_file_is_read_to_find_copies(tmp_path, monkeypatch):
    paths = [tmp_path / f"{i}.png" for i in range(6)]
    for i, path in enumerate(paths):  # three sizes, two files of each
        path.write_bytes(png(i // 4, width=10 + i % 3))
    read = []
    monkeypatch.setattr(
        copies, "_digest", lambda path, digest=copies._digest: read.append(path) or digest(path)
    )
    assert copies.of_files(paths) == [[0, 3]]
    assert read == [paths[0], paths[3]]


def test_an_image_that_cannot_be_read_ends_the_run_with_its_name(load, tmp_path, monkeypatch):
    folder = given(tmp_path / "set")
    read_bytes = pathlib.Path.read_bytes

    def forbidden(path):
        if path.name == "1.png":
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return read_bytes(path)

    monkeypatch.setattr(pathlib.Path, "read_bytes", forbidden)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/a/1.png'"):
        load(folder, on_bad_image="skip")


def test_the_end_says_how_many_images_are_left_and_which_classes_are_not_tested(load, tmp_path, caplog):
    folder = write(tmp_path / "set", {"a": 10, "b": 10, "c": 1, "<d>": 2})
    load(folder)
    assert "all images with seed 0, damaged ones included: 12 train, 4 val, 7 test" in caplog.text
    assert "1 of 4 classes (class) have no test image, so means over the classes of test leave" in caplog.text
    assert "2 of 4 classes (class) have no val image, so means over the classes of val" in caplog.text
    first = min((folder / "a").iterdir())
    first.write_bytes(b"<html>404</html>")
    load(folder, on_bad_image="skip")
    assert "1 damaged images are left out" in caplog.text
    assert any(
        f"Without them there are {counts}" in caplog.text
        for counts in ("11 train, 4 val, 7 test", "12 train, 3 val, 7 test", "12 train, 4 val, 6 test")
    )
