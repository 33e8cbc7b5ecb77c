"""The decoded cache: right pixels in a fixed order, one key a setting, whole or absent, damaged images."""

import collections
import errno
import fcntl
import json
import os
import resource
import subprocess
import sys

import numpy as np
import pytest

from jsae.data import cache, cache_writer, decode
from jsae.data.fgvc_aircraft import source
from jsae.data.synthetic_aircraft import drawing
from jsae.runtime import disks
from jsae.runtime.context import RunContext
from tests.data.fgvc_folder import CLASSES, jpeg


@pytest.fixture
def load(tmp_path):
    """load(folder, **settings) with the settings of a small photo set."""

    def load(folder, **settings):
        settings = {"image_size": 16, "cache_dir": str(tmp_path / "cache")} | settings
        return cache.load_splits(kind="fgvc_aircraft", dir=str(folder), **settings)

    return load


def caches(tmp_path):
    return sorted(path for path in (tmp_path / "cache").glob("fgvc_aircraft-*"))


def test_splits_hold_decoded_photos_sorted_by_id(load, make_fgvc):
    folder = make_fgvc(boxes=True)
    splits = load(folder, banner_px=4)
    assert list(splits) == ["train", "val", "test"]
    for name, split in splits.items():
        assert split.name == name
        assert split.ids == tuple(sorted(split.ids)) and len(split.ids) == 6
        assert all(len(id_) == 7 and id_.startswith("000") for id_ in split.ids)
        assert split.images.shape == (6, 16, 16, 3) and isinstance(split.images, np.memmap)
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        assert split.class_names == CLASSES
        assert split.labels.tolist() == [2, 2, 1, 1, 0, 0]  # ids fall while classes rise
        for id_, image in zip(split.ids, split.images, strict=True):
            rgb = decode.decode_rgb(jpeg(int(id_)), banner_px=4)
            np.testing.assert_array_equal(image, decode.fit_square(rgb, 16, "squash"))
        np.testing.assert_allclose(split.boxes, np.array([[0, 0, 8, 16]] * 6))
        assert split.masks is None and split.part_names == () and split.skipped == ()


def test_label_levels_and_trainval_share_one_cache(load, make_fgvc, tmp_path):
    folder = make_fgvc()
    plain = load(folder)
    family = load(folder, label_level="family")
    assert family["test"].class_names == ("Boeing 707", "F-16")
    assert family["test"].labels.tolist() == [1, 1, 1, 1, 0, 0]
    union = load(folder, train_split="trainval")
    assert union["train"].ids == plain["train"].ids + plain["val"].ids
    np.testing.assert_array_equal(
        union["train"].images, np.concatenate([plain["train"].images, plain["val"].images])
    )
    assert union["train"].labels.tolist() == plain["train"].labels.tolist() + plain["val"].labels.tolist()
    assert union["val"].ids == plain["val"].ids
    assert len(caches(tmp_path)) == 1


def test_a_second_load_decodes_nothing(load, make_fgvc, monkeypatch):
    folder = make_fgvc()
    first = load(folder)
    monkeypatch.setattr(cache_writer, "write", None)
    np.testing.assert_array_equal(load(folder)["val"].images, first["val"].images)


@pytest.mark.parametrize("change", [{"image_size": 8}, {"banner_px": 3}, {"fit": "crop"}])
def test_settings_that_change_pixels_make_another_cache(load, make_fgvc, tmp_path, change):
    folder = make_fgvc()
    load(folder)
    load(folder, **change)
    assert len(caches(tmp_path)) == 2


def test_a_replaced_photo_makes_another_cache(load, make_fgvc):
    folder = make_fgvc()
    before = load(folder)["train"]
    path = folder / "data" / "images" / f"{before.ids[2]}.jpg"
    path.write_bytes(jpeg(1))
    after = load(folder)["train"]
    assert [bool((a != b).any()) for a, b in zip(before.images, after.images, strict=True)] == [
        False, False, True, False, False, False
    ]  # fmt: skip


def test_damaged_images_stop_the_run_or_are_left_out_and_listed(load, make_fgvc, tmp_path, caplog):
    folder = make_fgvc()
    images = folder / "data" / "images"
    ids = load(folder)["train"].ids
    (images / f"{ids[1]}.jpg").write_bytes(b"")
    (images / f"{ids[4]}.jpg").write_bytes(jpeg(3)[:300])
    with pytest.raises(ValueError) as error:
        load(folder)
    assert str(images / f"{ids[1]}.jpg") + ": the file is empty" in str(error.value)
    assert "data.on_bad_image=skip" in str(error.value)
    assert len(caches(tmp_path)) == 1  # that of the sound folder

    split = load(folder, on_bad_image="skip")["train"]
    assert split.ids == tuple(id_ for i, id_ in enumerate(ids) if i not in (1, 4))
    assert split.images.shape[0] == len(split.labels) == 4
    np.testing.assert_array_equal(
        split.images[1], decode.fit_square(decode.decode_rgb(jpeg(int(ids[2]))), 16, "squash")
    )
    assert [id_ for id_, _ in split.skipped] == [ids[1], ids[4]]
    assert "2 damaged images are left out" in caplog.text
    made = max(caches(tmp_path), key=os.path.getmtime)
    manifest = json.loads((made / "manifest.json").read_text())
    assert [id_ for id_, _ in manifest["skipped"]["train"]] == [ids[1], ids[4]]
    with pytest.raises(ValueError, match=r"the file is empty \(and 1 more\)"):
        load(folder)  # the cache made with "skip" must not hide it


