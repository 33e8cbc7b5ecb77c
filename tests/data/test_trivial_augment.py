"""The operations against Pillow's, and what is drawn."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jsae.data import mixing, trivial_augment

# 2x2 blocks: every other pixel, which equalize looks at, has the tones of all
LARGE = np.random.default_rng(0).integers(20, 230, (80, 80, 3), np.uint8)
PIXELS = np.repeat(np.repeat(LARGE, 2, 0), 2, 1)
SMALL = LARGE[:12, :12]
apply_jitted = jax.jit(trivial_augment.apply_operation)


def run(name, level, sign=1):
    op = trivial_augment.OPERATIONS.index(name)
    return np.asarray(apply_jitted(PIXELS.astype(np.float32), op, level, sign * level))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(
    "name, enhance",
    [
        ("brightness", ImageEnhance.Brightness),
        ("contrast", ImageEnhance.Contrast),
        ("colour", ImageEnhance.Color),
        ("sharpness", ImageEnhance.Sharpness),
    ],
)
def test_blends_equal_pillows(name, enhance, sign):
    expected = np.asarray(enhance(Image.fromarray(PIXELS)).enhance(1 + 0.99 * sign * 0.4), np.float32)
    # Pillow rounds the grey image it blends with, and the result: one tone each
    assert np.abs(run(name, 0.4, sign) - expected).max() <= 2


@pytest.mark.parametrize(
    "name, expected",
    [
        ("posterize", lambda image: ImageOps.posterize(image, 8 - 3)),
        ("solarize", lambda image: ImageOps.solarize(image, 128)),
        ("autocontrast", ImageOps.autocontrast),
        ("equalize", ImageOps.equalize),
        ("identity", lambda image: image),
    ],
)
def test_tones_equal_pillows(name, expected):
    result = run(name, 0.5)
    # rounding of the table's entries; Pillow's equalize divides by 100 pixels a tone, not 100.4
    assert np.abs(result - np.asarray(expected(Image.fromarray(PIXELS)), np.float32)).max() <= 3
    assert name == "identity" or np.abs(result - PIXELS).max() > 6


def test_tones_are_counted_alike_and_without_a_scatter_on_accelerators():
    pixels = SMALL.astype(np.int32)
    expected = [np.bincount(pixels[:, :, c].ravel(), minlength=256) for c in range(3)]
    for count in (trivial_augment._scattered_counts, trivial_augment._compared_counts):
        np.testing.assert_array_equal(count(jnp.asarray(pixels)), np.stack(expected, 1))

    def draw(keys, images):
        return jax.vmap(lambda key, image: trivial_augment.trivial_augment(key, image, 1.0))(keys, images)

    traced = jax.jit(draw).trace(jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 12, 12, 3)))
    for platform, scatters in (("cpu", True), ("cuda", False), ("tpu", False)):
        adds = re.findall(
            r"stablehlo.scatter.*?}\) :", traced.lower(lowering_platforms=(platform,)).as_text(), re.S
        )
        assert any("stablehlo.add" in each for each in adds) == scatters, platform


def test_a_constant_image_survives_every_operation():
    flat = np.full((8, 8, 3), 100, np.float32)
    for op in range(len(trivial_augment.OPERATIONS)):
        assert np.isfinite(apply_jitted(flat, op, 0.5, 0.5)).all()


def naive_warp(image, matrix, shift):
    size = image.shape[0]
    centre = (size - 1) / 2
    out = np.zeros(image.shape)
    for y in range(size):
        for x in range(size):
            sy, sx = matrix @ np.array([y - centre, x - centre]) + shift + centre
            weighted, y0, x0 = np.zeros(3), int(np.floor(sy)), int(np.floor(sx))
            for row in (y0, y0 + 1):
                for column in (x0, x0 + 1):
                    inside = 0 <= row < size and 0 <= column < size
                    value = image[row, column] if inside else trivial_augment._FILL
                    weighted += (1 - abs(sy - row)) * (1 - abs(sx - column)) * value
            out[y, x] = weighted
    return out


@pytest.mark.parametrize("angle", [0.0, 0.5, 2.2])
def test_warp_equals_the_naive_one(angle):
    image = SMALL.astype(np.float32)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shift = np.array([1.3, -2.6])
    result = jax.jit(trivial_augment.warp)(image, matrix.astype(np.float32), shift.astype(np.float32))
    # float32 positions of a few pixels, times differences of neighbours up to 255
    np.testing.assert_allclose(result, naive_warp(image.astype(np.float64), matrix, shift), atol=2e-3)


def test_a_quarter_turn_and_a_translation_are_exact_where_pixels_meet_pixels():
    turned = trivial_augment.warp(
        SMALL.astype(np.float32), jnp.array([[0.0, -1.0], [1.0, 0.0]]), jnp.zeros(2)
    )
    # float32 of the centre's half pixel
    np.testing.assert_allclose(turned, np.rot90(SMALL, -1), atol=1e-3)
    moved = trivial_augment.warp(SMALL.astype(np.float32), jnp.eye(2), jnp.array([0.0, 3.0]))
    np.testing.assert_allclose(moved[:, :-3], SMALL[:, 3:], atol=1e-3)
    np.testing.assert_allclose(moved[:, -3:], np.broadcast_to(trivial_augment._FILL, (12, 3, 3)), rtol=1e-6)


def test_every_operation_is_drawn():
    draw = jax.jit(jax.vmap(lambda key: trivial_augment.trivial_augment(key, SMALL.astype(np.float32), 1.0)))
    results = np.asarray(draw(jax.random.split(jax.random.key(0), 300)))
    same = np.abs(results - SMALL).max((1, 2, 3)) < 0.5
    assert 0.02 < same.mean() < 0.2  # identity is one of 14, and some others hardly change this image
    assert len({result.tobytes() for result in results}) > 200


targets = functools.partial(jax.nn.one_hot, num_classes=4)


def mix(kind, seed=0, n=64):
    images = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None, None], (n, 16, 16, 3))
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(seed), i))(np.arange(n))
    return images, *mixing.mix(keys, images, targets(np.arange(n) % 4), kind=kind, alpha=1.0)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_are_mixed_as_the_pixels_are(kind):
    images, mixed, mixed_targets = mix(kind)
    partner = np.roll(images, -1, 0)
    own = np.isclose(mixed, images).mean((1, 2, 3)) if kind == "cutmix" else None
    if kind == "mixup":
        own = ((mixed - partner) / (images - partner))[:, 0, 0, 0]
    labels = np.arange(64) % 4
    rows = np.arange(64)
    # float32 of a mean over 256 pixels
    np.testing.assert_allclose(mixed_targets[rows, labels], own, atol=1e-5)
    np.testing.assert_allclose(mixed_targets[rows, (labels + 1) % 4], 1 - own, atol=1e-5)
    assert own.std() > 0.1


def test_cutmix_takes_a_rectangle_of_the_partner():
    images, mixed, _ = mix("cutmix")
    for image, result in zip(images, mixed, strict=True):
        other = np.asarray(result[:, :, 0]) != image[:, :, 0]
        rows, columns = other.any(1), other.any(0)
        np.testing.assert_array_equal(other, rows[:, None] & columns[None, :])
        assert (
            np.abs(np.diff(rows.astype(int))).sum() <= 2 and np.abs(np.diff(columns.astype(int))).sum() <= 2
        )


def test_wrong_mixes_are_named():
    with pytest.raises(ValueError, match="mix='cut' is unknown; valid: none, mixup, cutmix"):
        mixing.mix(None, None, None, kind="cut", alpha=1.0)
    with pytest.raises(ValueError, match="mix_alpha=0 must be positive"):
        mixing.mix(None, None, None, kind="mixup", alpha=0)
