"""A planted shortcut: the tied sky, the groups, and a network in memory of which all is known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from configs import shortcut as configs
from jsae import metrics
from jsae.classifier.head_only import HeadOnly
from jsae.classifier.model import Head, Params
from jsae.data import cache, tied_sky
from jsae.data.cache import FOREGROUND_BIT
from jsae.data.synthetic_aircraft import drawing
from jsae.data.twins import Twins
from jsae.experiments import shortcut
from jsae.runtime import stages
from jsae.runtime.context import RunContext
from tests.analysis import toy

N_CLASSES = len(drawing.VARIANTS)
GRID, STRIDE_PX = (2, 2), 2  # of the toy: the left half is foreground


def test_twins_have_different_skies_and_in_test_every_class_has_both_alike():
    for pair in Twins(0, 96).pairs:
        assert tied_sky.value_of_class(pair.without) != tied_sky.value_of_class(pair.with_part)
    for tied, split, n_other in (  # of ten images of a class
        ("sky", "train", 0),
        ("sky", "val", 0),
        ("sky", "test", 5),
        ("sky_mostly", "train", 1),
        ("sky_mostly", "test", 5),
        ("sky_untied", "train", 5),
        ("sky_untied", "test", 5),
    ):
        seen = np.zeros((N_CLASSES, 2), int)
        for index in range(10 * N_CLASSES):
            label = drawing.label_of(3, split, index)
            seen[label, tied_sky.value_of(tied, label, split, index)] += 1
        values = [tied_sky.value_of_class(label) for label in range(N_CLASSES)]
        expected = np.where(np.eye(2, dtype=bool)[values], 10 - n_other, n_other)
        np.testing.assert_array_equal(seen, expected, err_msg=f"{tied} {split}")


@pytest.fixture(scope="module")
def tied_splits(tmp_path_factory):
    """The splits of small drawn sets by `tied`."""
    folder = str(tmp_path_factory.mktemp("cache"))
    sizes = {"seed": 3, "n_train": 20, "n_val": 16, "n_test": 40}
    load = lambda tied: cache.load_splits(  # noqa: E731
        kind="synthetic_aircraft", image_size=48, cache_dir=folder, tied=tied, **sizes
    )
    return {tied: load(tied) for tied in ("", "sky", "sky_untied")}


def test_a_tied_sky_changes_what_is_behind_the_aircraft_and_nothing_else(tied_splits):
    plain = tied_splits[""]
    for tied in ("sky", "sky_untied"):
        for name, split in tied_splits[tied].items():
            assert split.ids == plain[name].ids and (split.labels == plain[name].labels).all()
            np.testing.assert_array_equal(split.masks, plain[name].masks)
            on = (split.masks >> FOREGROUND_BIT & 1).astype(bool)
            np.testing.assert_array_equal(split.images[on], plain[name].images[on])
            blue, orange = [], []
            for i, id_ in enumerate(split.ids):
                index = int(id_.split("-")[1])
                value = tied_sky.value_of(tied, split.labels[i], name, index)
                pixels = split.images[i][~on[i]].astype(int)
                (orange if value else blue).append((pixels[:, 0] - pixels[:, 2]).mean())
            assert max(blue) < -10 < 10 < min(orange)  # one red minus blue tells the two apart


def test_the_two_ties_have_one_test_split_and_an_ordinary_set_is_what_it_was(tied_splits):
    tied, untied, plain = (tied_splits[name] for name in ("sky", "sky_untied", ""))
    np.testing.assert_array_equal(tied["test"].images, untied["test"].images)
    assert (tied["train"].images != untied["train"].images).any()
    for name in ("train", "test"):  # sets that are known by other contents: no study mixes them
        assert not set(tied[name].contents) & set(plain[name].contents)
    index = int(plain["test"].ids[7].split("-")[1])
    drawn = drawing.draw(3, "test", index, 48)
    np.testing.assert_array_equal(plain["test"].images[7], drawn.image)


def test_an_ordinary_study_has_the_digest_it_had_before_there_were_ties():
    config = configs.get_config()
    tied = stages.section(config, "classifier")
    config.data.tied = ""
    ordinary = stages.section(config, "classifier")
    del config.data["tied"]
    assert stages.section(config, "classifier") == ordinary != tied
    assert "tied" not in ordinary["data"] and tied["data"]["tied"] == "sky"


def test_photos_cannot_be_tied(tmp_path):
    with pytest.raises(ValueError, match=r"data\.tied='sky' is unknown"):
        cache.load_splits(kind="image_folder", dir=str(tmp_path), image_size=8, tied="sky")
    with pytest.raises(
        ValueError, match=r"config\.data\.tied='sky_untied' is unknown; valid are 'sky', 'sky_mostly'"
    ):
        config = configs.get_config()
        config.data.tied = "sky_untied"
        shortcut.check_config(config)


def test_the_gap_and_the_worst_group_by_hand():
    labels = np.repeat([0, 0, 1, 1], [50, 40, 39, 60])
    values = np.repeat([0, 1, 0, 1], [50, 40, 39, 60])
    correct = np.zeros(189)
    correct[:25] = correct[50:60] = correct[129:] = 1
    groups = metrics.group_accuracies(correct, labels, values, 3)
    expected = [[0.5, 0.25], [np.nan, 1.0], [np.nan, np.nan]]  # 39 images are too few
    np.testing.assert_allclose(groups, expected)
    assert metrics.worst_group(groups) == 0.25
    assert np.isnan(metrics.worst_group(np.full((2, 2), np.nan)))
    assert metrics.gap_recovered(0.2, 0.5, 0.8) == pytest.approx(0.5)
    assert metrics.gap_recovered(0.2, 0.1, 0.8) == pytest.approx(-1 / 6)
    assert np.isnan(metrics.gap_recovered(0.2, 0.5, 0.24))


class TiedStore(toy.Store):
    split = ""

    @property
    def image_ids(self):
        return [f"{self.split}-{i:05d}" for i in range(self.n_images)]


class TiedStudy(toy.Study):
    """Channels 0..15 show the class on the foreground, 16 and 17 the sky off it; the head reads both."""

    site = "arrays"
    model = types.SimpleNamespace(stride_px=lambda site: STRIDE_PX)

    @property
    def params(self):
        kernel = np.zeros((N_CLASSES + 2, N_CLASSES), np.float32)
        kernel[:N_CLASSES] = np.eye(N_CLASSES)
        for label in range(N_CLASSES):
            kernel[N_CLASSES + tied_sky.value_of_class(label), label] = 3.0
        return Params(Head(jnp.asarray(kernel), jnp.zeros(N_CLASSES)), HeadOnly(N_CLASSES + 2, N_CLASSES))

    @property
    def data(self):
        on = np.zeros((4, 4), np.uint16)
        on[:, :2] = 1 << FOREGROUND_BIT
        return {
            split: types.SimpleNamespace(
                masks=np.broadcast_to(on, (store.n_images, 4, 4)),
                boxes=None,
                part_names=(),
                class_names=store.class_names,
            )
            for split, store in self.stores.items()
        }


def tied_store(split, n_blocks):
    n = n_blocks * N_CLASSES
    labels = np.array([drawing.label_of(0, split, i) for i in range(n)], np.int32)
    acts = np.zeros((n, *GRID, N_CLASSES + 2), np.float32)
    for i, label in enumerate(labels):
        acts[i, :, 0, label] = 1.0
        acts[i, :, 0, [j for j in range(N_CLASSES) if j != label]] = 0.5
        acts[i, :, 1, N_CLASSES + tied_sky.value_of("sky", label, split, i)] = 1.0
    store = TiedStore(acts, labels, [f"class {i}" for i in range(N_CLASSES)])
    store.split = split
    return store


@pytest.fixture(scope="module")
def measured():
    study = TiedStudy(
        toy.sae_of_channels(N_CLASSES + 2), {"train": tied_store("train", 8), "test": tied_store("test", 80)}
    )
    return shortcut.measure(study, study.stores["test"].labels, configs.get_config(), RunContext())


def test_removing_the_sky_brings_back_what_it_took(measured):
    rows, found = measured
    by_name = {row["removal"]: row for row in rows if row["removal"] != "random"}
    before, after = by_name["none"], by_name["off_foreground"]
    assert before["tied_accuracy"] == 1 and before["broken_accuracy"] == 0
    assert before["worst_group_accuracy"] == 0 and before["n_groups"] == 2 * N_CLASSES
    assert after["n_features"] == 2 and after["accuracy"] == 1 and after["recovered"] == 1
    assert after["accuracy_lost"] == -0.5 and after["removed_norm"] == pytest.approx(0.5)
    assert by_name["sky"]["n_features"] == 2
    to_mean = by_name["off_foreground_to_mean"]
    assert to_mean["recovered"] == 1
    odd = np.mean([tied_sky.value_of_class(label) for label in range(N_CLASSES)])
    mean = np.array([1 - odd, odd]) / 2  # half of the cells are off the foreground
    norms = [np.linalg.norm(cell - mean) for cell in ([1, 0], [0, 1], [0, 0], [0, 0])]
    assert to_mean["removed_norm"] == pytest.approx(np.mean(norms), abs=1e-5)
    assert by_name["reference"]["accuracy"] == 1
    assert found["feature"] >= N_CLASSES and found["off_share"] == 1
    assert sorted([found["sky_auroc_train"], 1 - found["sky_auroc_train"]]) == [0, 1]
    assert found["sky_auroc_test"] == found["sky_auroc_train"] and found["class_auroc_test"] == 0.5
    assert shortcut.TABLE.of_rows(rows)["recovered"].null_count == 0


def test_matched_random_features_are_others_and_bring_nothing_back(measured):
    random = [row for row in measured[0] if row["removal"] == "random"]
    assert len(random) == shortcut.N_RANDOM and all(row["n_features"] == 2 for row in random)
    assert max(row["broken_accuracy"] for row in random) == 0
    results = shortcut.results_of(measured[0])
    assert results["random"]["recovered"] == 0 and results["off_foreground"]["recovered"] == 1
    lines = shortcut.markdown(shortcut.TABLE.of_rows(measured[0]).to_pylist()).splitlines()
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 2 + len(measured[0])


def test_a_match_is_alive_not_chosen_and_near_in_size():
    size = np.array([1.0, 1.1, 0.0, 0.9, 50.0, 60.0, 1.2, 40.0])
    chosen = np.array([True, False, False, False, True, False, False, False])
    for draw in range(20):
        taken = shortcut.matched(chosen, size, 0, draw)
        assert taken.sum() == 2 and not (taken & chosen).any() and not taken[2]
    assert len({tuple(shortcut.matched(chosen, size, 0, draw)) for draw in range(20)}) > 1
    assert shortcut.matched(~chosen, size, 0, 0).sum() == 2  # no more are left
