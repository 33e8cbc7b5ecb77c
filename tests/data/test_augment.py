"""Augmentation: a function of (key, index) alone, crops that are windows, and normalisation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.data.augment import IMAGENET_MEAN, IMAGENET_STD, augment, is_serial, normalise

jitted = jax.jit(augment, static_argnames=("crop", "pad_px", "min_scale", "flip"))

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3), np.uint8)
KEY = jax.random.fold_in(jax.random.key(3), 7)


def test_normalise_is_the_published_formula():
    expected = (IMAGES / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    result = normalise(IMAGES)
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, atol=1e-6)  # float32 rounding of values up to 2.7
    np.testing.assert_allclose(normalise(IMAGES[0]), expected[0], atol=1e-6)


def test_nothing_asked_is_normalise():
    index = np.arange(6)
    for settings in ({"crop": "none"}, {"crop": "pad", "pad_px": 0}):
        result = augment(KEY, IMAGES, index, flip=False, **settings)
        np.testing.assert_array_equal(result, normalise(jnp.asarray(IMAGES)))


@pytest.mark.parametrize("crop", ["none", "pad", "resized"])
def test_result_depends_on_key_and_index_not_on_the_batch(crop):
    index = np.array([4, 9, 2, 11, 30, 33])
    one = functools.partial(jitted, crop=crop, pad_px=3)
    whole = np.asarray(one(KEY, IMAGES, index))
    turned = np.asarray(one(KEY, IMAGES[::-1], index[::-1]))[::-1]
    halves = np.concatenate([one(KEY, IMAGES[:3], index[:3]), one(KEY, IMAGES[3:], index[3:])])
    np.testing.assert_array_equal(whole, turned)
    np.testing.assert_allclose(whole, halves, atol=1e-5)  # another batch size is another program
    other_steps = [np.asarray(one(jax.random.fold_in(KEY, step), IMAGES, index)) for step in range(3)]
    assert any((other != whole).any() for other in other_steps)


def test_pad_crops_are_shifted_mirrored_windows_and_all_shifts_occur():
    pad, size = 2, 12
    image = IMAGES[:1]
    padded = np.pad(image[0], ((pad, pad), (pad, pad), (0, 0)), mode="reflect")
    n = 400
    results = jitted(KEY, np.repeat(image, n, 0), np.arange(n), crop="pad", pad_px=pad, flip=True)
    windows = {}
    for y in range(2 * pad + 1):
        for x in range(2 * pad + 1):
            window = padded[y : y + size, x : x + size]
            windows[window.tobytes()] = (y, x, False)
            windows[np.ascontiguousarray(window[:, ::-1]).tobytes()] = (y, x, True)
    # back to the pixels, since programs may round the normalised values differently
    pixels = (np.asarray(results) * np.array(IMAGENET_STD) + np.array(IMAGENET_MEAN)) * 255
    seen = [windows[image.tobytes()] for image in np.round(pixels).astype(np.uint8)]
    assert {(y, x) for y, x, _ in seen} == {(y, x) for y in range(5) for x in range(5)}
    assert 0.4 < np.mean([flipped for *_, flipped in seen]) < 0.6  # 4 standard errors


def test_resized_crops_scale_a_window_inside_the_image():
    # a ramp shows where each output pixel came from
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8)[None, :, None] * 4, (64, 64, 3))
    n = 200
    results = jitted(
        KEY, np.repeat(ramp[None], n, 0), np.arange(n), crop="resized", min_scale=0.25, flip=False
    )
    values = (
        (np.asarray(results)[:, 32, :, 0] * IMAGENET_STD[0] + IMAGENET_MEAN[0]) * 255 / 4
    )  # [n, 64] column
    widths = (values[:, -8] - values[:, 8]) / 48 * 64  # inner columns: the border is clamped
    assert widths.min() > 0.25**0.5 * 64 * 0.85 * 0.99 and widths.max() < 64 * 1.02
    assert widths.std() > 4
    assert values.min() > -0.01 and values.max() < 63.01


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop": "random"}, "crop='random' is unknown; valid: none, pad, resized"),
        ({"crop": "pad", "pad_px": 12}, "pad_px=12: reflection needs 0 <= pad_px < image size 12"),
        ({"crop": "resized", "min_scale": 0.0}, "min_scale=0.0 must be in"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError) as error:
        augment(KEY, IMAGES, np.arange(6), **settings)
    assert message in str(error.value)


def test_one_image_after_the_other_and_all_at_once_are_the_same():
    index = np.arange(60) % 6
    images, keys_of = IMAGES[index], np.arange(60)

    def run(one_by_one):
        how = {"crop": "resized", "trivial": 0.7, "one_by_one": one_by_one}
        program = jax.jit(functools.partial(augment, **how))
        cases = program.lower(KEY, images, keys_of).as_text().count("stablehlo.case")
        assert cases == 2 + one_by_one  # two are how tones are counted on this platform
        return np.asarray(program(KEY, images, keys_of))

    # two programs: rounding of positions moves a pixel by less than a thousandth of a tone's 1/255/0.22
    np.testing.assert_allclose(run(True), run(False), atol=1e-4)


def test_only_one_cpu_device_takes_one_image_after_the_other():
    devices = np.array(jax.devices("cpu"))
    assert is_serial(jax.sharding.Mesh(devices[:1], "data"))
    assert len(devices) > 1 and not is_serial(jax.sharding.Mesh(devices[:2], "data"))
