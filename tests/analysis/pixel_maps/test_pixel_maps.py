"""Pixel maps of a small network whose answer is known or summed by loops, and their curves."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import metrics
from jsae import sae as saes
from jsae.analysis.marks import Marks
from jsae.analysis.pixel_maps import attribution, curves, table
from jsae.data import blur
from jsae.tables import documentation

STRIDE, GRID, S, T, C = 4, (2, 3), 8, 12, 3
B = 4
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(B, S, T, 3)).astype(np.float32)
MATRICES = blur.blur_matrix(S, STRIDE), blur.blur_matrix(T, STRIDE)
BLURRED = np.asarray(blur.blurred(jnp.asarray(IMAGES), *MATRICES))
FEATURES, PEAKS = np.array([0, 3, 5, 1]), np.array([[0, 0], [1, 2], [0, 1], [1, 0]])


@pytest.fixture(scope="module")
def sae():
    new = saes.init(
        jax.random.key(0), n_channels=C, n_features=8, variant="topk", k=4, mean=np.full(C, 0.2), scale=1.5
    )
    return dataclasses.replace(new, b_enc=jnp.linspace(-0.2, 0.3, 8))


def own_cell(images):
    """Mean of a smooth function of each cell's pixels: depends on that cell alone, not linearly."""
    return jnp.sin(images).reshape(len(images), 2, STRIDE, 3, STRIDE, 3).mean((2, 4))


def attribute(sae, method, **more):
    how = {"stride_px": STRIDE, "method": method} | more
    return np.asarray(attribution.attribute(own_cell, sae, IMAGES, BLURRED, FEATURES, PEAKS, **how))


def preactivation(sae, images):
    """Before TopK, by loops."""
    acts, found = np.asarray(own_cell(jnp.asarray(images)), np.float64), []
    for i, (feature, (y, x)) in enumerate(zip(FEATURES, PEAKS, strict=True)):
        x_n = (acts[i, y, x] - np.asarray(sae.mean)) / float(sae.scale)
        found.append(float(sae.scale) * (x_n @ np.asarray(sae.w_enc)[feature] + float(sae.b_enc[feature])))
    return np.array(found)


def in_cells(maps):
    rows, columns = np.arange(S)[None] // STRIDE, np.arange(T)[None] // STRIDE
    return (rows == PEAKS[:, :1])[:, :, None] & (columns == PEAKS[:, 1:])[:, None, :]


def test_an_integrated_map_adds_up_to_the_change_of_the_preactivation_and_stays_in_the_cell(sae):
    maps = attribute(sae, "integrated", n_points=32)
    change = preactivation(sae, IMAGES) - preactivation(sae, BLURRED)
    np.testing.assert_allclose(maps.sum((1, 2)), change, atol=2e-3)  # 32 points of a curved path
    assert np.abs(maps[~in_cells(maps)]).max() == 0 and np.abs(maps).max() > 0


def test_a_feature_that_topk_leaves_off_has_a_map_too(sae):
    acts = own_cell(jnp.asarray(IMAGES))
    off = np.asarray(sae.encode(acts))[np.arange(B), PEAKS[:, 0], PEAKS[:, 1], FEATURES] == 0
    assert off.any() and (np.abs(attribute(sae, "integrated")[off]).max((1, 2)) > 0).all()


def test_a_smooth_map_is_the_gradient_times_the_change_under_the_same_noise_for_all(sae):
    maps = attribute(sae, "smooth", n_points=3)
    total = np.zeros(IMAGES.shape)
    for i in range(3):
        noise = np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(0), i), IMAGES.shape[1:]))
        spread = (IMAGES.max((1, 2, 3)) - IMAGES.min((1, 2, 3)))[:, None, None, None]
        slope = np.cos(IMAGES + 0.1 * spread * noise) / STRIDE**2
        total += slope * np.asarray(sae.w_enc)[FEATURES][:, None, None, :] / 3
    wanted = (total * (IMAGES - BLURRED)).sum(-1) * in_cells(maps)
    np.testing.assert_allclose(maps, wanted, rtol=1e-3, atol=1e-6)  # float32 against float64


def test_occlusion_is_the_mean_fall_over_the_windows_on_a_pixel(sae):
    maps, half = attribute(sae, "occlusion"), STRIDE // 2
    total, count, clean = np.zeros((B, S, T)), np.zeros((S, T)), preactivation(sae, IMAGES)
    for top in range(-half, S, half):
        for left in range(-half, T, half):
            rows, columns = slice(max(top, 0), top + STRIDE), slice(max(left, 0), left + STRIDE)
            changed = IMAGES.copy()
            changed[:, rows, columns] = BLURRED[:, rows, columns]
            total[:, rows, columns] += (clean - preactivation(sae, changed))[:, None, None]
            count[rows, columns] += 1
    assert count.min() == count.max() == 4
    np.testing.assert_allclose(maps, total / count, atol=1e-5)  # float32 against float64


