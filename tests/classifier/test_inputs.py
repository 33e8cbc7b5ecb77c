"""What a trained classifier is called on: converted, or refused with what to do, never taken for another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import classifier
from jsae.classifier import inputs
from jsae.data import augment
from jsae.study import Classifier

SIDE = 16
ARCH = classifier.make_model("", 3, stem_stride=2, depths=(0, 1, 0, 0), dims=(4, 4, 4, 8))
IMAGES = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE, 3), np.uint8)
NORMALISED = np.asarray(augment.normalise(IMAGES))


@pytest.fixture(scope="module")
def model():
    return Classifier(classifier.init(jax.random.key(0), ARCH), SIDE)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        jnp.asarray(IMAGES),
        IMAGES.tolist(),
        NORMALISED,
        NORMALISED.astype(np.float64),
        *(IMAGES.astype(dtype) for dtype in (np.int32, np.int64, np.uint16, np.int16)),
    ],
    ids=lambda images: f"{type(images).__name__} {getattr(images, 'dtype', '')}",
)
def test_every_kind_of_pixels_gives_the_same_input(images):
    found = inputs.pixels(images, SIDE)
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, NORMALISED)


def test_half_precision_is_computed_in_float32():
    assert inputs.pixels(NORMALISED.astype(np.float16), SIDE).dtype == jnp.float32
    assert inputs.pixels(jnp.asarray(NORMALISED, jnp.bfloat16), SIDE).dtype == jnp.float32


WRONG = [
    ("floats in 0..1", IMAGES / 255, ValueError, r"in 0\.\.1, .* give uint8 .*normalised=True"),
    ("float16 in 0..1", (IMAGES / 255).astype(np.float16), ValueError, r"float16 .* in 0\.\.1"),
    ("floats in -1..1", IMAGES / 127.5 - 1, ValueError, r"in -1\.\.1, all of them in 0\.\.1 or -1\.\.1"),
    ("floats in 0..255", IMAGES.astype(np.float32), ValueError, r"in 0\.\.255, none below 0"),
    ("pixels less a mean", IMAGES.astype(np.float32) - 120.0, ValueError, r"in -120\.\.135, far beyond"),
    ("integers beyond 255", IMAGES.astype(np.int32) * 256, ValueError, r"int32 .* in 0\.\.65280: pixels are"),
    ("integers below 0", IMAGES.astype(np.int32) - 128, ValueError, r"in -128\.\.127"),
    ("a mask", IMAGES > 99, TypeError, "not bool; give uint8"),
    ("complex", NORMALISED.astype(np.complex64), TypeError, "not complex64"),
    ("a file name", "plane.png", TypeError, r"study\.preprocess\(paths\) reads image files"),
    ("file names", ["plane.png"], TypeError, "an array of numbers, got list"),
    ("nothing", None, TypeError, "an array of numbers, got NoneType"),
    ("one image", IMAGES[0], ValueError, r"one image is images\[None\]"),
    ("channels first", IMAGES.transpose(0, 3, 1, 2), ValueError, "channels last"),
    ("grey", IMAGES[..., 0], ValueError, "repeat grey values"),
    ("grey with an axis", IMAGES[..., :1], ValueError, "repeat grey values"),
    ("RGBA", np.concatenate([IMAGES, IMAGES[..., :1]], -1), ValueError, r"RGB \[B, 16, 16, 3\], got \[2, 16"),
    ("another side", IMAGES[:, :8, :8], ValueError, "trained on 16 x 16 px, got images of 8 x 8: .*any_size"),
    ("not square", IMAGES[:, :8], ValueError, "got images of 8 x 16"),
]


@pytest.mark.parametrize("given, images, error, words", WRONG, ids=[row[0] for row in WRONG])
def test_what_is_no_normalised_image_is_refused_with_what_to_do(
    model, note_case, given, images, error, words
):
    with pytest.raises(error, match=words) as raised:
        model(images)
    note_case("9. Python", f"study.classifier({given})", str(raised.value))


def test_what_was_asked_for_by_name_is_taken_as_it_is():
    grey = np.zeros((1, SIDE, SIDE, 3), np.float32)  # ImageNet's mean colour, or black in 0..1
    with pytest.raises(ValueError, match="normalised=True"):
        inputs.pixels(grey, SIDE)
    np.testing.assert_array_equal(inputs.pixels(grey, SIDE, normalised=True), grey)
    assert inputs.pixels(IMAGES[:, :8], SIDE, any_size=True).shape == (2, 8, SIDE, 3)
    assert inputs.pixels(IMAGES[:0], SIDE).shape == inputs.pixels(NORMALISED[:0], SIDE).shape
    white = np.asarray(augment.normalise(np.full((1, SIDE, SIDE, 3), 255, np.uint8)))
    assert white.min() > 0
    np.testing.assert_array_equal(inputs.pixels(white, SIDE), white)


def test_traced_images_have_no_values_and_pass(model):
    plain = np.asarray(model(IMAGES)[0])
    under_jit = jax.jit(lambda images: model(images)[0])
    np.testing.assert_allclose(under_jit(NORMALISED), plain, rtol=1e-4, atol=1e-5)  # fused otherwise
    np.testing.assert_allclose(under_jit(IMAGES), plain, rtol=1e-4, atol=1e-5)
    gradient = jax.grad(lambda images: model(images)[0].sum())(NORMALISED)
    assert gradient.shape == NORMALISED.shape
    inside = jax.jit(lambda scale: scale * model(IMAGES)[0])(1.0)  # concrete images in a traced function
    np.testing.assert_allclose(inside, plain, rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="traced images are uint8 or float32, got int32"):
        under_jit(IMAGES.astype(np.int32))
    with pytest.raises(ValueError, match=r"images\[None\]"):
        under_jit(NORMALISED[0])


def test_activations_to_start_from_are_checked(model):
    logits, acts = model(IMAGES)
    for site, found in acts.items():  # the grid is worked out from the side of the images
        np.testing.assert_allclose(model(np.asarray(found), start=site)[0], logits, rtol=1e-4, atol=1e-5)
    final = np.asarray(acts["stage3"])  # [2, 2, 2, 4]
    for wrong, error, words in [
        (final[..., :3], ValueError, r"\[B, 2, 2, 4\], got \[2, 2, 2, 3\]"),
        (final[:, :1], ValueError, r"got \[2, 1, 2, 4\]; any_size=True"),
        (final[0], ValueError, r"got \[2, 2, 4\]"),
        (final.astype(np.int32), TypeError, "raw activations, floats .* not int32"),
        (final > 0, TypeError, "not bool"),
    ]:
        with pytest.raises(error, match=words):
            model(wrong, start="stage3")
    assert model(final.repeat(2, 1), start="stage3", any_size=True)[0].shape == (2, 3)
    with pytest.raises(ValueError, match="no site 'stage9'; the sites are stem"):
        model(final, start="stage9")


def test_edits_are_functions_by_site(model):
    for wrong, words in [
        (lambda acts: acts, r"a dict site -> edit, .* got function"),
        ([1], "got list"),
        ({"stage4": 0.5}, "the edit at 'stage4' is a function of activations, not float"),
    ]:
        with pytest.raises(TypeError, match=words):
            model(IMAGES, edits=wrong)
