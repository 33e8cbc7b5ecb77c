"""FGVC-Aircraft: lists checked with file and line, archives checked before unpacking, the TFDS builder."""

import functools
import hashlib
import http.server
import io
import pathlib
import shutil
import tarfile
import threading

import pytest
import tensorflow_datasets as tfds

from jsae.data import cache, kinds
from jsae.data.fgvc_aircraft import FgvcAircraft, FgvcAircraftConfig, lists, locate
from jsae.data.source import Request
from tests.data.fgvc_folder import CLASSES, jpeg


def replace(path: pathlib.Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


def error_of(folder) -> str:
    with pytest.raises(lists.ListError) as error:
        lists.read_lists(folder)
    return str(error.value)


# lists


def test_lists_keep_zeros_spaces_slashes_and_markup(make_fgvc):
    read = lists.read_lists(make_fgvc(boxes=True) / "data")
    assert read.class_names["variant"] == CLASSES
    assert read.class_names["family"] == ("Boeing 707", "F-16")
    photo = read.photos["train"][0]
    assert photo.id == "0008950" and photo.path.name == "0008950.jpg"
    assert photo.labels == {"variant": 2, "family": 1, "manufacturer": 1}
    assert photo.box == (0, 1, 15, 40)


def test_image_lists_boxes_and_coarser_levels_are_optional(make_fgvc):
    data = make_fgvc() / "data"
    for path in [*data.glob("images_???*.txt")]:
        if path.name.split("_")[1].split(".")[0] != "variant":
            path.unlink()
    (data / "families.txt").unlink()
    (data / "manufacturers.txt").unlink()
    read = lists.read_lists(data)
    assert list(read.class_names) == ["variant"] and not read.has_boxes
    assert len(read.photos["val"]) == 6


def test_windows_line_ends_and_byte_order_mark_are_accepted(make_fgvc):
    data = make_fgvc() / "data"
    path = data / "images_variant_train.txt"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert len(lists.read_lists(data).photos["train"]) == 6


def test_other_image_suffixes_are_found(make_fgvc):
    data = make_fgvc() / "data"
    (data / "images" / "0009000.jpg").rename(data / "images" / "0009000.JPEG")
    assert lists.read_lists(data).photos["train"][-1].path.name == "0009000.JPEG"


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        (
            "images_variant_val.txt", "F-16A/B", "F-16A/C",
            "images_variant_val.txt:3: id '0008981': class 'F-16A/C' is not one of 3 in variants.txt; "
            "nearest is 'F-16A/B'",
        ),
        (
            "images_variant_val.txt", "0009001", "0009000",
            "images_variant_val.txt:1: id '0009000' is also in images_variant_train.txt:1; "
            "an id belongs to one split",
        ),
        (
            "images_variant_val.txt", "0008991", "0009001",
            "images_variant_val.txt:2: id '0009001' is already on line 1",
        ),
        (
            "images_variant_test.txt", "0009002", "0123456",
            "images_variant_test.txt:1: id '0123456' has no image; expected images/0123456.jpg",
        ),
        ("images_variant_test.txt", "0009002", "../../x", "test.txt:1: id '../../x' is not a plain"),
        ("images_variant_test.txt", "0009002 707-320", "0009002", "'0009002' has no class; expected 'ID"),
        ("images_train.txt", "0009000", "9", "train.txt:1: unknown id '9'; it is not in images_variant_tr"),
        (
            "images_train.txt", "0009000\n", "",
            "images_variant_train.txt:1: id '0009000' is missing from images_train.txt",
        ),
        ("images_family_val.txt", "0009001 Boeing 707\n", "", "is missing from images_family_val.txt"),
        ("images_box.txt", "0009000 0 1 15 40", "0009000 0 1 15", "txt:1: '0009000 0 1 15'; expected 'ID"),
        ("images_box.txt", "0009000 0 1 15 40\n", "", "id '0009000' has no line in images_box.txt"),
        ("variants.txt", "F-16A/B", "707-320", "variants.txt:2: class '707-320' is already on line 1"),
    ],
)  # fmt: skip
def test_defects_are_named_with_file_and_line(make_fgvc, file, old, new, message):
    data = make_fgvc(boxes=True) / "data"
    replace(data / file, old, new)
    assert message in error_of(data)


