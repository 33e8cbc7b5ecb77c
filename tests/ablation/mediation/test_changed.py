"""What images become: the area and nothing else, in which way, and as which twin."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from jsae.ablation.mediation.changed import BEST_OTHER, ChangedImages, make_change, make_inputs
from jsae.data import augment, cache
from jsae.data.blur import blur_matrix
from jsae.data.twins import Twins

N, S = 6, 48


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    masks = np.zeros((N, S, S), np.uint16)
    masks[:, 20:32, 16:40] = 1 << 15
    masks[:, 20:26, 16:40] |= 1  # a part of it
    images = rng.integers(0, 256, (N, S, S, 3), np.uint8)
    labels = np.array([0, 1, -1, 2, 0, 1], np.int32)
    return cache.Split("test", images, labels, tuple("abcdef"), ("x", "y", "z"), ("p", "q"), masks)


def batch_of(images: ChangedImages) -> dict:
    return {name: jnp.asarray(array) for name, array in images.read(np.arange(len(images.numbers))).items()}


def test_the_area_is_changed_wholly_and_what_is_far_from_it_not_at_all(split):
    inputs = make_inputs(split, None, 10, 0)
    change = make_change(inputs, 5.0, 16)
    clean, changed, shares = change(batch_of(inputs))
    inside = np.zeros((S, S), bool)
    inside[20:32, 16:40] = True
    far = np.ones((S, S), bool)
    far[8:44, 4:] = False  # further than 6 sigma of the feather, 2 px, from the area
    x = np.asarray(augment.normalise(split.images[inputs.numbers]), np.float64)
    np.testing.assert_allclose(clean, x, atol=1e-6)
    weights = blur_matrix(S, 5.0).astype(np.float64)
    blurred = np.einsum("sp,tq,npqc->nstc", weights, weights, x)
    colour = np.broadcast_to(x.mean((0, 1, 2)), x.shape)
    assert inputs.names == ("blurred", "masked") and inputs.area == "mask"
    for found, goal in zip(np.asarray(changed), (blurred, colour), strict=True):
        np.testing.assert_allclose(found[:, inside], goal[:, inside], atol=2e-5)  # float32 sums over S pixels
        np.testing.assert_allclose(found[:, far], x[:, far], atol=1e-6)
        assert np.abs(found - x)[:, 32:34, 20:36].mean() > 0.05  # the edge is feathered outwards
    assert np.all(inside.mean() < np.asarray(shares)) and np.all(np.asarray(shares) < 2 * inside.mean())


def test_boxes_serve_as_masks_and_without_either_the_whole_image_is_changed(split):
    boxes = np.tile(np.float32([16, 20, 40, 32]), (N, 1))
    boxed = dataclasses.replace(split, masks=None, boxes=boxes)
    bare = dataclasses.replace(split, masks=None)
    of_mask, of_box, of_all = (batch_of(make_inputs(each, None, 10, 0)) for each in (split, boxed, bare))
    np.testing.assert_array_equal(of_mask["area"], of_box["area"])
    assert of_all["area"].all()
    inputs = make_inputs(bare, None, 10, 0)
    _, changed, shares = make_change(inputs, 5.0, 16)(batch_of(inputs))
    assert make_inputs(boxed, None, 10, 0).area == "box" and inputs.area == "image"
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    assert np.ptp(np.asarray(changed)[1], (0, 1, 2)).max() < 1e-5


def test_only_images_with_a_label_are_taken_as_many_as_asked_for(split):
    assert make_inputs(split, None, 10, 0).numbers.tolist() == [0, 1, 3, 4, 5]
    few = make_inputs(split, None, 3, 0)
    assert len(few.numbers) == 3 and (np.diff(few.numbers) > 0).all() and 2 not in few.numbers
    assert (few.rivals == BEST_OTHER).all() and few.rivals.shape == (3, 2) and few.known.all()


def test_a_drawn_image_becomes_the_same_drawing_of_a_twin_and_its_rival_is_that_class():
    twins = Twins(3, 32)
    labels = np.array([0, 15, 6, 14, 3, 9], np.int32)
    drawn = [twins.draw(label, "train", 10 + i) for i, label in enumerate(labels.tolist())]
    split = cache.Split(
        "train",
        np.stack([example.image for example in drawn]),
        labels,
        tuple(f"train-{10 + i:05d}" for i in range(N)),
        tuple(map(str, range(16))),
        masks=np.stack([twins.masks(example) for example in drawn]),
    )
    inputs = make_inputs(split, twins, 10, 0)
    batch = inputs.read(np.arange(N))
    assert inputs.names == ("blurred", "masked", "rendered")
    pairs = {frozenset(pair[1:]) for pair in twins.pairs}
    for i, label in enumerate(labels.tolist()):
        twin = int(inputs.rivals[i, 2])
        if label == 15:  # differs from no class in one part only
            assert twin == -1 and not inputs.known[i, 2]
            np.testing.assert_array_equal(batch["rendered"][i], split.images[i])
            continue
        assert {label, twin} in pairs and inputs.known[i].all()
        expected = twins.draw(twin, "train", 10 + i).image
        np.testing.assert_array_equal(batch["rendered"][i], expected)
        assert (expected != split.images[i]).any()
    change = make_change(inputs, 4.0, 16)
    _, changed, shares = change({name: jnp.asarray(array) for name, array in batch.items()})
    np.testing.assert_allclose(changed[2], augment.normalise(batch["rendered"]), atol=1e-6)
    assert shares[2, 1] == 0 and 0 < shares[2, 0] < 0.5
    again = make_inputs(split, twins, 10, 0)
    np.testing.assert_array_equal(again.rivals, inputs.rivals)
