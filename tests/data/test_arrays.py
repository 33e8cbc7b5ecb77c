"""Own arrays: keys, files that stay on disk, and errors that name key, row and number."""

import warnings
import zipfile

import numpy as np
import pytest

from jsae.data import arrays, cache, decode, npy_files

SHARES = {"val": 0.2, "test": 0.2}
N = 20


def labels():
    return np.arange(N) % 4


def acts(*shape):
    return np.random.default_rng(0).normal(size=(N, *shape)).astype(np.float32)


def pictures():
    return np.random.default_rng(1).integers(0, 256, (N, 10, 8, 3), np.uint8)


def read(path, seed=0, shares=SHARES):
    return arrays.read(path, seed=seed, shares=shares)


def save(folder, **keys):
    np.savez(folder / "set.npz", **keys)
    return folder / "set.npz"


@pytest.fixture
def load(tmp_path):
    """load(**keys) -> splits of an .npz with these keys at 8 px."""

    def load(settings=None, **keys):
        settings = {"val_share": 0.2, "test_share": 0.2, "image_size": 8} | (settings or {})
        path = str(save(tmp_path, **keys))
        return cache.load_splits(kind="arrays", dir=path, cache_dir=str(tmp_path / "cache"), **settings)

    return load


def test_every_kind_of_file_holds_the_same(tmp_path):
    x = acts(3, 2, 5)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "activations.npy", x)
    np.save(tmp_path / "folder" / "labels.npy", labels())
    np.save(tmp_path / "bare.npy", x)
    np.savez_compressed(tmp_path / "small.npz", activations=x, labels=labels())
    np.savez(tmp_path / "fortran.npz", activations=np.asfortranarray(x), labels=labels())
    found = [read(tmp_path / name) for name in ("folder", "small.npz", "fortran.npz")]
    found += [read(save(tmp_path, activations=x, labels=labels())), read(tmp_path / "bare.npy")]
    for each in found:
        np.testing.assert_array_equal(each.activations, x)
        assert each.images is None and each.ids[3] == "000003"
    for each in found[:-1]:
        assert each.class_names == ("class 0", "class 1", "class 2", "class 3")
        assert each.labels.tolist() == labels().tolist()
    assert found[-1].class_names == (arrays.NO_LABEL,) and set(found[-1].labels.tolist()) == {-1}
    on_disk = [isinstance(each.activations, np.memmap) for each in found]
    assert on_disk == [True, False, True, True, True]  # one is compressed


def test_vectors_are_a_grid_of_one_cell_and_keep_their_values(tmp_path):
    x = acts(6)
    found = read(save(tmp_path, activations=x))
    assert found.activations.shape == (N, 1, 1, 6)
    np.testing.assert_array_equal(found.activations[:, 0, 0], x)
    assert isinstance(found.activations, np.memmap)


def test_names_splits_and_ids_are_taken_where_given(tmp_path):
    split = np.array(["train"] * 10 + ["val"] * 4 + ["test"] * 6)[::-1]
    names = np.array(["Flügel", "A/B", "<b>", "東京"])
    path = save(
        tmp_path, activations=acts(2), labels=labels(), class_names=names, split=split, ids=np.arange(N) + 7
    )
    found = read(path)
    assert found.class_names == tuple(names) and found.ids[0] == "7"
    assert {name: rows.tolist() for name, rows in found.rows.items()} == {
        "train": list(range(10, 20)),
        "val": list(range(6, 10)),
        "test": list(range(6)),
    }
    by_name = read(save(tmp_path, activations=acts(2), labels=names[labels()], ids=split_ids()))
    assert by_name.class_names == tuple(sorted(names.tolist()))
    assert [by_name.class_names[i] for i in by_name.labels] == names[labels()].tolist()


def split_ids():
    return np.array([f"image {i}" for i in range(N)])


def test_splits_are_drawn_by_class_from_the_seed(tmp_path):
    path = save(tmp_path, activations=acts(2), labels=labels())
    rows = read(path).rows
    assert {name: len(r) for name, r in rows.items()} == {"train": 12, "val": 4, "test": 4}
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(N))
    assert np.bincount(labels()[rows["test"]]).tolist() == [1, 1, 1, 1]
    assert {k: v.tolist() for k, v in read(path, seed=1).rows.items()} != {
        k: v.tolist() for k, v in rows.items()
    }
    assert read(path).identity != read(path, seed=1).identity