def test_missing_lists_are_named_with_the_splits_that_exist(make_fgvc):
    data = make_fgvc() / "data"
    (data / "images_variant_val.txt").unlink()
    message = error_of(data)
    assert "missing images_variant_val.txt; splits that are there: train, test" in message
    shutil.rmtree(data / "images")
    (data / "images_variant_val.txt").write_text("")
    assert "no folder images/" in error_of(data)


def test_an_empty_list_and_a_wrong_encoding_are_named(make_fgvc):
    data = make_fgvc() / "data"
    for level in ("variant", "family", "manufacturer"):
        (data / f"images_{level}_val.txt").write_text("")
    (data / "images_val.txt").unlink()
    assert "images_variant_val.txt: lists no usable image" in error_of(data)
    (data / "variants.txt").write_bytes(b"707-320\nFl\xfcgel\n")
    assert "variants.txt:2: byte 0xfc is not UTF-8" in error_of(data)


def test_all_missing_images_come_in_one_error(make_fgvc):
    data = make_fgvc(per_class=4) / "data"
    for path in (data / "images").iterdir():
        path.unlink()
    message = error_of(data)
    assert message.startswith("36 defects in the lists of ")
    assert message.count("has no image") == 10 and "... and 26 more" in message


def test_a_class_without_photos_is_kept_and_warned_of(make_fgvc, tmp_path, caplog):
    folder = make_fgvc()
    with open(folder / "data" / "variants.txt", "a") as file:
        file.write("Concorde\n")
    data = kinds.KINDS["fgvc_aircraft"](Request(str(folder), image_size=8, cache_dir=tmp_path))
    assert data.class_names["variant"] == (*CLASSES, "Concorde")
    assert "1 of 4 classes (variant) have no training photo: 'Concorde'" in caplog.text


def test_one_class_only_is_accepted(make_fgvc):
    data = make_fgvc() / "data"
    for path in data.glob("images_variant_*.txt"):
        lines = path.read_text("utf-8").splitlines()
        path.write_text("".join(line.split(" ")[0] + " 707-320\n" for line in lines))
    (data / "variants.txt").write_text("707-320\n")
    assert {photo.labels["variant"] for photo in lists.read_lists(data).photos["train"]} == {0}


