"""What is measured for the pictures, against the same by plain numpy, whatever the batches."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae
from jsae.activations import run_pass
from jsae.report import survey
from jsae.runtime import mesh as meshes
from jsae.sae import model
from tests.report import fake_world

N = 20  # a whole batch and a part of one
MAPS = {(image, feature) for image in range(0, N, 2) for feature in (image % 5, 7)}


@pytest.fixture(scope="module")
def feats():
    """[N, H, W, F] of the made-up images."""
    return fake_world.SAE.encode(fake_world.read_acts(0, N))


@pytest.fixture(scope="module")
def largest(feats):
    return feats.max((0, 1, 2))


@pytest.fixture(scope="module")
def found(largest):
    labels = fake_world.LABELS[:N].copy()
    labels[4] = -1
    return survey.take(
        functools.partial(run_pass, fake_world.FakeStore(N, labels), fake_world.SAE, batch_size=16),
        largest,
        maps=MAPS,
        images=list(range(N)),
        logits_from=fake_world.HEAD,
    )


def test_maps_are_the_features_as_bytes_of_their_largest_value(found, feats, largest):
    assert set(found.maps) == MAPS
    for (image, feature), text in found.maps.items():
        values = np.frombuffer(text, np.uint8).reshape(fake_world.GRID)
        expected = feats[image, :, :, feature] / largest[feature]
        np.testing.assert_array_equal(values > 0, expected > 0)  # whatever is active can be seen
        np.testing.assert_allclose(values / 255, expected, atol=1 / 255)  # one step of a byte
    top = np.unravel_index(feats[..., 7].argmax(), feats[..., 7].shape)
    if (top[0], 7) in MAPS:
        assert max(found.maps[int(top[0]), 7]) == 255


def test_histograms_count_the_vectors_on_which_a_feature_fires(found, feats, largest):
    for feature in (0, 7, 40):
        values = feats[..., feature]
        edges = np.arange(survey.BINS + 1, dtype=np.float32) / survey.BINS * largest[feature]
        expected = [((values > a) & (values <= b)).sum() for a, b in itertools.pairwise(edges)]
        np.testing.assert_array_equal(found.histograms[feature], expected)
        assert found.histograms[feature].sum() == (values > 0).sum()


def test_spread_over_images_is_that_of_the_mean_over_the_grid(found, feats):
    expected = feats.astype(np.float64).mean((1, 2)).std(0)
    np.testing.assert_allclose(found.pooled_sd, expected, rtol=1e-5)  # float32 means


def test_an_image_has_its_strongest_features_and_what_it_loses_without_each(found, feats):
    acts = fake_world.read_acts(0, N)
    clean = fake_world.HEAD(acts)
    n_flips = 0
    for image, entry in found.images.items():
        assert entry["prediction"] == clean[image].argmax()
        strength = feats[image].mean((0, 1))
        rows = entry["features"]
        expected = np.sort(strength[strength > 0])[::-1][: survey.N_STRONGEST]
        np.testing.assert_allclose([strength[row["feature"]] for row in rows], expected, rtol=1e-5)
        for row in rows:
            f = row["feature"]
            here = feats[image, :, :, f]
            assert row["value"] == pytest.approx(here.max()) and here[row["y"], row["x"]] == here.max()
            logits = fake_world.HEAD((acts[image] - here[..., None] * fake_world.SAE.w_dec[f])[None])[0]
            assert row["prediction"] == logits.argmax()
            n_flips += row["prediction"] != entry["prediction"]
            label = fake_world.LABELS[image]
            margin = [z[label] - np.delete(z, label).max() for z in (logits, clean[image])]
            if image == 4:  # its label is unknown
                assert entry["label"] is None and row["delta_margin"] is None
            else:
                assert row["delta_margin"] == pytest.approx(margin[0] - margin[1], abs=1e-5)
            share = [np.exp(z) / np.exp(z).sum() for z in (logits, clean[image])]
            target = entry["prediction"]
            assert row["delta_confidence"] == pytest.approx(share[0][target] - share[1][target], abs=1e-5)
    assert n_flips > 0


def test_without_a_classifier_nothing_is_removed(largest):
    pass_over = functools.partial(run_pass, fake_world.FakeStore(3), fake_world.SAE, batch_size=16)
    found = survey.take(pass_over, largest, maps=set(), images=[1]).images[1]
    assert found["prediction"] is None and "delta_margin" not in found["features"][0]


def test_a_dictionary_dealt_over_devices_is_surveyed_as_on_one():
    """Maps and histograms to rounding, the strongest features and what their removal does alike."""
    fresh = sae.init(
        jax.random.key(0), n_channels=8, n_features=64, variant="topk", k=8, mean=jnp.zeros(8), scale=1.0
    )
    store, maps = fake_world.FakeStore(N), {(image, image % 7) for image in range(N)}
    taken = []
    for mesh in (None, meshes.make_mesh(4, 2)):
        dictionary = fresh if mesh is None else model.over_mesh(fresh, mesh)
        pass_over = functools.partial(run_pass, store, dictionary, batch_size=8, mesh=mesh)
        settings = {"maps": maps, "images": [1, 4, 9], "logits_from": fake_world.HEAD}
        taken.append(survey.take(pass_over, np.full(64, 5.0), **settings))
    one, dealt = taken
    assert one.maps.keys() == dealt.maps.keys() == maps and any(map(any, one.maps.values()))
    for key in maps:
        steps = np.subtract(*(np.frombuffer(t.maps[key], np.uint8).astype(int) for t in taken))
        assert abs(steps).max() <= 1
    assert abs(one.histograms - dealt.histograms).sum() <= 2 and one.histograms.sum() > 100
    np.testing.assert_allclose(dealt.pooled_sd, one.pooled_sd, rtol=1e-5, atol=1e-7)
    for image in (1, 4, 9):
        rows = one.images[image]["features"], dealt.images[image]["features"]
        assert len(rows[0]) == len(rows[1]) > 1
        for a, b in zip(*rows, strict=True):
            assert all(a[name] == b[name] for name in ("feature", "y", "x", "prediction"))
            assert a["delta_margin"] == pytest.approx(b["delta_margin"], abs=1e-5)


def test_images_are_spread_over_the_split():
    assert survey.spread(10, 4) == [0, 2, 5, 7]
    assert survey.spread(3, 10) == [0, 1, 2]
    assert survey.spread(0, 4) == survey.spread(4, 0) == []