def test_images_become_a_data_set_like_photos(load):
    x = pictures()
    for name, split in load(images=x, labels=labels()).items():
        assert split.name == name and split.class_names[2] == "class 2"
        for id_, label, image in zip(split.ids, split.labels, split.images, strict=True):
            np.testing.assert_array_equal(image, decode.fit_square(x[int(id_)], 8, "squash"))
            assert label == labels()[int(id_)]
    cut = load({"banner_px": 4}, images=x, labels=labels())["train"]
    np.testing.assert_array_equal(cut.images[0], decode.fit_square(x[int(cut.ids[0]), :-4], 8, "squash"))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_images_in_either_range_are_the_uint8_ones(load, dtype):
    expected = load(images=pictures(), labels=labels())["test"].images
    for x in (pictures().astype(dtype), (pictures() / 255).astype(dtype)):
        found = load(images=x, labels=labels())["test"].images.astype(int)
        assert np.abs(found - expected).max() <= (1 if dtype == np.float16 else 0)  # 11 bits of 0..1


def test_a_bad_row_is_a_bad_image(load, caplog):
    x = (pictures() / 255).astype(np.float32)
    x[7, 2, 2, 0], x[9, 0, 0, 0] = np.nan, -0.5
    with pytest.raises(ValueError, match=r"set\.npz: images\[(7|9)\]: its pixels are"):
        load(images=x, labels=labels())
    splits = load({"on_bad_image": "skip"}, images=x, labels=labels())
    skipped = dict(item for split in splits.values() for item in split.skipped)
    assert skipped["000007"] == "its pixels are not finite (NaN or infinity)"
    assert skipped["000009"].startswith("its pixels are in -0.5..")
    assert sum(len(split.ids) for split in splits.values()) == N - 2


def test_activations_are_no_images_and_say_what_to_set(load):
    with pytest.raises(ValueError, match=r"holds activations, not images.*config.activations.site=arrays"):
        load(activations=acts(2))
    with pytest.raises(ValueError, match=r"images without labels; a classifier needs the key labels"):
        load(images=pictures())