def test_areas_are_those_of_a_loop_over_pixels(sae):
    value = curves.peak_value(own_cell, sae, FEATURES, PEAKS)
    scores = jnp.asarray(RNG.normal(size=(B, S, T)).astype(np.float32))
    inserted, deleted = curves.areas(value, IMAGES, BLURRED, scores)
    ranks = np.asarray(metrics.pixel_ranks(scores, np.arange(S * T)))
    base, clean = np.asarray(value(BLURRED)), np.asarray(value(IMAGES))
    for found, (inside, outside), ends in ((inserted, (IMAGES, BLURRED), 0), (deleted, (BLURRED, IMAGES), 1)):
        curve = [np.full(B, float(ends))]
        for step in range(1, 20):
            first = (ranks < step * S * T // 20)[..., None]
            f = np.asarray(value(np.where(first, inside, outside)))
            with np.errstate(invalid="ignore", divide="ignore"):
                curve.append(np.clip((f - base) / (clean - base), 0, 1))
        curve = np.stack([*curve, np.full(B, 1.0 - ends)])
        known = clean != base
        assert known.any() and np.isnan(np.asarray(found)[~known]).all()
        np.testing.assert_allclose(
            np.asarray(found)[known], np.trapezoid(curve, dx=1 / 20, axis=0)[known], atol=1e-5
        )


def make_table(sae, marks, batch_size):
    patches = {
        "feature": np.array([2, 2, 2, 0, 0]), "image": np.array([3, 0, 1, 2, 3]),
        "rank": np.array([0, 1, 2, 0, 1]), "y": np.array([1, 0, 1, 0, 1]), "x": np.array([2, 1, 0, 0, 0]),
    }  # fmt: skip
    measured = jax.jit(
        lambda batch: table.measure(
            own_cell, sae, batch, stride_px=STRIDE, matrices=MATRICES, method="integrated"
        )
    )
    return table.columns(
        measured, lambda i: IMAGES[i], patches, [0, 2], marks, n_patches=2, batch_size=batch_size
    )


def test_rows_are_those_of_each_patch_and_map_whatever_the_batch(sae):
    split = type("Split", (), {"masks": None, "boxes": np.array([[0, 0, 6, 4]] * B), "images": IMAGES})
    found, again = (make_table(sae, Marks(split), n) for n in (4, 2))
    made = table.TABLE.make(found)
    assert made["feature"].to_pylist() == [f for f in (0, 0, 2, 2) for _ in table.MAPS]
    assert made["image"].to_pylist()[:: len(table.MAPS)] == [2, 3, 3, 0]
    of_cell = np.array(made["cell_mass"].to_pylist(), float)[:: len(table.MAPS)]
    np.testing.assert_allclose(of_cell, 1.0, rtol=1e-5)  # the map stays in the cell
    rows = {name: np.asarray(values) for name, values in found.items()}
    assert (
        rows["foreground_mass"][0] == pytest.approx(1) and rows["foreground_mass"][8] == 0
    )  # cells 0,0 and 1,2
    for name, values in found.items():
        if name != "map":
            np.testing.assert_allclose(np.asarray(again[name], float), np.asarray(values, float), atol=1e-5)
    assert all(documentation(made).values())


def test_the_headline_is_over_features_of_qualified_patches(sae):
    columns = {
        "feature": np.array([0, 0, 0, 0, 1, 1]),
        "qualified": np.array([True, True, True, False, True, True]),
        "map": np.array(
            ["pixel_map", "pixel_map", "activation_map", "pixel_map", "pixel_map", "activation_map"], object
        ),
        "insertion_auc": np.array([0.2, 0.4, 0.1, 9.0, 0.9, 0.5]),
        "deletion_auc": np.zeros(6),
    }
    found = table.headline(columns)
    assert found["insertion_auc"] == pytest.approx(0.6) and found[
        "activation_map_insertion_auc"
    ] == pytest.approx(0.3)
    assert found["random_insertion_auc"] is None
    empty = table.headline({name: values[:0] for name, values in columns.items()})
    assert empty["qualified_share"] is None and empty["insertion_auc"] is None


def test_without_masks_nothing_is_said_of_them(sae):
    found = make_table(sae, None, 4)
    assert np.isnan(found["part_mass"]).all() and np.isnan(found["foreground_mass"]).all()
    assert table.by_feature(table.TABLE.make(found)).keys() == {0, 2}
