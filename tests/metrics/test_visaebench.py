"""The numbers beside ViSAEBench's against what its own functions gave (visaebench_reference.py)."""

import json

import jax
import numpy as np
import pytest

from jsae.metrics import visaebench
from jsae.metrics.visaebench import Labelled
from tests.metrics import visaebench_reference as reference

PACKAGE = json.loads(reference.REFERENCE.read_text())
ONE_IMAGE = 1 / 48  # of those held out: another lbfgs may put one on the other side of a border


@pytest.fixture(scope="module")
def maps():
    return reference.inputs()


@pytest.fixture(scope="module")
def images(maps):
    codes, labels = maps
    return Labelled(codes.max((1, 2)), labels)


def test_sparse_probing_is_the_packages(images):
    fit, score = visaebench.halves(images)
    ks = (*reference.K_VALUES, 41)
    found = visaebench.sparse_probing(fit, score, visaebench.f_ranking(images), ks)
    package = {int(k): value for k, value in PACKAGE["sparse_probing"]["k_accuracies"].items()}
    assert found.keys() == package.keys(), "a k above F is left out"
    assert found == pytest.approx(package, abs=1.01 * ONE_IMAGE)
    assert visaebench.normalised_area(package) == pytest.approx(PACKAGE["sparse_probing"]["value"], rel=1e-12)
    assert visaebench.normalised_area({5: 0.5}) is None


def test_features_ranked_on_train_do_not_see_the_images_scored(images):
    fit, score = visaebench.halves(images)
    leaked = Labelled(score.codes.copy(), score.labels)
    leaked.codes[:, 0] = score.labels  # a feature that tells the classes in the scored images alone
    assert visaebench.f_ranking(leaked)[0] == 0
    whole = Labelled(*(np.concatenate(parts) for parts in zip(fit, leaked, strict=True)))
    assert 0 in visaebench.f_ranking(whole)[:20]
    assert visaebench.f_ranking(fit)[-1] == 0, "constant in the images to fit on: last"


def test_the_probe_on_reconstructions_is_the_packages(maps):
    codes, labels = maps
    pooled = codes.mean((1, 2))
    recon = pooled * (np.arange(codes.shape[-1]) % 3 != 0)
    (fit, raw), (_, after) = (visaebench.halves(Labelled(x, labels)) for x in (pooled, recon))
    found = visaebench.probe_accuracies(fit, (raw, after))
    package = [PACKAGE["preservation"][f"accuracy_{name}"] for name in ("original", "reconstructed")]
    assert found == pytest.approx(package, abs=1.01 * ONE_IMAGE)


def test_morans_i_is_the_packages(maps):
    value, counts = (np.asarray(part) for part in jax.jit(visaebench.morans_i)(maps[0]))
    n_images = counts.sum(0)
    assert n_images[0] == n_images[1] == 0, "dead, and active in every cell"
    scored = n_images >= visaebench.MIN_IMAGES
    assert 0 < scored.sum() == PACKAGE["morans_i"]["num_features_scored"] < reference.N_FEATURES
    mean = np.where(counts, value, 0).sum(0)[scored] / n_images[scored]
    package = np.array(PACKAGE["morans_i"]["per_feature_scores"], float)  # None becomes NaN
    np.testing.assert_allclose(mean, package[scored], atol=1e-5)  # float32 sums in another order
    assert mean.mean() == pytest.approx(PACKAGE["morans_i"]["value"], abs=1e-5)


def test_morans_i_of_maps_by_its_definition():
    feats = np.random.default_rng(0).normal(size=(2, 3, 4, 2)).astype(np.float32)
    feats[0, 0, 0] = feats[1, 2, :2] = 0  # below 90% of the cells
    places = [(row, column) for row in range(3) for column in range(4)]
    near = np.array([[max(abs(a - c), abs(b - d)) == 1 for c, d in places] for a, b in places], float)
    z = feats.reshape(2, 12, 2).astype(float)
    z -= z.mean(1, keepdims=True)
    expected = 12 / near.sum() * np.einsum("bpf,pq,bqf->bf", z, near, z) / (z**2).sum(1)
    found, counts = visaebench.morans_i(feats)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(counts, [[False, False], [True, True]])  # 11 of 12 cells are too many
    assert not visaebench.morans_i(feats[:, :1, :1])[1].any(), "one cell has no neighbours"


def test_absorption_is_the_packages(images):
    found = visaebench.absorption(images, images, reference.GROUPS, min_size=2)
    package = PACKAGE["absorption"]
    assert (found.rate, found.n_pairs) == (package["value"], package["num_tests"])
    assert 0 < found.rate < 1
    assert found.overlap == pytest.approx(package["mean_overlap"], rel=1e-12)
    assert found.f1_narrow == pytest.approx(package["mean_f1_k1"], abs=0.01)  # one image in a hundred
    assert found.f1_wide == pytest.approx(package["mean_f1_k4"], abs=0.01)
    assert visaebench.absorption(images, images, reference.GROUPS).n_pairs == 6, "groups of two are left out"
    assert visaebench.absorption(images, images, [(0, 99)], min_size=2) is None


def test_absorption_scores_images_that_it_was_not_fitted_on(images):
    fit, score = visaebench.halves(images)
    strangers = Labelled(score.codes, np.random.default_rng(0).permutation(score.labels))
    right, wrong = (visaebench.absorption(fit, seen, reference.GROUPS, 2) for seen in (score, strangers))
    assert right.f1_wide > 0.9 > 0.7 > wrong.f1_wide