def test_objects_are_never_unpickled(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    trap = np.array([Trap()] * N, dtype=object)
    np.savez(tmp_path / "set.npz", activations=acts(2), ids=trap)
    np.save(tmp_path / "trap.npy", trap)
    np.savez_compressed(tmp_path / "packed.npz", activations=acts(2), ids=trap)
    for name in ("set.npz", "trap.npy", "packed.npz"):
        with pytest.raises(ValueError, match=r"holds Python objects \(dtype object\), which are never read"):
            read(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


def bad(**changes):
    keys = {"activations": acts(2), "labels": labels()} | changes
    return {key: value for key, value in keys.items() if value is not None}


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (bad(activations=None), "holds neither images nor activations (its keys: labels)"),
        (bad(images=pictures()), "holds both images and activations"),
        (bad(label=labels()), "unknown keys label; valid: images, activations, labels"),
        (bad(activations=acts(2, 3)), "activations has shape (20, 2, 3), expected [N,C] or [N,H,W,C]"),
        (bad(activations=acts(0)), "activations has shape (20, 0), expected"),
        (bad(activations=acts(64, 7, 7)), "looks like [N,C,H,W]; expected [N,H,W,C]: np.moveaxis"),
        (bad(activations=acts(2).astype(int)), "activations has dtype int64, expected float16"),
        (bad(activations=acts(2)[:0], labels=labels()[:0]), "there are no rows"),
        (bad(labels=labels()[:5]), "labels has shape (5,), expected (20,), one for each row"),
        (bad(labels=labels()[:, None]), "labels has shape (20, 1), expected (20,)"),
        (bad(labels=labels() - 1), "labels[0] is -1, expected 0 or more (5 such rows)"),
        (bad(class_names=np.array(["a", "b"])), "labels[2] is 2, expected 0..1, the 2 class_names (10 such"),
        (bad(labels=labels() * 1.0), "labels has dtype float64, expected integers or strings"),
        (bad(labels=labels() * 10**9), "labels[3] is 3000000000, but there are 20 rows"),
        (
            bad(labels=np.array(["a", "b"] * 10), class_names=np.array(["a", "c"])),
            "labels[1] is 'b', which is not one of class_names: 'a', 'c'",
        ),
        (bad(class_names=np.array(["a"] * 4)), "class_names holds 'a' twice"),
        (bad(class_names=np.arange(4)), "class_names has dtype int64, shape (4,); expected [N] strings"),
        (bad(ids=np.array(["x", "y"] * 10)), "ids[2] is 'x', as ids[0] is; ids must be distinct"),
        (bad(split=np.array(["train", "left"] * 10)), "split[1] is 'left', expected one of train, val, te"),
        (bad(split=np.array(["val", "valid"] * 10)), "split: 'val' and 'valid' both mean val; join them"),
        (bad(split=np.array(["test", "val"] * 10)), "split 'train' has no row; there are 20 rows in all"),
        ({"images": pictures()[..., :2], "labels": labels()}, "images has shape (20, 10, 8, 2), expected"),
        ({"images": pictures() > 99, "labels": labels()}, "has dtype bool, expected uint8 or a float:"),
        ({"images": pictures().astype("c8"), "labels": labels()}, "has dtype complex64, expected uint8"),
        ({"images": np.moveaxis(pictures(), -1, 1), "labels": labels()}, "np.moveaxis(images, 1, -1)"),
        ({"images": np.moveaxis(pictures()[..., :1], -1, 1), "labels": labels()}, "looks like [N,C,H,W]"),
        ({"images": pictures().reshape(N, -1), "labels": labels()}, "images.reshape(len(images), H, W, 3)"),
        ({"images": pictures() / 127.5 - 1, "labels": labels()}, "-1..1: (images + 1) / 2"),
        ({"images": pictures() / 50 - 2.1, "labels": labels()}, "Standardised: images * std + mean"),
        ({"images": pictures() * np.uint16(257), "labels": labels()}, "More bits: (images >> 8).astype"),
        (bad(activations=acts(2048, 7, 9)), "looks like [N,C,H,W]; expected [N,H,W,C]: np.moveaxis(activa"),
        (bad(activations=acts(12, 9, 9)), "If its channels are last: layout='NHWC'"),
        (bad(activations=acts(2048, 1, 1)), "looks like [N,C,H,W]"),
        (bad(activations=acts(2, 2, 3), layout=np.array("HWCN")), "layout is 'HWCN', expected one of NHWC"),
        (bad(activations=acts(2, 2, 3), layout=np.arange(2)), "expected one of NHWC, NCHW"),
        (bad(activations=acts(197, 64)), "tokens [N,T,C]: drop the class token"),
        (bad(activations=acts(2).view("V4")), "(bfloat16 does not survive np.save)"),
        (bad(labels=np.eye(4)[labels()]), "one-hot labels: labels.argmax(1)"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_named(tmp_path, keys, message):
    path = save(tmp_path, **keys)
    with pytest.raises(ValueError) as error:
        read(path)
    assert message in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"PK\x03\x04 no", "x.npz", "is no .npz file, or it is damaged"),
        (b"text", "x.npy", "is no .npy array, or it is damaged"),
        (b"", "x.npy", "is no .npy array, or it is damaged"),
        (b"text", "x.csv", "is neither .npz, .npy nor folder"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, content, name, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as error:
        read(tmp_path / name)
    assert message in str(error.value) and name in str(error.value)


def test_truncated_files_are_named(tmp_path):
    np.save(tmp_path / "x.npy", acts(50))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"x\.npy is no \.npy array, or it is damaged"):
        read(tmp_path / "x.npy")
    path = save(tmp_path, activations=acts(50))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"set\.npz is no \.npz file, or it is damaged"):
        read(path)


def test_nothing_and_nowhere_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"config.data.dir is empty, but data.kind=arrays needs a file"):
        read("")
    with pytest.raises(FileNotFoundError, match=r"config.data.dir='.*nowhere' does not exist"):
        read(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"data.val_share=0.0 must lie between 0 and 1"):
        read(save(tmp_path, activations=acts(2)), shares={"val": 0.0, "test": 0.2})