def test_a_split_without_a_usable_image_is_an_error(load, make_fgvc):
    folder = make_fgvc(per_class=1)
    for line in (folder / "data" / "images_val.txt").read_text().split():
        (folder / "data" / "images" / f"{line}.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="split 'val' has no usable image; 3 are damaged"):
        load(folder, on_bad_image="skip")


def test_a_killed_run_leaves_no_half_cache(load, make_fgvc, tmp_path, monkeypatch):
    folder = make_fgvc()

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunContext, "check_here", stop)
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert caches(tmp_path) == []
    load(folder)
    made = caches(tmp_path)[0]
    # what kill -9 leaves: a folder under its temporary name, which the next writer removes
    lefts = [tmp_path / "cache" / f".{made.name}.making-dead"]
    lefts += [path.parent / "incomplete.DEAD_1.0.0" for path in (tmp_path / "cache").glob("tfds/*/*/1.0.0")]
    assert len(lefts) == 2
    for left in lefts:
        left.mkdir()
    (made / "images.npy").write_bytes(b"cut short")
    images = load(folder)["test"].images
    assert images.shape == (6, 16, 16, 3) and images.any()
    assert not any(left.exists() for left in lefts)


def test_of_two_runs_one_waits(load, make_fgvc, tmp_path):
    folder = make_fgvc()
    expected = load(folder)["train"].images.copy()
    made = caches(tmp_path)[0]
    (made / "manifest.json").rename(tmp_path / "manifest.json")
    code = (
        "import logging, sys; logging.basicConfig(level=logging.INFO, stream=sys.stdout);"
        "from jsae.data import cache;"
        "s = cache.load_splits(kind='fgvc_aircraft', dir=sys.argv[1], image_size=16, cache_dir=sys.argv[2]);"
        "print(s['train'].images.sum())"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "cache")]
    with open(tmp_path / "cache" / f".{made.name}.lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
            said = other.stdout.readline()
            (tmp_path / "manifest.json").rename(made / "manifest.json")
            fcntl.flock(lock, fcntl.LOCK_UN)
            rest = other.stdout.read()
    assert "another run is preparing the same data; waiting for it" in said
    assert rest.strip() == str(expected.sum())  # it found the cache made, and made none


def test_the_order_of_the_records_does_not_matter(load, make_fgvc, tmp_path, monkeypatch):
    folder = make_fgvc()
    expected = load(folder)["val"]
    prepare = source.prepare
    monkeypatch.setattr(
        source, "prepare", lambda *args: {k: list(v)[::-1] for k, v in prepare(*args).items()}
    )
    found = load(folder, cache_dir=str(tmp_path / "other"))["val"]
    assert found.ids == expected.ids
    np.testing.assert_array_equal(found.images, expected.images)
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_rows_are_sorted_whatever_order_they_came_in(tmp_path):
    ids = ["d", "a", "e", "c", "b"]
    rows = cache_writer._Rows(tmp_path, 7, 2, levels=1, masks=True, boxes=False)
    for value, id_ in [(7, "x"), *((ord(id_), id_) for id_ in ids)]:
        image = np.full((2, 2, 3), value, np.uint8)
        rows.add(cache_writer._Decoded(id_, image, (value,), None, image[:, :, 0].astype(np.uint16), "0"))
    assert rows.sort(1, ids) == sorted(ids)
    sizes = rows.finish()
    rows.close()
    assert sizes == {path.stem: path.stat().st_size for path in tmp_path.iterdir()}
    for name in ("images", "labels", "masks"):
        values = np.load(tmp_path / f"{name}.npy").reshape(6, -1)[:, 0].tolist()
        assert values == [7, *map(ord, "abcde")]


@pytest.mark.parametrize(
    "number, why",
    [(errno.ENOSPC, "is full"), (errno.EDQUOT, "is over its quota"), (errno.EFBIG, "takes no more")],
)
def test_a_full_cache_is_named_before_decoding(load, make_fgvc, tmp_path, monkeypatch, number, why):
    def refuse(*args):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    monkeypatch.setattr(cache_writer, "_decoded", None)
    words = (
        rf"the disk of {tmp_path}.* {why} \(0 MiB of decoded images\): .*set data.cache_dir \(or JSAE_CACHE\)"
    )
    with pytest.raises(disks.NoRoom, match=words):
        load(make_fgvc())
    assert caches(tmp_path) == []


def test_a_disk_that_cannot_reserve_says_so_when_it_is_full(load, make_fgvc, tmp_path, monkeypatch):
    """Rows are written, not mapped: a mapped page without room would kill the process."""

    def refuse(*args):
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", refuse, raising=False)
    folder = make_fgvc()
    load(folder, image_size=8)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(disks.NoRoom, match="decoded images"):
            load(folder, image_size=64)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_lab_shares_a_cache_whatever_makes_temporary_folders_private(load, make_fgvc, tmp_path):
    before = os.umask(0o002)
    try:
        load(make_fgvc(), cache_dir=str(tmp_path / "shared"))
    finally:
        os.umask(before)
    for path in (tmp_path / "shared").rglob("*"):
        wanted = 0o775 if path.is_dir() else 0o664
        assert path.stat().st_mode & 0o777 == wanted, path


@pytest.mark.parametrize("home", ["/proc/nowhere", None])
def test_without_a_home_folder_the_setting_is_named(monkeypatch, make_fgvc, home):
    monkeypatch.delenv("JSAE_CACHE", raising=False)
    if home is None:
        monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without an entry
    else:
        monkeypatch.setenv("HOME", home)
    with pytest.raises(OSError, match=r"the cache folder ~/.cache/jsae cannot be made .*set data.cache_dir"):
        cache.load_splits(kind="fgvc_aircraft", dir=str(make_fgvc()), image_size=8)


def test_synthetic_aircraft_comes_with_masks(tmp_path):
    def load(**settings):
        settings = {"seed": 1, "n_train": 5, "n_val": 2, "n_test": 3} | settings
        return cache.load_splits(
            kind="synthetic_aircraft", image_size=32, cache_dir=str(tmp_path), banner_px=20, **settings
        )

    split = load()["test"]
    assert split.part_names == tuple(drawing.PART_NAMES)
    assert split.class_names == tuple(variant.name for variant in drawing.VARIANTS)
    assert split.masks.dtype == np.uint16 and split.boxes is None
    for index, (image, masks) in enumerate(zip(split.images, split.masks, strict=True)):
        drawn = drawing.draw(1, "test", index, 32)
        np.testing.assert_array_equal(image, drawn.image)
        assert split.labels[index] == drawn.label
        for part in range(len(split.part_names)):
            np.testing.assert_array_equal(masks >> part & 1, drawn.part_masks[part])
        np.testing.assert_array_equal(masks >> 15, drawn.aircraft_mask)
    assert (load(seed=2)["test"].images != split.images).any()


def test_real_photos(load, photos_dir):
    splits = load(photos_dir, image_size=32)
    assert {name: len(split.ids) for name, split in splits.items()} == {
        "train": 2100,
        "val": 600,
        "test": 889,
    }
    assert len(splits["train"].class_names) == 30
    assert set(collections.Counter(splits["train"].labels.tolist())) == set(range(30))
    assert splits["train"].images.std() > 30


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cifar"}, "data.kind='cifar' is unknown; valid: synthetic_aircraft, fgvc_aircraft"),
        ({"train_split": "all"}, "data.train_split='all' is unknown; valid: train, trainval"),
        ({"fit": "pad"}, "data.fit='pad' is unknown; valid: squash, crop"),
        ({"on_bad_image": "ask"}, "data.on_bad_image='ask' is unknown; valid: error, skip"),
        ({"image_size": 0}, "data.image_size=0 must be >= 1"),
        ({"cache_dir": "gs://b/c"}, "data.cache_dir='gs://b/c': images are memory-mapped"),
        ({"dir": ""}, "config.data.dir is empty, but data.kind=fgvc_aircraft needs the photos"),
    ],
)
def test_wrong_settings_are_named(tmp_path, settings, message):
    settings = {"kind": "fgvc_aircraft", "image_size": 8, "cache_dir": str(tmp_path)} | settings
    with pytest.raises(ValueError) as error:
        cache.load_splits(**settings)
    assert message in str(error.value)


def test_unknown_label_level_lists_those_that_exist(load, make_fgvc):
    folder = make_fgvc()
    with pytest.raises(
        ValueError, match="label_level='type' is unknown; valid: variant, family, manufacturer"
    ):
        load(folder, label_level="type")
    (folder / "data" / "families.txt").unlink()
    with pytest.raises(ValueError, match="label_level='family' is unknown; valid: variant, manufacturer"):
        load(folder, label_level="family")


def test_default_cache_folder(tmp_path, monkeypatch, make_fgvc):
    monkeypatch.setenv("JSAE_CACHE", str(tmp_path / "elsewhere"))
    cache.load_splits(kind="fgvc_aircraft", dir=str(make_fgvc(per_class=1)), image_size=4)
    assert list((tmp_path / "elsewhere").glob("fgvc_aircraft-*"))
