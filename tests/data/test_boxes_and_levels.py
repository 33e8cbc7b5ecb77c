"""Photos cut to their box, and the coarser classes that variants belong to."""

import numpy as np
import pytest

from jsae.data import cache, decode
from jsae.data.fgvc_aircraft import lists
from jsae.data.fgvc_aircraft.levels import parents
from tests.data.fgvc_folder import CLASSES, jpeg, write_folder


@pytest.fixture
def load(tmp_path):
    """load(folder, **settings) of an FGVC folder at 16 px."""

    def load(folder, **settings):
        settings = {
            "image_size": 16,
            "cache_dir": str(tmp_path / "cache"),
            "kind": "fgvc_aircraft",
        } | settings
        return cache.load_splits(dir=str(folder), **settings)

    return load


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((1, 1, 60, 40), (0, 40, 0, 60)),  # rows, columns
        ((11, 5, 20, 8), (4, 8, 10, 20)),
        ((0, 1, 60, 60), (0, 40, 0, 60)),  # xmin = 0 occurs, and the box reaches into the banner
        ((60, 40, 60, 40), (39, 40, 59, 60)),
    ],
)
def test_crop_is_one_based_inclusive_and_clamped(box, expected):
    rgb = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    top, bottom, left, right = expected
    np.testing.assert_array_equal(decode.crop_box(rgb, box), rgb[top:bottom, left:right])


@pytest.mark.parametrize("box", [(61, 1, 80, 5), (1, 41, 5, 44), (9, 9, 8, 12), (-5, 1, 0, 3)])
def test_a_box_outside_the_photo_is_a_bad_image(box):
    with pytest.raises(decode.BadImage, match=r"holds nothing of the 60 x 40 photo"):
        decode.crop_box(np.zeros((40, 60, 3), np.uint8), box)


@pytest.mark.parametrize("fit", decode.FITS)
def test_photos_are_cut_to_their_box_before_they_are_fitted(load, tmp_path, fit):
    folder = write_folder(tmp_path / "photos", boxes=True)  # photos of 30 x 40
    path = folder / "data" / "images_box.txt"
    path.write_text(path.read_text().replace(" 0 1 15 40", " 11 6 25 40"))
    whole, cut = load(folder, banner_px=4, fit=fit), load(folder, banner_px=4, fit=fit, crop="box")
    split = cut["train"]
    for id_, image, box in zip(split.ids, split.images, split.boxes, strict=True):
        rgb = decode.decode_rgb(jpeg(int(id_)), banner_px=4)[5:36, 10:25]
        np.testing.assert_array_equal(image, decode.fit_square(rgb, 16, fit))
        assert box.tolist() == [0, 0, 16, 16]  # the aircraft fills the square
    assert split.ids == whole["train"].ids and (split.images != whole["train"].images).any()
    assert len(list((tmp_path / "cache").glob("fgvc_aircraft-*"))) == 2  # crop is part of the key


def test_a_box_that_misses_its_photo_follows_on_bad_image(load, tmp_path):
    folder = write_folder(tmp_path / "photos", boxes=True)
    path = folder / "data" / "images_box.txt"
    path.write_text(path.read_text().replace("0009000 0 1 15 40", "0009000 1 38 15 40"))  # in the banner
    assert len(load(folder, banner_px=4)["train"].ids) == 6  # without crop it does not matter
    with pytest.raises(
        ValueError, match=r"0009000\.jpg: its box \(1, 38, 15, 40\) holds nothing of the 30 x 36"
    ):
        load(folder, banner_px=4, crop="box")
    split = load(folder, banner_px=4, crop="box", on_bad_image="skip")["train"]
    assert [id_ for id_, _ in split.skipped] == ["0009000"]


def test_crop_without_boxes_is_an_error(load, tmp_path):
    folder = write_folder(tmp_path / "photos")
    for kind in ("fgvc_aircraft", "image_folder"):
        with pytest.raises(ValueError, match=r"data.crop=box needs boxes, which .*photos does not have"):
            load(folder, crop="box", kind=kind)
    sizes = {"n_train": 1, "n_val": 1, "n_test": 1}
    with pytest.raises(
        ValueError, match=r"data.crop=box needs boxes, which synthetic_aircraft does not have"
    ):
        load("", crop="box", kind="synthetic_aircraft", **sizes)
    with pytest.raises(ValueError, match=r"data.crop='square' is unknown; valid: none, box"):
        load(folder, crop="square")


def test_a_split_knows_the_coarser_classes(load, tmp_path):
    folder = write_folder(tmp_path / "photos")
    split, family = load(folder)["test"], load(folder, label_level="family")["test"]
    assert split.class_names == CLASSES and list(split.levels) == ["family", "manufacturer"]
    names, parent = split.levels["family"]
    assert names == ("Boeing 707", "F-16") and parent.tolist() == [0, 1, 1] and parent.dtype == np.int32
    np.testing.assert_array_equal(parent[split.labels], family.labels)
    assert split.levels["manufacturer"][1].tolist() == [0, 1, 1]
    assert list(family.levels) == ["manufacturer"] and family.levels["manufacturer"][1].tolist() == [0, 1]
    assert load(folder, label_level="manufacturer")["test"].levels == {}


def test_a_class_without_photos_has_no_parent(tmp_path):
    folder = write_folder(tmp_path / "photos") / "data"
    with open(folder / "variants.txt", "a") as file:
        file.write("Concorde\n")
    assert parents(lists.read_lists(folder))["variant"]["family"].tolist() == [0, 1, 1, -1]


def test_a_class_of_two_families_is_named(tmp_path):
    folder = write_folder(tmp_path / "photos") / "data"
    path = folder / "images_family_val.txt"
    path.write_text(path.read_text().replace("0008971 F-16", "0008971 Boeing 707"))
    with pytest.raises(lists.ListError) as error:
        parents(lists.read_lists(folder))
    assert "variant 'F-16A/B' belongs to two classes of family: 'Boeing 707' (image '0008971')" in str(
        error.value
    )


def test_the_official_hierarchy(annotations_dir, tmp_path):
    """The official lists, photos replaced by empty files: only the lists are read."""
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for path in (annotations_dir / "data").glob("*.txt"):
        (data / path.name).write_bytes(path.read_bytes())
    for split in lists.SPLITS:
        for line in (data / f"images_variant_{split}.txt").read_text("utf-8").splitlines():
            (data / "images" / f"{line.split(' ')[0]}.jpg").touch()
    read = lists.read_lists(data)
    found = parents(read)
    assert list(found) == ["variant", "family", "manufacturer"] and found["manufacturer"] == {}
    for coarse, n in (("family", 70), ("manufacturer", 30)):
        parent = found["variant"][coarse]
        assert len(parent) == 100 and sorted(set(parent.tolist())) == list(range(n))

    def of(level, name, coarse):
        return read.class_names[coarse][found[level][coarse][read.class_names[level].index(name)]]

    assert of("variant", "707-320", "family") == "Boeing 707"
    assert of("variant", "F-16A/B", "manufacturer") == "Lockheed Martin"
    assert of("family", "Boeing 707", "manufacturer") == "Boeing"
    through = found["family"]["manufacturer"][found["variant"]["family"]]
    np.testing.assert_array_equal(through, found["variant"]["manufacturer"])