def test_a_stored_array_is_mapped_where_it_lies(tmp_path):
    x = acts(4)
    np.savez(tmp_path / "set.npz", first=np.arange(3), activations=x)
    found = npy_files.read(tmp_path / "set.npz", "activations")
    assert isinstance(found, np.memmap) and not found.flags.writeable
    np.testing.assert_array_equal(found, x)
    assert npy_files.names(tmp_path / "set.npz") == ["activations", "first"]


def test_integers_of_any_size_are_taken_as_they_are(load):
    expected = load(images=pictures(), labels=labels())["test"].images
    for dtype in (np.int16, np.uint16, np.int32, np.int64, ">i4"):
        found = load(images=pictures().astype(dtype), labels=labels())["test"].images
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("largest", [1, 255])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, ">f8"])
def test_floats_that_overshoot_their_range_a_little_are_clipped(load, largest, dtype):
    x = (pictures() / 255 * largest).astype(dtype)
    x[:, 2:4, 2:4] = largest * 1.02
    x[:, 4:6, 4:6] = largest * -0.01
    expected = load(images=np.clip(x, 0, largest).astype(dtype), labels=labels())["test"].images
    assert len(np.unique(expected)) > 50
    np.testing.assert_array_equal(load(images=x, labels=labels())["test"].images, expected)


def test_one_image_out_of_range_does_not_change_the_others(load):
    x = pictures() / 255
    expected = load(images=x, labels=labels())
    x[7, 0, 0, 0] = 1e6
    found = load({"on_bad_image": "skip"}, images=x, labels=labels())
    for name, split in found.items():
        assert set(expected[name].ids) - set(split.ids) <= {"000007"}
        for id_, image in zip(split.ids, split.images, strict=True):
            np.testing.assert_array_equal(image, expected[name].images[expected[name].ids.index(id_)])
    assert [i for split in found.values() for i, _ in split.skipped] == ["000007"]


def test_grey_images_and_alpha_and_channels_first_become_rgb(load):
    x = pictures()
    expected = load(images=np.repeat(x[..., :1], 3, -1), labels=labels())["test"].images
    for grey in (x[..., 0], x[..., :1], x[..., 0] / 255):
        np.testing.assert_array_equal(load(images=grey, labels=labels())["test"].images, expected)
    expected = load(images=x, labels=labels())["test"].images
    opaque = np.concatenate([x, np.full_like(x[..., :1], 255)], -1)
    np.testing.assert_array_equal(load(images=opaque, labels=labels())["test"].images, expected)
    clear = load(images=np.concatenate([x, np.zeros_like(x[..., :1])], -1), labels=labels())["test"].images
    assert (clear == 255).all()  # laid over white
    first = np.moveaxis(x, -1, 1)
    found = load(images=first, labels=labels(), layout=np.array("nchw"))["test"].images
    np.testing.assert_array_equal(found, expected)


def test_images_of_zeros_and_ones_are_told(load, caplog):
    load(images=(pictures() > 99).astype(np.uint8), labels=labels())
    assert "hold only 0 and 1, of 0..255: nearly black" in caplog.text


def test_the_layout_of_activations_can_be_said(tmp_path):
    for shape in ((64, 7, 9), (64, 7, 7), (2048, 1, 1), (8, 14, 14)):
        x = acts(*shape)
        found = read(save(tmp_path, activations=x, layout=np.array(["NCHW"]))).activations
        np.testing.assert_array_equal(found, np.moveaxis(x, 1, -1))
        np.testing.assert_array_equal(
            read(save(tmp_path, activations=x, layout=np.array("NHWC"))).activations, x
        )
    for shape in ((7, 7, 64), (7, 9, 64), (9, 7, 8), (14, 14, 3), (1, 1, 5)):
        np.testing.assert_array_equal(
            read(save(tmp_path, activations=acts(*shape))).activations, acts(*shape)
        )


