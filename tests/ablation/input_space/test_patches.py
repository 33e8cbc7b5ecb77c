"""Blurring under a feature's peak against scipy and a naive search for the matched patch."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jsae.ablation.input_space import blur, controls, patches
from jsae.data import augment
from tests.ablation.toy import ToySAE

STRIDE, HEIGHT, WIDTH = 8, 3, 4
SIZES = {"grid": (HEIGHT, WIDTH), "stride_px": STRIDE, "sigma_px": 3.0, "size_cells": 1, "batch_size": 6}


def forward(images):
    """Cell texture: mean |high-pass| of each colour a cell; class c reads colour c of all cells."""
    rough = jnp.abs(images - jnp.roll(images, 1, axis=2))
    b = images.shape[0]
    cells = rough[:, : HEIGHT * STRIDE, : WIDTH * STRIDE].reshape(b, HEIGHT, STRIDE, WIDTH, STRIDE, 3)
    acts = cells.mean((2, 4))
    return 5 * acts.sum((1, 2)), acts


SAE = ToySAE(jnp.eye(3), jnp.eye(3), 0.2)


@pytest.fixture(scope="module")
def pixels():
    rng = np.random.default_rng(0)
    x = 0.3 * rng.normal(size=(10, 26, 33, 3))  # no multiple of the stride
    for i in range(10):
        y, c = i % HEIGHT, i % WIDTH
        x[i, y * 8 : y * 8 + 8, c * 8 : c * 8 + 8, i % 3] += 3 * rng.normal(size=(8, 8))
    return x.astype(np.float32)


def pairs_of(pixels):
    feats = np.asarray(SAE.encode(forward(pixels)[1]))
    images, features = np.nonzero(feats.max((1, 2)) > 0)
    maps = feats[images, ..., features].reshape(len(images), -1)
    peaks = np.stack(np.unravel_index(maps.argmax(1), (HEIGHT, WIDTH)), 1)
    return features.astype(np.int32), images.astype(np.int32), peaks


def measure(pixels, **changes):
    features, images, peaks = pairs_of(pixels)
    settings = SIZES | {"labels": images % 3, "top_classes": features} | changes
    return patches.effects_of_blurring(
        forward, SAE, lambda which: pixels[which], features=features, images=images, peaks=peaks, **settings
    )


def test_blur_equals_scipy_inside_and_keeps_constants():
    matrix = blur.blur_matrix(41, 2.5)
    row = np.random.default_rng(0).normal(size=41)
    theirs = scipy.ndimage.gaussian_filter1d(row, 2.5, truncate=8)
    np.testing.assert_allclose((matrix @ row)[20], theirs[20], rtol=1e-4)  # weights beyond 8 sigma, float32
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(blur.blur_matrix(5, 0.0), np.eye(5))
    with pytest.raises(ValueError, match="sigma_px is at least 0, got -1"):
        blur.blur_matrix(5, -1)


def test_patches_are_feathered_inside_and_do_not_overlap():
    one = blur.patch_profiles(4, 32, 8, 1)
    assert one.shape == (4, 32) and one.max() == 1 and one[1, 11] == 1 and 0 < one[1, 8] < 1
    assert (one[:, None, :] * one[None])[~np.eye(4, dtype=bool)].max() == 0
    np.testing.assert_array_equal(np.flatnonzero(one[1]), np.arange(8, 16))
    three = blur.patch_profiles(4, 32, 8, 3)
    np.testing.assert_array_equal(np.flatnonzero(three[0]), np.arange(16))  # cut off at the edge
    assert three[0, 0] == 1  # no feather where the image ends
    with pytest.raises(ValueError, match="size_cells is at least 1"):
        blur.patch_profiles(4, 32, 8, 0)


def naive(pixels, i, cell, sigma=3.0):
    """The blurred image and its energy for one patch, with loops."""
    x = pixels[i].astype(np.float64)
    blurs = [blur.blur_matrix(n, sigma).astype(np.float64) for n in x.shape[:2]]
    blurred = np.stack([blurs[0] @ x[..., c] @ blurs[1].T for c in range(3)], -1)
    alpha = np.zeros(x.shape[:2])
    for py in range(x.shape[0]):
        for px in range(x.shape[1]):
            near = [4 - abs(p + 0.5 - (q + 0.5) * 8) for p, q in ((py, cell[0]), (px, cell[1]))]
            alpha[py, px] = np.prod([min(max(d / 2, 0), 1) for d in near])
    change = alpha[..., None] * (blurred - x)
    return (x + change).astype(np.float32), np.square(change).sum()


def test_equals_a_naive_computation_pair_by_pair(pixels):
    found = measure(pixels)
    features, images, peaks = pairs_of(pixels)
    assert len(images) >= 10
    for row in range(0, len(images), 3):
        i, f, cell = images[row], features[row], tuple(peaks[row])
        energies = {(y, x): naive(pixels, i, (y, x))[1] for y in range(HEIGHT) for x in range(WIDTH)}
        others = [c for c in energies if c != cell]
        control = min(others, key=lambda c: abs(energies[c] - energies[cell]))
        assert found.energy_matched[row] == (abs(energies[control] - energies[cell]) <= 0.2 * energies[cell])
        clean, acts = (np.asarray(v) for v in forward(pixels[i : i + 1]))
        before = np.asarray(SAE.encode(acts))[0, *cell, f]
        for kind, where in zip(patches.KINDS, (cell, control), strict=True):
            logits, acts = (np.asarray(v)[0] for v in forward(naive(pixels, i, where)[0][None]))
            after = np.asarray(SAE.encode(acts))[*cell, f]
            np.testing.assert_allclose(found.falls.at(kind=kind)[row], 1 - after / before, atol=1e-4)
            for t, target in enumerate((i % 3, clean[0].argmax(), f)):
                delta = logits[target] - clean[0, target]
                # logits up to 10 in float32
                np.testing.assert_allclose(found.deltas.at(kind=kind)[row, t, 0], delta, atol=1e-4)
            assert found.flips.at(kind=kind)[row] == (logits.argmax() != clean.argmax())


def test_a_planted_effect_is_found_and_its_control_is_small(pixels):
    found = measure(pixels)
    strong = found.features == found.images % 3  # the feature that reads the textured cell
    margin = found.deltas.rows(strong).select(target="top_class", measure="margin")
    assert margin.at(kind="effect").mean() < -5 * abs(margin.at(kind="patch").mean())
    falls = found.falls.rows(strong)
    assert falls.at(kind="effect").mean() > 0.6 and np.abs(falls.at(kind="patch")).max() < 0.05


def test_no_blur_has_no_effect(pixels):
    found = measure(pixels, sigma_px=0.0)
    np.testing.assert_allclose(np.nan_to_num(found.deltas.values), 0, atol=1e-5)
    assert not found.flips.values.any() and found.energy_matched.all()


def test_batch_size_changes_nothing(pixels):
    a, b = measure(pixels), measure(pixels, batch_size=64)
    np.testing.assert_allclose(a.deltas.values, b.deltas.values, atol=1e-5)


def test_control_patches_stay_on_the_foreground_where_that_is_possible(pixels):
    _, images, peaks = pairs_of(pixels)
    foreground = np.zeros((10, HEIGHT, WIDTH), bool)
    foreground[:5, 1, :2] = True
    energy = np.random.default_rng(0).random((len(images), HEIGHT, WIDTH))
    cells, matched, _, on_foreground = controls.choose_patches(energy, peaks, 1, foreground[images])
    assert matched.all()
    np.testing.assert_array_equal(on_foreground, images < 5)
    assert all(foreground[i, y, x] for i, (y, x) in zip(images, cells, strict=True) if i < 5)
    assert (cells != peaks).any(1).all()
    wide = controls.choose_patches(energy, peaks, 3, None)
    assert all(np.abs(c - p).max() >= 3 for c, p, m in zip(wide[0], peaks, wide[1], strict=True) if m)
    assert not wide[1].all()  # a peak in the middle leaves no room
    found = measure(pixels, on_foreground=lambda which: foreground[which])
    np.testing.assert_array_equal(found.on_foreground, images < 5)


def test_energies_within_a_fifth_count_as_matched():
    energy = np.array([[[10.0, 12.1, 7.9]], [[10.0, 12.0, 7.0]], [[10.0, 20.0, 8.1]]])
    cells, _, energy_matched, _ = controls.choose_patches(energy, np.zeros((3, 2), int), 1, None)
    assert energy_matched.tolist() == [False, True, True] and cells[1:, 1].tolist() == [1, 2]


def test_without_room_for_a_control_it_is_nan(pixels):
    found = measure(pixels, size_cells=5)
    assert not found.matched.any()
    assert all(np.isnan(each.at(kind="patch")).all() for each in (found.deltas, found.falls))
    assert np.isfinite(found.deltas.at(kind="effect")).all()


def test_no_pairs(pixels):
    nothing = np.zeros(0, np.int32)
    found = patches.effects_of_blurring(
        forward,
        SAE,
        lambda which: pixels[which],
        features=nothing,
        images=nothing,
        peaks=np.zeros((0, 2), np.int32),
        labels=nothing,
        top_classes=nothing,
        **SIZES,
    )
    assert found.deltas.values.shape == (0, 2, 3, 4)
    assert found.falls.values.shape == found.flips.values.shape == (0, 2)


def test_the_subset_of_images_is_seeded_and_complete_where_small():
    features = np.repeat([3, 9], [100, 4])
    images = np.concatenate([np.arange(100)[::-1], np.arange(4)])
    rows = patches.choose_images(features, images, 10, 0)
    assert (features[rows] == 3).sum() == 10 and (features[rows] == 9).sum() == 4
    np.testing.assert_array_equal(rows, patches.choose_images(features, images, 10, 0))
    assert set(rows) != set(patches.choose_images(features, images, 10, 1))
    assert len(patches.choose_images(features[:0], images[:0], 10, 0)) == 0


def test_one_program_serves_all_images_and_one_all_patches(pixels):
    before = patches._clean._cache_size(), patches._blurred._cache_size()
    measure(pixels, batch_size=7)
    assert (patches._clean._cache_size(), patches._blurred._cache_size()) == (before[0] + 1, before[1] + 1)


def test_stored_pixels_are_normalised_as_the_classifier_expects_them():
    pixels = np.random.default_rng(3).integers(0, 256, (10, 26, 33, 3), np.uint8)
    normalised = np.asarray(augment.normalise(pixels))
    features, images, peaks = pairs_of(normalised)
    a, b = (
        patches.effects_of_blurring(
            forward,
            SAE,
            lambda which, given=given: given[which],
            features=features,
            images=images,
            peaks=peaks,
            **SIZES,
            labels=images % 3,
            top_classes=features,
        )
        for given in (pixels, normalised)
    )
    assert len(images)
    np.testing.assert_allclose(a.deltas.values, b.deltas.values, atol=1e-4)  # float32, fused differently
