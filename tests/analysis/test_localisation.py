"""Cells of masks and boxes by hand, and parts whose channels are known, through the whole of localisation."""

import functools
import types

import numpy as np
import pytest

from jsae.activations.store import make_batches
from jsae.analysis import cells, directions, localisation, parts, readouts
from jsae.tables import documentation
from tests.analysis import toy

STRIDE, GRID = 4, (3, 4)
PARTS = ("wing", "tail", "never")


def a_split(n=40, seed=0):
    """Aircraft of six cells; wing and tail are one of their cells each, the tail in every other image."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, GRID[0] * STRIDE, GRID[1] * STRIDE), np.uint16)
    for image in range(n):
        x = rng.integers(0, 2)
        masks[image, :8, x * STRIDE : (x + 3) * STRIDE] = 1 << 15
        spots = rng.permutation(6)[:2]
        for bit, spot in enumerate(spots[: 1 + image % 2]):
            top, left = spot // 3 * STRIDE, (x + spot % 3) * STRIDE
            masks[image, top : top + STRIDE, left : left + STRIDE] |= 1 << bit
    return types.SimpleNamespace(name="x", masks=masks, boxes=None, part_names=PARTS, ids=range(n))


class Store:
    """Channel p is 1 in the cells of part p, with noise; channel 2 is noise."""

    folder, n_channels, grid, site = "here", 3, GRID, "stage4"

    def __init__(self, split, seed):
        self.n_images, self.image_ids = len(split.masks), split.ids
        positive, _ = cells.PartCells(split, GRID, STRIDE)(np.arange(self.n_images))
        rng = np.random.default_rng(seed)
        self.labels = np.zeros(self.n_images, np.int32)
        self._acts = positive[..., :3].reshape(-1, *GRID, 3) + rng.uniform(0, 0.4, (self.n_images, *GRID, 3))

    def read(self, start, stop):
        return self._acts[start:stop].astype(np.float32)

    def batches(self, batch_size, images=None):
        return make_batches(self, batch_size, images)


@pytest.fixture(scope="module")
def setting():
    splits = {"train": a_split(seed=1), "test": a_split(seed=2)}
    stores = {name: Store(split, seed) for seed, (name, split) in enumerate(splits.items())}
    return splits, stores, cells.of_stores(splits, stores, STRIDE)


@pytest.fixture(scope="module")
def measured(setting):
    _, stores, where = setting
    rows = np.concatenate([np.eye(3), -np.eye(3)])
    study = toy.Study(directions.Directions(rows, np.zeros(3)), stores)
    return parts.compare(study, where, functools.partial(study.run_pass, batch_size=16), seed=0)


def test_foreground_cells_from_masks_and_boxes():
    masks = np.zeros((2, 24, 32), np.uint16)
    masks[0, 8:16, 16:24] = 1 << 15
    masks[0, :8, :8] = 1  # a part bit says nothing of the aircraft
    masks[1, :8, 0] = 1 << 15  # 8 of 64 pixels: 12.5%
    masks[1, 8:14, 8] = 1 << 15  # 6 of 64: 9.4%
    split = types.SimpleNamespace(masks=masks, boxes=None, part_names=("a",))
    on = cells.foreground_cells(split, (3, 4), 8)(np.array([0, 1]))
    assert np.argwhere(on).tolist() == [[0, 1, 2], [1, 0, 0]]
    boxes = np.array([[16, 8, 24, 16], [0, 0, 0.5, 8]], np.float32)
    split = types.SimpleNamespace(masks=None, boxes=boxes)
    where = cells.PartCells(split, (3, 4), 8)
    assert np.argwhere(where.on_foreground(np.array([0, 1]))).tolist() == [[0, 1, 2]]
    positive, negative = where(np.array([0, 1]))
    assert where.names == ("foreground",) and positive.shape == (2, 12, 1)
    assert np.argwhere(~(positive | negative)[..., 0]).tolist() == [[1, 0]]  # 6% of it: neither
    assert cells.foreground_cells(types.SimpleNamespace(masks=None, boxes=None), (3, 4), 8) is None


def test_a_cell_that_is_hardly_covered_counts_as_neither():
    masks = np.full((1, 8, 32), 1 << 15, np.uint16)
    masks[0, :, :8] |= 1  # the part: all of cell 0, 9.4% of cell 1, nothing of cells 2 and 3
    masks[0, :6, 8] |= 1
    masks[0, :, 24:] &= 1  # cell 3: 9.4% of it foreground, and so no part of the comparison
    masks[0, :6, 24] = 1 << 15
    split = types.SimpleNamespace(masks=masks, boxes=None, part_names=("a",))
    positive, negative = cells.PartCells(split, (1, 4), 8)(np.array([0]))
    assert positive[0].T.tolist() == [[True, False, False, False], [True, True, True, False]]
    assert negative[0].T.tolist() == [[False, False, True, False], [False, False, False, False]]


def test_a_part_is_compared_with_the_rest_of_the_aircraft_where_it_is(setting):
    splits, _, where = setting
    positive, negative = where["test"](np.arange(4))
    assert where["test"].names == (*PARTS, "foreground")
    np.testing.assert_array_equal(positive[..., 0].sum(1), [1, 1, 1, 1])
    np.testing.assert_array_equal(negative[..., 0].sum(1), [5, 5, 5, 5])
    np.testing.assert_array_equal(positive[..., 1].sum(1), [0, 1, 0, 1])
    np.testing.assert_array_equal(negative[..., 1].sum(1), [0, 5, 0, 5])  # no tail: no cell counts
    assert not positive[..., 2].any() and not negative[..., 2].any()
    np.testing.assert_array_equal(positive[..., 3].sum(1) + negative[..., 3].sum(1), [12, 12, 12, 12])
    np.testing.assert_array_equal(
        cells.parts_visible(splits["test"], np.arange(2)), [[True, False, False], [True, True, False]]
    )


def test_the_channel_of_a_part_finds_it(measured):
    columns, table = measured
    assert columns["part"] == [*PARTS, "foreground"]
    np.testing.assert_array_equal(columns["feature"][:2], [0, 1])  # chosen on train
    np.testing.assert_array_equal(columns["auroc"][:2], 1.0)
    np.testing.assert_array_equal(columns["pointing"][:2], 1.0)
    np.testing.assert_array_equal(columns["n_images"], [40, 20, 0, 40])
    assert np.isnan(columns["auroc"][2])
    assert (columns["centre_auroc"][:2] < 0.85).all()
    for kind in readouts.KINDS:
        assert (columns[f"{kind}_auroc"][:2] == 1).all() and np.isnan(columns[f"{kind}_auroc"][2])
    rows = table.to_pylist()
    assert len(rows) == 6 * 4 and rows[4]["feature"] == 1 and rows[5]["part"] == "tail"
    assert rows[5]["auroc"] == 1 and rows[1]["auroc"] < 0.9 and rows[6]["auroc"] is None
    best = parts.TABLE.make(columns)
    assert all(documentation(table).values()) and all(documentation(best).values())


def test_random_directions_are_chosen_on_train_too(setting, measured):
    _, stores, where = setting
    columns, _ = measured
    random, images = directions.random(np.zeros(3), 6, 0), np.arange(40)
    train, test = (
        localisation.score(
            np.asarray(random.encode(stores[s].read(0, 40))).reshape(40, 12, 6), where[s], images
        )
        for s in ("train", "test")
    )
    for part in (0, 1, 3):
        chosen = train.auroc[:, part].argmax()
        assert columns["random_feature"][part] == chosen
        assert columns["random_auroc"][part] == test.auroc[chosen, part]
        assert columns["random_pointing"][part] == test.pointing[chosen, part]


def test_the_images_looked_at_are_spread_evenly_and_fit(monkeypatch):
    store = types.SimpleNamespace(grid=(2, 2), n_images=5000)
    images = localisation.images_of(store, 3)
    assert len(images) == localisation.MAX_IMAGES and images[0] == 0 and images[-1] == 4999
    monkeypatch.setattr(localisation, "_VALUES", 2 * 2 * 3 * 10)
    assert len(localisation.images_of(store, 3)) == 10


def test_priors_know_where_parts_lie_and_nothing_else(setting):
    _, _, where = setting
    images = np.arange(40)
    found = localisation.priors(where["train"], where["test"], images, images, GRID)
    foreground = PARTS.index("never") + 1
    # row 2 is never on the aircraft, columns 1 and 2 always are: the share of train says so
    assert found["position"][foreground] > 0.9 > found["position"][0]
    assert 0.5 < found["centre"][foreground] < found["position"][foreground]


def test_other_images_than_the_stores_are_refused(setting):
    splits, stores, _ = setting
    other = types.SimpleNamespace(ids=range(39), masks=splits["test"].masks, boxes=None, part_names=PARTS)
    with pytest.raises(ValueError, match=r"39 test images of config\.data are not the 40"):
        cells.of_stores({"train": splits["train"], "test": other}, stores, STRIDE)