def test_official_lists(annotations_dir, tmp_path):
    """The official names and a twentieth of the official ids, with generated photos."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for path in (annotations_dir / "data").glob("*.txt"):
        lines = path.read_text("utf-8").splitlines(keepends=True)
        every = 20 if "images" in path.name and "box" not in path.name else 1
        (data / path.name).write_text("".join(lines[::every]), "utf-8")
    photo = jpeg(0, 8, 8)
    for split in lists.SPLITS:
        for line in (data / f"images_variant_{split}.txt").read_text("utf-8").splitlines():
            (data / "images" / f"{line.split(' ')[0]}.jpg").write_bytes(photo)
    read = lists.read_lists(data)
    assert {level: len(names) for level, names in read.class_names.items()} == {
        "variant": 100, "family": 70, "manufacturer": 30
    }  # fmt: skip
    assert {split: len(photos) for split, photos in read.photos.items()} == {
        "train": 167,
        "val": 167,
        "test": 167,
    }
    assert "F-16A/B" in read.class_names["variant"]
    # the whole official lists, which come here without photos
    shutil.copytree(annotations_dir / "data", tmp_path / "whole")
    (tmp_path / "whole" / "images").mkdir(exist_ok=True)
    assert error_of(tmp_path / "whole").startswith("10000 defects")


# where it comes from


def make_archive(folder: pathlib.Path, name: str) -> pathlib.Path:
    archive = folder.parent / name
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder / "data", "fgvc-aircraft-2013b/data")
    return archive


def test_folder_layouts_and_archives_lead_to_the_same_lists(make_fgvc, tmp_path):
    folder = make_fgvc()
    data = (folder / "data").resolve()
    assert locate.resolve(folder, tmp_path / "c") == data
    assert locate.resolve(data, tmp_path / "c") == data
    assert locate.resolve(folder.parent, tmp_path / "c") == data
    unpacked = locate.resolve(make_archive(folder, "mine.tar.gz"), tmp_path / "c")
    assert unpacked.is_relative_to(tmp_path / "c")
    photos = lists.read_lists(unpacked).photos
    assert [p.id for p in photos["test"]] == [p.id for p in lists.read_lists(data).photos["test"]]
    assert locate.resolve(tmp_path / "mine.tar.gz", tmp_path / "c") == unpacked  # not unpacked again


def test_official_archive_with_another_checksum_is_refused_before_unpacking(make_fgvc, tmp_path, monkeypatch):
    archive = make_archive(make_fgvc(), "fgvc-aircraft-2013b.tar.gz")
    with pytest.raises(ValueError, match=f"md5 is .*, expected {locate.MD5}"):
        locate.resolve(archive, tmp_path / "c")
    assert not list((tmp_path / "c").rglob("*.txt"))
    monkeypatch.setattr(locate, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    assert locate.resolve(archive, tmp_path / "c").name == "data"


@pytest.mark.parametrize("name", ["../outside.txt", "/tmp/outside.txt", "data/../../outside.txt"])
def test_archives_cannot_write_outside_their_folder(tmp_path, name):
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo(name)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    with pytest.raises(ValueError, match="is not a plain file or folder inside the archive"):
        locate.resolve(archive, tmp_path / "c")
    assert not list(tmp_path.rglob("outside.txt"))


def test_links_in_archives_and_damaged_archives_are_refused(make_fgvc, tmp_path):
    with tarfile.open(tmp_path / "link.tar", "w") as tar:
        member = tarfile.TarInfo("data")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        tar.addfile(member)
    with pytest.raises(ValueError, match="member 'data' is not a plain file"):
        locate.resolve(tmp_path / "link.tar", tmp_path / "c")
    archive = make_archive(make_fgvc(), "cut.tar.gz")
    archive.write_bytes(archive.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut.tar.gz: damaged archive"):
        locate.resolve(archive, tmp_path / "c")
    assert [path.name for path in (tmp_path / "c" / "unpacked").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    ("directory", "kind", "message"),
    [
        ("", ValueError, 'the word "download": fetches https://'),
        ("nowhere", FileNotFoundError, "config.data.dir='nowhere' does not exist"),
        ("empty", FileNotFoundError, "no variants.txt in"),
        ("file.zip", ValueError, "is neither folder nor archive"),
    ],
)
def test_wrong_places_are_named(tmp_path, monkeypatch, directory, kind, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.zip").write_bytes(b"PK")
    with pytest.raises(kind) as error:
        locate.resolve(directory, tmp_path / "c")
    assert message in str(error.value)


@pytest.fixture
def served(make_fgvc, tmp_path, monkeypatch):
    """The official URL and md5 point to an archive of the small set, served locally."""
    folder = tmp_path / "served"
    folder.mkdir()
    archive = make_archive(make_fgvc(boxes=True), "served/fgvc-aircraft-2013b.tar.gz")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.delenv(proxy, raising=False)
        monkeypatch.setattr(locate, "URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        monkeypatch.setattr(locate, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        yield archive
        server.shutdown()
        thread.join()


def test_download_is_checked_and_kept(served, tmp_path, monkeypatch):
    data = locate.resolve("download", tmp_path / "c")
    assert len(lists.read_lists(data).photos["train"]) == 6
    with open(served, "ab") as file:
        file.write(b"changed")
    assert locate.resolve("download", tmp_path / "c") == data  # kept
    with pytest.raises(ValueError, match="the file is damaged or another one"):
        locate.resolve("download", tmp_path / "other")
    assert not list((tmp_path / "other" / "downloads").iterdir())


# the builder


def examples(builder, split):
    builder.download_and_prepare()
    return list(builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()}))


def test_builder_keeps_bytes_ids_labels_and_boxes(make_fgvc, tmp_path):
    folder = make_fgvc(boxes=True) / "data"
    config = FgvcAircraftConfig(name="mine", folder=str(folder))
    builder = FgvcAircraft(config=config, data_dir=tmp_path / "tfds", file_format="array_record")
    found = examples(builder, "val")
    assert [e["id"].decode() for e in found] == [p.id for p in lists.read_lists(folder).photos["val"]]
    for example in found:
        assert example["image"] == (folder / "images" / f"{example['id'].decode()}.jpg").read_bytes()
        assert example["box"].tolist() == [0, 1, 15, 40]
    assert [int(e["variant"]) for e in found] == [2, 2, 1, 1, 0, 0]
    assert tuple(builder.info.features["variant"].names) == CLASSES
    assert builder.info.features["family"].names == ["Boeing 707", "F-16"]


def test_builder_downloads_by_default(served, tmp_path):
    builder = FgvcAircraft(data_dir=tmp_path / "tfds", file_format="array_record")
    assert builder.builder_config.name == "2013b"
    assert len(examples(builder, "train")) == 6
    again = FgvcAircraft(data_dir=tmp_path / "tfds", file_format="array_record")
    assert tuple(again.info.features["variant"].names) == CLASSES


def test_system_folders_hold_no_lists_and_of_several_folders_one_must_be_given(make_fgvc, tmp_path):
    folder = make_fgvc()
    for name in ("#recycle", "@eaDir", "__MACOSX", "$RECYCLE.BIN"):
        shutil.copytree(folder / "data", folder.parent / name / "data")
    assert locate.find_lists(folder.parent) == (folder / "data").resolve()
    shutil.copytree(folder / "data", folder.parent / "second")
    with pytest.raises(ValueError, match=r"several folders with variants.txt; give one of them: .*second"):
        locate.find_lists(folder.parent)


def test_hidden_files_are_no_photos_and_a_link_to_nowhere_is_a_damaged_one(make_fgvc, tmp_path):
    data = make_fgvc() / "data"
    for name in ("._0009000.jpg", "Thumbs.db", "desktop.ini"):
        (data / "images" / name).write_bytes(b"x")
    (data / "images" / "@eaDir").mkdir()
    (data / "images" / "0009000.jpg").unlink()
    (data / "images" / "0009000.jpg").symlink_to("/no/where.jpg")
    settings = {"kind": "fgvc_aircraft", "dir": str(data), "image_size": 8, "cache_dir": str(tmp_path / "c")}
    with pytest.raises(ValueError, match=r"0009000.jpg: a link that leads nowhere: /no/where.jpg"):
        cache.load_splits(**settings)
    split = cache.load_splits(**settings, on_bad_image="skip")["train"]
    assert [id_ for id_, _ in split.skipped] == ["0009000"] and len(split.ids) == 5


def test_one_photo_under_two_ids_is_told_first_where_they_are_in_two_splits(make_fgvc, caplog):
    images = make_fgvc() / "data" / "images"
    shutil.copy(images / "0009000.jpg", images / "0008990.jpg")  # both in train
    lists.read_lists(images.parent)
    assert "1 photos have several ids, 0 of them in several splits" in caplog.text
    assert "\n  0008990 (train) = 0009000 (train)" in caplog.text
    shutil.copy(images / "0009000.jpg", images / "0009002.jpg")  # in test
    lists.read_lists(images.parent)
    assert "1 of them in several splits" in caplog.text
    assert "\n  0008990 (train) = 0009002 (test)" in caplog.text
