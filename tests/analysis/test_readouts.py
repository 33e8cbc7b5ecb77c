"""Directions that know the masks: a plain and a subtle part, by hand."""

import dataclasses

import numpy as np
import pytest

from jsae.analysis import readouts
from jsae.metrics import cell_auroc

CHANNELS = 5


class Store:
    """Vectors [n, 3, 4, C] in memory."""

    n_channels = CHANNELS

    def __init__(self, acts):
        self._acts = acts

    def read(self, start, stop):
        return self._acts[start:stop]


def made_up(seed):
    """(store, part_cells) of 40 images: part 0 shifts three channels, part 1 a small one by a large one."""
    rng = np.random.default_rng(seed)
    acts = rng.normal(size=(40, 3, 4, CHANNELS)) * np.array([10.0, 1, 1, 1, 0.1])
    on_aircraft = rng.random((40, 12)) < 0.7
    parts = np.stack([on_aircraft & (rng.random((40, 12)) < 0.3) for _ in range(3)], -1)
    parts[..., 2] = False  # shown by no image
    acts = acts.reshape(40, 12, CHANNELS)
    acts[..., 1:4] += 2.0 * parts[..., :1]
    acts[..., 4] += 0.3 * parts[..., 1]
    positive = np.concatenate([parts, on_aircraft[..., None]], -1)
    negative = np.concatenate([on_aircraft[..., None] & ~parts, ~on_aircraft[..., None]], -1)
    store = Store(acts.reshape(40, 3, 4, CHANNELS).astype(np.float32))
    return store, lambda images: (positive[images], negative[images])


@pytest.fixture(scope="module")
def cells():
    return {name: readouts.read(*made_up(seed), np.arange(0, 40, 2)) for seed, name in enumerate("ab")}


def test_the_cells_are_those_of_the_images(cells):
    store, where = made_up(0)
    images = np.arange(0, 40, 2)
    np.testing.assert_array_equal(cells["a"].acts, store.read(0, 40)[::2].reshape(-1, CHANNELS))
    np.testing.assert_array_equal(cells["a"].positive, where(images)[0].reshape(-1, 4))
    acts, is_part = cells["a"].of_part(1)
    at = (where(images)[0] | where(images)[1]).reshape(-1, 4)[:, 1]
    assert len(acts) == at.sum() and is_part.sum() == where(images)[0][..., 1].sum()


def test_rows_follow_their_definitions(cells):
    rows = readouts.fit(cells["a"])
    assert tuple(rows) == readouts.KINDS
    acts, is_part = cells["a"].of_part(1)
    np.testing.assert_allclose(
        rows["mean_difference"][1], acts[is_part].mean(0) - acts[~is_part].mean(0), rtol=1e-12
    )
    # the ridge solution is where the gradient of the penalised squares is 0
    x, y = acts - acts.mean(0)[None, :], is_part - is_part.mean()
    ridge = 1e-3 * np.square(x).sum() / CHANNELS
    gradient = x.T @ (x @ rows["probe"][1] - y) + ridge * rows["probe"][1]
    np.testing.assert_allclose(gradient, 0, atol=1e-9 * np.abs(x.T @ y).max())
    assert all(np.isnan(row[2]).all() for row in rows.values())  # train shows no cell of it


def test_a_probe_reads_along_its_filter_and_is_removed_along_its_pattern(cells):
    """Channels 1 to 3 carry the part and, ten times as strong, channel 0, which the filter has to cancel."""
    train, test = (
        dataclasses.replace(each, acts=each.acts + each.acts[:, :1] * np.array([[0, 1, 1, 1, 0]]))
        for each in (cells["a"], cells["b"])
    )
    filters = readouts.fit(train)["probe"]
    found = readouts.patterns(filters, train)
    acts, is_part = train.of_part(0)
    shift = acts[is_part].mean(0) - acts[~is_part].mean(0)

    def cosine(a):
        return a @ shift / np.linalg.norm(a) / np.linalg.norm(shift)

    assert cosine(found[0]) > 0.99 and cosine(filters[0]) < 0.7
    assert np.isnan(found[2]).all()
    dictionary = readouts.as_dictionary(filters, found, acts.mean(0))
    np.testing.assert_allclose(np.linalg.norm(dictionary.w_dec, axis=1), [1, 1, 0, 1], rtol=1e-5)
    read = np.asarray(dictionary.encode(acts.astype(np.float32)))[:, 0]
    # removing what it reads along the pattern takes the filter's output, where it is above 0, to 0
    left = acts - read[:, None] * np.asarray(dictionary.w_dec)[:1]
    output = (left - acts.mean(0)[None, :]) @ filters[0]
    np.testing.assert_allclose(output, np.minimum((acts - acts.mean(0)[None, :]) @ filters[0], 0), atol=1e-4)
    assert readouts.auroc(filters, test)[0] > 0.9  # where it reads, it is still the filter


def test_the_probe_tells_what_the_difference_of_means_hides(cells):
    rows = readouts.fit(cells["a"])
    area = {kind: readouts.auroc(row, cells["b"]) for kind, row in rows.items()}
    assert area["probe"][1] > 0.9 > area["mean_difference"][1] + 0.2
    assert all(np.isnan(found[2]) for found in area.values())
    acts, is_part = cells["b"].of_part(0)
    score = (acts @ rows["mean_difference"][0])[:, None]
    expected = cell_auroc(score - score.min() + 1, is_part[:, None], ~is_part[:, None])[0, 0]
    assert area["mean_difference"][0] == pytest.approx(expected, abs=1e-12)