@pytest.mark.parametrize(
    ("words", "drawn"),
    [
        (("train", "test"), "val"),
        (("train", "val"), "test"),
        (("TRAIN", "Testing"), "val"),
        (("training", "valid"), "test"),
        ((b"Train", b"eval"), "val"),
    ],
)
def test_a_split_that_is_missing_is_drawn_from_train(tmp_path, caplog, words, drawn):
    split = np.array([words[0]] * 15 + [words[1]] * 5)
    rows = read(save(tmp_path, activations=acts(2), labels=labels(), split=split)).rows
    (given,) = {"val", "test"} - {drawn}
    assert rows[given].tolist() == list(range(15, 20)) and len(rows[drawn]) == 4
    assert sorted([*rows["train"], *rows[drawn]]) == list(range(15))
    assert f"{drawn} drawn from train with seed 0: 11 train" in caplog.text
    other = read(save(tmp_path, activations=acts(2), labels=labels(), split=split), seed=3)
    assert other.rows[drawn].tolist() != rows[drawn].tolist()
    with pytest.raises(ValueError, match=f"data.{drawn}_share=0 must lie between"):
        read(tmp_path / "set.npz", shares={"val": 0, "test": 0})


def test_one_image_in_two_splits_is_an_error_that_names_both(tmp_path, caplog):
    x, split = pictures(), np.array(["train"] * 12 + ["val"] * 4 + ["test"] * 4)
    x[3], x[4] = 0, 0  # blank images are no copies
    x[14, 5:] = x[5, 5:]  # nor are those that are equal in part
    x[1] = x[0]
    read(save(tmp_path, images=x, labels=labels(), split=split))
    assert "1 images are there twice or more, with equal pixels:\n  row 0 = row 1" in caplog.text
    x[17] = x[2]
    with pytest.raises(
        ValueError, match=r"1 images lie in two splits.*\n  row 2 \(id 'image 2'\) = row 17 \("
    ):
        read(save(tmp_path, images=x, labels=labels(), split=split, ids=split_ids()))
    for seed in range(5):  # drawn: they stay together
        rows = read(save(tmp_path, images=x, labels=labels()), seed=seed).rows
        for one, other in ((0, 1), (2, 17)):
            assert [one in its for its in rows.values()] == [other in its for its in rows.values()]


def test_what_newcomers_save_is_read_or_told_how_to_save(tmp_path):
    x = acts(3, 2, 5)
    np.savez(tmp_path / "SET.NPZ", activations=x)  # numpy adds .npz
    (tmp_path / "SET.NPZ.npz").rename(tmp_path / "SET.NPZ")
    np.testing.assert_array_equal(read(tmp_path / "SET.NPZ").activations, x)
    odd = tmp_path / "[k=16] 100%20 *"
    (odd / "@eaDir").mkdir(parents=True)
    np.save(odd / "activations.npy", x)
    for name in ("._activations.npy", ".labels.npy"):
        (odd / name).write_bytes(b"x")
    np.testing.assert_array_equal(read(odd).activations, x)
    with zipfile.ZipFile(tmp_path / "mac.npz", "w") as archive:
        archive.write(odd / "activations.npy", "activations.npy")
        archive.writestr("__MACOSX/._activations.npy", b"x")
    np.testing.assert_array_equal(read(tmp_path / "mac.npz").activations, x)
    for dtype in (object, np.dtypes.StringDType()):
        texts = np.array(["a", "b"] * 10, dtype)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # numpy's, that it pickles
            np.savez(tmp_path / "set.npz", activations=x, labels=texts)
        with pytest.raises(ValueError, match=r"never read.*np.asarray\(labels\).astype\(str\)"):
            read(tmp_path / "set.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # numpy's, that older versions do not read it
        np.savez(tmp_path / "set.npz", activations=x, labels=np.zeros(N, [("Größe", int), ("中", int)]))
    with pytest.raises(ValueError, match="for named fields; expected a plain array"):
        read(tmp_path / "set.npz")
    (tmp_path / "acts.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"Other files are saved again: np.savez\('set.npz', activations"):
        read(tmp_path / "acts.pt")
