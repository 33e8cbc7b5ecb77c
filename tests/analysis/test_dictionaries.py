"""Dictionaries on vectors whose structure is known."""

import types

import jax
import numpy as np
import pytest

from jsae.analysis import dictionaries, directions

C = 6
RNG = np.random.default_rng(0)
MEAN = RNG.normal(size=C).astype(np.float32)
VECTORS = (MEAN + RNG.normal(size=(400, C)) * np.array([3, 2, 1, 0.5, 0.2, 0.1])).astype(np.float32)


@pytest.mark.parametrize(
    "dictionary",
    [dictionaries.channels(MEAN), dictionaries.rotation(MEAN, 1), dictionaries.pca(VECTORS, MEAN)],
    ids=["channels", "rotation", "pca"],
)
def test_a_split_orthogonal_basis_loses_nothing(dictionary):
    feats = np.asarray(dictionary.encode(VECTORS))
    assert dictionary.n_features == 2 * C and (feats >= 0).all()
    assert (np.minimum(feats[:, :C], feats[:, C:]) == 0).all()  # relu(u) and relu(-u)
    np.testing.assert_allclose(dictionary.decode(feats), VECTORS, atol=1e-5)  # float32 products
    np.testing.assert_allclose(np.linalg.norm(dictionary.w_dec, axis=1), 1, rtol=1e-6)


def test_principal_components_come_by_variance():
    feats = np.asarray(dictionaries.pca(VECTORS, MEAN).encode(VECTORS))
    spread = (feats[:, :C] - feats[:, C:]).std(0)
    np.testing.assert_allclose(spread, [3, 2, 1, 0.5, 0.2, 0.1], rtol=0.15)  # of 400 draws
    assert (np.diff(spread) < 0).all()


def test_random_directions_depend_on_the_seed_alone():
    first, again, other = (directions.random(MEAN, 50, seed).w_dec for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(np.asarray(first) - np.asarray(other)).max() > 0.5
    assert np.abs(np.asarray(first).mean(0)).max() < 0.3  # one sign each, all over the sphere


def test_k_means_finds_directions_and_only_the_nearest_fires():
    true = np.linalg.qr(RNG.normal(size=(C, C)))[0][:3]
    which = RNG.integers(0, 3, 600)
    vectors = MEAN + RNG.uniform(2, 4, 600)[:, None] * true[which] + 0.05 * RNG.normal(size=(600, C))
    found = dictionaries.kmeans(vectors, MEAN, 8, 0)
    cosines = np.asarray(found.w_dec) @ true.T
    assert cosines.max(0).min() > 0.99
    feats = np.asarray(found.encode(vectors.astype(np.float32)))
    assert ((feats > 0).sum(1) == 1).all()
    assert (cosines[feats.argmax(1)].argmax(1) == which).all()


def test_non_negative_factors_explain_sums_of_parts():
    parts = np.abs(RNG.normal(size=(3, C))) * np.array(
        [[1, 1, 0, 0, 0, 0], [0, 0, -1, -1, 0, 0], [0, 0, 0, 0, 1, -1]]
    )
    amounts = RNG.exponential(size=(500, 3)) * (
        RNG.random((500, 3)) < 0.4
    )  # sparse: else factors are not unique
    vectors = (MEAN + amounts @ parts).astype(np.float32)
    found = dictionaries.nmf(vectors, MEAN, 3, 0)
    feats = np.asarray(found.encode(vectors))
    assert found.n_features == 3 and (feats >= 0).all() and (np.asarray(found.parts) >= 0).all()
    error = (
        np.square(np.asarray(found.decode(feats)) - vectors).sum()
        / np.square(vectors - vectors.mean(0)).sum()
    )
    assert error < 0.02  # exact but for the updates that are left
    unit = parts / np.linalg.norm(parts, axis=1, keepdims=True)
    assert (np.asarray(found.w_dec) @ unit.T).max(0).min() > 0.98


def test_class_means_point_from_the_mean_to_the_class():
    means = np.stack([MEAN + np.eye(C)[2] * 3, MEAN - np.eye(C)[4], np.full(C, np.nan)])
    found = dictionaries.class_mean(means, MEAN)
    np.testing.assert_allclose(found.w_dec, [np.eye(C)[2], -np.eye(C)[4], np.zeros(C)], atol=1e-6)


def test_all_of_them_are_pytrees_with_leading_axes():
    acts = VECTORS[:24].reshape(2, 3, 4, C)
    for dictionary in (
        dictionaries.channels(MEAN),
        dictionaries.kmeans(VECTORS, MEAN, 5, 0),
        dictionaries.nmf(VECTORS, MEAN, 4, 0),
    ):
        feats = jax.jit(lambda d, x: d.encode(x))(dictionary, acts)
        assert feats.shape == (2, 3, 4, dictionary.n_features)
        assert dictionary.decode(feats).shape == acts.shape
        flat = np.asarray(dictionary.encode(acts.reshape(-1, C)))
        np.testing.assert_allclose(feats.reshape(24, -1), flat, atol=1e-5)  # each vector by itself


def test_the_sample_is_spread_over_the_images(monkeypatch):
    monkeypatch.setattr(dictionaries, "N_VECTORS", 8)
    acts = np.arange(10 * 2 * 1 * 3).reshape(10, 2, 1, 3)
    store = types.SimpleNamespace(grid=(2, 1), n_images=10, n_channels=3, read=lambda a, b: acts[a:b])
    np.testing.assert_array_equal(dictionaries.sample(store), acts[[0, 3, 6, 9]].reshape(-1, 3))
