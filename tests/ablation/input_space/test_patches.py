"""Blurring at every placement against a naive computation: areas, falls, controls, effects."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from jsae.ablation.input_space import controls, patches, placements
from jsae.analysis.localisation import TABLE
from jsae.analysis.marks import Marks, marks_of
from jsae.data import augment, blur
from jsae.data.cache import FOREGROUND_BIT, Split
from tests.ablation.toy import ToySAE

STRIDE, HEIGHT, WIDTH = 8, 3, 4
SIZES = {"stride_px": STRIDE, "sigma_px": 3.0, "size_cells": 1, "batch_size": 6}
S, T = 26, 33  # no multiples of the stride
OWN = {"placement": "peak", "area": "cell"}


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
    """Noise, with one rough cell in one colour in each of ten images."""
    rng = np.random.default_rng(0)
    x = 0.3 * rng.normal(size=(10, S, T, 3))
    for i in range(10):
        y, c = i % HEIGHT, i % WIDTH
        x[i, y * 8 : y * 8 + 8, c * 8 : c * 8 + 8, i % 3] += 3 * rng.normal(size=(8, 8))
    return x.astype(np.float32)


@pytest.fixture(scope="module")
def even():
    """Noise that is alike everywhere, so that every blur has a place that equals it."""
    return (0.5 * np.random.default_rng(5).normal(size=(10, S, T, 3))).astype(np.float32)


def split_of(pixels, masks=None, boxes=None):
    n = len(pixels)
    return Split(
        "test", pixels, np.zeros(n, np.int32), tuple(map(str, range(n))), ("a",), ("wing",), masks, boxes
    )


@pytest.fixture(scope="module")
def marks(pixels):
    """The foreground is the left half; feature 0 has a part there, shown on even images only."""
    masks = np.zeros((10, S, T), np.uint16)
    masks[:, :, :17] |= 1 << FOREGROUND_BIT
    masks[::2, 4:9, 2:12] |= 1
    return Marks(split_of(pixels, masks), {0: 0})


def pairs_of(pixels):
    feats = np.asarray(SAE.encode(forward(pixels)[1]))
    images, features = np.nonzero(feats.max((1, 2)) > 0)
    return features.astype(np.int32), images.astype(np.int32), feats[images, ..., features]


def measure(pixels, marks=None, **changes):
    features, images, _ = pairs_of(pixels)
    where = placements.of_marks(None if marks is None else marks.name)
    settings = SIZES | {"labels": images % 3, "top_classes": features, "placements": where} | changes
    return patches.effects_of_blurring(
        forward, SAE, lambda which: pixels[which], features=features, images=images, marks=marks, **settings
    )


def qualified(found):
    return found.falls.at(kind="effect") >= 0.5  # [M, placement, area]; NaN: no


def matched(found):
    return ~np.isnan(found.falls.at(kind="control"))


def naive_alpha(area):
    """Running mean over 3 x 3 pixels (half an eighth of 8 px to either side), mirrored at the edge."""
    padded = np.pad(area.astype(np.float64), 1, mode="symmetric")
    return sum(padded[dy : dy + S, dx : dx + T] for dy in range(3) for dx in range(3)) / 9


def naive_blur(x):
    rows, columns = (blur.blur_matrix(n, SIZES["sigma_px"]).astype(np.float64) for n in (S, T))
    return np.stack([rows @ x[..., c] @ columns.T for c in range(3)], -1)


def naive_square(y, x, side=STRIDE):
    area = np.zeros((S, T), bool)
    area[y * 8 + 4 - side // 2 : y * 8 + 4 + side // 2, x * 8 + 4 - side // 2 : x * 8 + 4 + side // 2] = True
    return area


def naive_control(area, loss, foreground):
    """The best place of the same shape in steps of a quarter of a cell, with loops; None if none will do."""
    alpha, best = naive_alpha(area), None
    energy, coverage = (alpha**2 * loss).sum(), (alpha * foreground).sum() / alpha.sum()
    ys, xs = (np.flatnonzero(area.any(axis)) for axis in (1, 0))
    for top in range(1, S - (ys[-1] - ys[0]) - 1, 2):
        for left in range(1, T - (xs[-1] - xs[0]) - 1, 2):
            there = np.roll(area, (top - ys[0], left - xs[0]), (0, 1))
            beta = naive_alpha(there)
            gap = abs((beta**2 * loss).sum() - energy)
            covered = (beta * foreground).sum() / beta.sum()
            fits = gap <= 0.2 * energy and abs(covered - coverage) <= 0.1 and not (alpha * beta).any()
            if fits and (best is None or gap < best[0]):
                best = gap, there
    return None if best is None else best[1]


def test_blur_equals_scipy_inside_and_keeps_constants():
    matrix = blur.blur_matrix(41, 2.5)
    row = np.random.default_rng(0).normal(size=41)
    theirs = scipy.ndimage.gaussian_filter1d(row, 2.5, truncate=8)
    np.testing.assert_allclose((matrix @ row)[20], theirs[20], rtol=1e-4)  # weights beyond 8 sigma, float32
    np.testing.assert_allclose(matrix.sum(1), 1, rtol=1e-6)
    np.testing.assert_array_equal(blur.blur_matrix(5, 0.0), np.eye(5))
    with pytest.raises(ValueError, match="sigma_px is at least 0, got -1"):
        blur.blur_matrix(5, -1)


def test_the_soft_edge_keeps_the_area_and_is_the_same_on_host_and_device():
    area = np.zeros((20, 30), bool)
    area[:4, 10:27] = True
    for half in (0, 1, 3):
        alpha = controls.feathered(area, half)
        rows, columns = (blur.feather_matrix(n, half) for n in area.shape)
        np.testing.assert_allclose(alpha, rows @ area @ columns.T, atol=1e-6)
        assert alpha.sum() == pytest.approx(area.sum()) and alpha.max() == pytest.approx(1)
        assert alpha[0, 15] == pytest.approx(1)  # no soft edge where the image ends
        assert (alpha > 0).sum() == (4 + half) * (17 + 2 * half)


def test_placements_choose_the_pixels_that_they_name():
    cells = np.zeros((3, 4))
    cells[0, 1], cells[2, 3], cells[1, 1] = 4.0, 2.0, 1.9  # the last is below half the maximum
    mask = np.zeros((S, T), bool)
    mask[10:20, 3:20] = True
    pair = placements.Pair(0, 0, 0, cells, mask, (S, T), STRIDE)
    chosen = {
        name: {px: placements.region(place(pair), px) for px in (64, mask.sum())}
        for name, place in placements.of_marks("mask").items()
    }
    assert all(area.sum() == px for areas in chosen.values() for px, area in areas.items())
    np.testing.assert_array_equal(chosen["peak"][64], naive_square(0, 1))
    np.testing.assert_array_equal(chosen["mask"][mask.sum()], mask)
    assert not (chosen["mask"][64] & ~scipy.ndimage.binary_erosion(mask, np.ones((5, 5)))).any()  # its inside
    two = placements.region(placements.active(pair), 2 * 64)
    np.testing.assert_array_equal(two, naive_square(0, 1) | naive_square(2, 3))
    assert placements.marked(pair._replace(marked=None)) is None
    mapped = placements.of_maps({0: mask.astype(np.float16)})
    np.testing.assert_array_equal(placements.region(mapped(pair), mask.sum()), mask)
    assert mapped(pair._replace(row=1)) is None
    whole = pair._replace(marked=np.ones((S, T), bool))  # a box as large as the image
    assert placements.region(placements.marked(whole), 64)[S // 2, T // 2]


def test_equals_a_naive_computation_pair_by_pair(pixels, marks):
    found = measure(pixels, marks)
    features, images, maps = pairs_of(pixels)
    n_controls = 0
    for row in range(0, len(images), 2):
        i, f = images[row], features[row]
        x = pixels[i].astype(np.float64)
        loss, foreground = np.square(naive_blur(x) - x).sum(-1), marks.foreground(i)
        clean = np.asarray(forward(pixels[i : i + 1])[0])[0]
        active = maps[row] >= maps[row].max() / 2
        area = naive_square(*np.unravel_index(maps[row].argmax(), maps[row].shape))
        control = naive_control(area, loss, foreground)
        for kind, where in (("effect", area), ("control", control)):
            at = OWN | {"kind": kind}
            if where is None:
                assert np.isnan(found.falls.at(**at)[row]) and np.isnan(found.deltas.at(**at)[row]).all()
                assert not matched(found)[row, 0, 0]
                continue
            alpha = naive_alpha(where)
            changed = (x + alpha[..., None] * (naive_blur(x) - x)).astype(np.float32)
            logits, acts = (np.asarray(v)[0] for v in forward(changed[None]))
            after = np.asarray(SAE.encode(acts))[..., f]
            fall = 1 - after[active].mean() / maps[row][active].mean()
            np.testing.assert_allclose(found.falls.at(**at)[row], fall, atol=1e-4)
            for t, target in enumerate((i % 3, clean.argmax(), f)):
                delta = logits[target] - clean[target]
                np.testing.assert_allclose(
                    found.deltas.at(**at)[row, t, 0], delta, atol=1e-4
                )  # logits up to 10
            assert found.flips.at(**at)[row] == (logits.argmax() != clean.argmax())
            np.testing.assert_allclose(found.energies.at(**at)[row], (alpha**2 * loss).sum(), rtol=1e-4)
            covered = (alpha * foreground).sum() / alpha.sum()
            np.testing.assert_allclose(found.coverages.at(**at)[row], covered, atol=1e-6)
            n_controls += kind == "control"
    assert n_controls >= 3


def test_all_placements_blur_equal_areas_and_controls_match_in_area_energy_and_coverage(even, marks):
    found = measure(even, marks)
    shares = found.area_shares.values  # [M, placement, area, kind]
    cell, mask = shares[..., 0, 0], shares[..., 1, 0]
    np.testing.assert_allclose(cell[~np.isnan(cell)], 64 / (S * T))
    shown = ~np.isnan(mask).any(1)
    np.testing.assert_allclose(mask[shown], np.repeat(mask[shown, :1], 3, 1))
    kept = matched(found)
    effect, control = (found.energies.at(kind=k)[kept] for k in ("effect", "control"))
    assert kept.sum() > 20 and (np.abs(control - effect) <= 0.2 * effect).all()
    covered = [found.coverages.at(kind=k)[kept] for k in ("effect", "control")]
    assert np.abs(covered[0] - covered[1]).max() <= 0.1
    np.testing.assert_allclose(shares[..., 1][kept], shares[..., 0][kept])
    assert np.isnan(found.deltas.at(kind="control")[~kept]).all()


def test_the_control_of_a_peak_off_the_foreground_is_off_the_foreground(even, marks):
    found = measure(even, marks)
    coverage = found.coverages.select(**OWN)
    off = (coverage.at(kind="effect") < 0.1) & matched(found)[:, 0, 0]
    assert off.sum() > 3 and coverage.at(kind="control")[off].max() < 0.2


def test_a_control_that_would_differ_is_no_control():
    area = naive_square(1, 1)
    foreground = np.zeros((S, T), bool)
    settings = {"half_px": 1, "step_px": 2}
    loss = np.ones((S, T))
    assert controls.choose_shift(area, loss, foreground, **settings) is not None
    assert (
        controls.choose_shift(
            area, loss + 0.3 * (~scipy.ndimage.binary_dilation(area, np.ones((3, 3)))), None, **settings
        )
        is None
    )
    foreground[8:16, 8:16] = True
    assert controls.choose_shift(area, loss, foreground, **settings) is None
    assert controls.choose_shift(area, loss, None, **settings) is not None
    assert controls.choose_shift(np.ones((S, T), bool), loss, None, **settings) is None


def test_a_planted_effect_is_found_where_its_control_has_none(pixels):
    found = measure(pixels)
    strong = found.features == found.images % 3  # the feature that reads the textured cell
    assert qualified(found)[strong, 0, 0].all()
    assert found.falls.at(**OWN, kind="effect")[strong].mean() > 0.6
    margin = found.deltas.at(**OWN, kind="effect", target="top_class", measure="margin")
    assert margin[strong].max() < -1
    weak = measure(pixels, sigma_px=0.3)
    assert not qualified(weak)[strong].any()  # so weak a blur leaves the feature where it is


def test_no_blur_has_no_effect(pixels):
    found = measure(pixels, sigma_px=0.0)
    np.testing.assert_allclose(np.nan_to_num(found.deltas.values), 0, atol=1e-5)
    assert not found.flips.values.any() and not qualified(found).any()


def test_batch_size_changes_nothing(pixels, marks):
    a, b = measure(pixels, marks), measure(pixels, marks, batch_size=64)
    np.testing.assert_array_equal(matched(a), matched(b))
    np.testing.assert_array_equal(a.energies.values, b.energies.values)
    np.testing.assert_allclose(a.deltas.values, b.deltas.values, atol=1e-5)
    np.testing.assert_allclose(a.falls.values, b.falls.values, atol=1e-5)


def test_a_part_that_is_not_shown_has_no_mask_and_a_feature_without_one_has_the_foreground(pixels, marks):
    found = measure(pixels, marks)
    assert found.falls.axes["placement"] == ("peak", "active", "mask") and found.falls.axes["area"] == (
        "cell",
        "mask",
    )
    hidden = (found.features == 0) & (found.images % 2 == 1)
    assert hidden.any()
    unknown = np.isnan(found.falls.at(kind="effect")[hidden])  # [m, placement, area]
    assert unknown[:, 2].all() and unknown[:, :, 1].all() and not unknown[:, :2, 0].any()
    of_foreground = found.area_shares.at(placement="mask", area="mask", kind="effect")[found.features != 0]
    np.testing.assert_allclose(of_foreground, 18 / T)  # with its soft edge


def test_a_feature_is_blurred_at_the_part_that_it_localises_best_on_train(pixels, marks):
    split = dataclasses.replace(marks.split, part_names=("wing", "tail"))
    scores = {"wing": (0.6, 0.9, np.nan), "tail": (0.8, 0.7, np.nan), "foreground": (0.9, 0.99, 0.8)}
    rows = [
        {
            "feature": f,
            "part": part,
            "n_images": 1,
            "auroc_train": auroc[f],
            "auroc": 1 - auroc[f],
            "pointing": 0.0,
        }
        for f in range(3)
        for part, auroc in scores.items()
    ]
    found = marks_of(split, TABLE.of_rows(rows))
    assert found.bits == {0: 1, 1: 0}  # feature 2 has the foreground
    np.testing.assert_array_equal(found(1, 0), split.masks[0] & 1 > 0)
    np.testing.assert_array_equal(found(2, 0), found.foreground(0))
    assert marks_of(split, None).bits == {} and marks_of(split_of(pixels), None) is None


def test_boxes_are_marks_too(pixels):
    boxes = np.tile(np.float32([[2, 3, 20, 17]]), (10, 1))
    marks = Marks(split_of(pixels, boxes=boxes))
    assert (
        marks.name == "box" and marks(5, 0).sum() == 18 * 14 and marks(5, 0)[3, 2] and not marks(5, 0)[17, 2]
    )
    np.testing.assert_array_equal(marks(5, 0), marks.foreground(0))
    found = measure(pixels, marks)
    assert found.falls.axes["placement"] == ("peak", "active", "box") and found.falls.axes["area"] == (
        "cell",
        "box",
    )
    shares = found.area_shares.at(placement="box", area="box", kind="effect")
    np.testing.assert_allclose(shares, 20 * 16 / (S * T))
    assert found.coverages.at(placement="box", area="box", kind="effect").min() > 0.7


def test_a_new_placement_is_one_function_and_one_name(pixels):
    def corner(pair):
        scores = np.zeros(pair.sides)
        scores[:8, :8] = 1
        return scores

    found = measure(pixels, placements=placements.of_marks(None) | {"corner": corner})
    assert found.falls.axes["placement"] == ("peak", "active", "corner")
    at_corner = pairs_of(pixels)[2].reshape(-1, 12).argmax(1) == 0
    assert at_corner.any()
    for numbers in (found.falls, found.deltas):
        a, b = (numbers.at(placement=p, area="cell", kind="effect")[at_corner] for p in ("corner", "peak"))
        np.testing.assert_array_equal(a, b)


def test_areas_that_two_placements_share_are_blurred_once(pixels):
    found = measure(pixels)
    active = patches.active_cells(pairs_of(pixels)[2]).sum((1, 2))
    n_areas = len(active) + (active > 1).sum()  # peak and active differ
    peak, both = matched(found)[:, 0, 0], matched(found)[active > 1, 1, 0]
    assert found.n_passes == len(np.unique(found.images)) + n_areas + peak.sum() + both.sum()
    np.testing.assert_array_equal(*(found.falls.at(placement=p)[active == 1] for p in ("peak", "active")))


def test_no_pairs_and_a_feature_that_is_silent(pixels):
    nothing = np.zeros(0, np.int32)
    settings = SIZES | {"labels": nothing, "top_classes": nothing, "placements": placements.of_marks(None)}
    found = patches.effects_of_blurring(
        forward, SAE, lambda which: pixels[which], features=nothing, images=nothing, **settings
    )
    assert found.deltas.values.shape == (0, 2, 1, 2, 3, 4) and found.n_passes == 0
    assert found.falls.values.shape == found.flips.values.shape == (0, 2, 1, 2)
    one = np.ones(1, np.int32)
    settings |= {"labels": one, "top_classes": one}
    deaf = ToySAE(jnp.eye(3), jnp.eye(3), 1e6)
    found = patches.effects_of_blurring(
        forward, deaf, lambda which: pixels[which], features=one, images=one, **settings
    )
    assert np.isnan(found.falls.values).all() and np.isnan(found.deltas.values).all()


def test_the_subset_of_images_is_seeded_and_complete_where_small():
    features = np.repeat([3, 9], [100, 4])
    images = np.concatenate([np.arange(100)[::-1], np.arange(4)])
    rows = patches.choose_images(features, images, 10, 0)
    assert (features[rows] == 3).sum() == 10 and (features[rows] == 9).sum() == 4
    np.testing.assert_array_equal(rows, patches.choose_images(features, images, 10, 0))
    assert set(rows) != set(patches.choose_images(features, images, 10, 1))
    assert len(patches.choose_images(features[:0], images[:0], 10, 0)) == 0


def test_one_program_serves_all_images_and_one_all_areas(pixels, marks):
    before = patches._clean._cache_size(), patches._blurred._cache_size()
    measure(pixels, marks, batch_size=7)
    assert (patches._clean._cache_size(), patches._blurred._cache_size()) == (before[0] + 1, before[1] + 1)


def test_stored_pixels_are_normalised_as_the_classifier_expects_them():
    pixels = np.random.default_rng(3).integers(0, 256, (10, S, T, 3), np.uint8)
    normalised = np.asarray(augment.normalise(pixels))
    features, images, _ = pairs_of(normalised)
    settings = SIZES | {
        "labels": images % 3,
        "top_classes": features,
        "placements": placements.of_marks(None),
    }
    a, b = (
        patches.effects_of_blurring(
            forward,
            SAE,
            lambda which, given=given: given[which],
            features=features,
            images=images,
            **settings,
        )
        for given in (pixels, normalised)
    )
    assert len(images)
    np.testing.assert_allclose(a.deltas.values, b.deltas.values, atol=1e-4)  # float32, fused differently
