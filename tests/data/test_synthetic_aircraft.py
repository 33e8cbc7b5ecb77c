"""The drawn aircraft: what the variants are, what the masks mean, and what does not give the class away."""

import hashlib
import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from jsae.data.synthetic_aircraft import drawing
from jsae.data.synthetic_aircraft.drawing import PART_NAMES, VARIANTS, draw

FROZEN = "2ce67a8b119ff20e132a8e3249190587e32dad98b90911043ea376ccbb8339dc"
CELL_PX = 16  # of the demo's grid: 96 px, 6x6 cells


@pytest.fixture(scope="module")
def examples():
    return [draw(5, "test", index) for index in range(320)]


def test_every_part_occurs_in_3_to_n_minus_3_variants():
    n = len(VARIANTS)
    assert n >= 16
    assert len({variant.name for variant in VARIANTS}) == n
    assert len({variant.parts for variant in VARIANTS}) == n
    for part in PART_NAMES:
        count = sum(part in variant.parts for variant in VARIANTS)
        assert 3 <= count <= n - 3, f"{part} occurs in {count} of {n} variants"


def test_half_of_the_variants_have_a_twin_and_each_optional_part_tells_a_pair():
    """A twin differs by the presence of one part; swapping, say, the tail changes two."""
    twins, telling = set(), set()
    for variant in VARIANTS:
        for other in VARIANTS:
            difference = variant.parts ^ other.parts
            if len(difference) == 1:
                twins.add(variant.name)
                telling |= difference
    assert len(twins) >= len(VARIANTS) / 2
    assert telling == {"nose_propeller", "wing_engines", "outer_engines", "tail_engines"} | {
        "fixed_gear",
        "window_row",
        "winglets",
    }


def test_an_inconsistent_variant_is_refused():
    with pytest.raises(ValueError, match=r"'x': unknown parts \['rotor'\]; valid: low_wing"):
        drawing.Variant("x", frozenset({"rotor"}))
    with pytest.raises(ValueError, match="exactly one of low_wing, high_wing, biplane"):
        drawing.Variant("x", frozenset({"t_tail", "round_nose"}))


def test_a_drawing_depends_on_seed_split_and_index_only():
    first = draw(3, "train", 7)
    for index in range(3):
        draw(3, "val", index)
    again = draw(3, "train", 7)
    for field in ("image", "part_masks", "aircraft_mask", "parts"):
        np.testing.assert_array_equal(getattr(first, field), getattr(again, field))
    assert (first.label, first.params) == (again.label, again.params)
    for other in (draw(4, "train", 7), draw(3, "val", 7), draw(3, "train", 8)):
        assert other.params["yaw"] != first.params["yaw"]
        assert not np.array_equal(other.image, first.image)


def test_classes_are_balanced_in_every_block_and_shuffled():
    n = len(VARIANTS)
    blocks = [[drawing.label_of(0, "train", b * n + i) for i in range(n)] for b in range(20)]
    for block in blocks:
        assert sorted(block) == list(range(n))
    assert len({tuple(block) for block in blocks}) == 20


def test_appearance_does_not_depend_on_the_variant():
    drawn = [drawing.draw_variant(label, 0, "train", 11) for label in range(len(VARIANTS))]
    assert all(example.params == drawn[0].params for example in drawn)
    far = ~np.any([example.aircraft_mask for example in drawn], 0)  # sky and noise where no aircraft is
    rows = slice(0, 4)
    far_rows = far[rows]
    for example in drawn:
        np.testing.assert_array_equal(example.image[rows][far_rows], drawn[0].image[rows][far_rows])


def test_shapes_types_and_presence(examples):
    example = examples[0]
    assert example.image.shape == (96, 96, 3)
    assert example.image.dtype == np.uint8
    assert example.part_masks.shape == (len(PART_NAMES), 96, 96)
    assert example.part_masks.dtype == example.aircraft_mask.dtype == example.parts.dtype == bool
    for example in examples:
        names = {name for name, present in zip(PART_NAMES, example.parts, strict=True) if present}
        assert names == VARIANTS[example.label].parts


def test_masks_show_the_parts_that_are_present_and_lie_in_the_aircraft(examples):
    for example in examples:
        visible = example.part_masks.any((1, 2))
        np.testing.assert_array_equal(visible, example.parts)
        assert not (example.part_masks & ~example.aircraft_mask).any()
        assert 0.08 < example.aircraft_mask.mean() < 0.5


def test_each_part_fills_a_tenth_of_a_cell_in_nine_of_ten_images_that_show_it(examples):
    shown, filled = np.zeros(len(PART_NAMES)), np.zeros(len(PART_NAMES))
    for example in examples:
        side = 96 // CELL_PX
        cells = example.part_masks.reshape(-1, side, CELL_PX, side, CELL_PX).mean((2, 4))  # [P, 6, 6]
        shown += example.parts
        filled += example.parts & (cells.max((1, 2)) >= 0.1)
    shares = dict(zip(PART_NAMES, filled / shown, strict=True))
    assert min(shares.values()) >= 0.9, shares


def test_a_part_changes_the_image_where_its_mask_is():
    """Twins drawn with the same appearance differ inside the mask of the part that sets them apart."""
    names = [variant.name for variant in VARIANTS]
    for without, with_part, part in (
        ("low-twin", "low-twin-winglets", "winglets"),
        ("low-twin", "low-four", "outer_engines"),
        ("tailjet-freighter", "tailjet", "window_row"),
        ("high-single-retract", "high-single", "fixed_gear"),
    ):
        for index in range(8):
            plain, full = (
                drawing.draw_variant(names.index(n), 0, "val", index).image for n in (without, with_part)
            )
            mask = drawing.draw_variant(names.index(with_part), 0, "val", index).part_masks
            inside = mask[PART_NAMES.index(part)]
            change = np.abs(plain.astype(int) - full.astype(int)).max(-1)
            assert np.mean(change[inside] > 8) > 0.4, (part, index)


@pytest.mark.parametrize("size", [64, 128])
def test_other_sizes_show_the_same_drawing(size):
    small, large = draw(0, "test", 4, size), draw(0, "test", 4, 96)
    assert small.image.shape == (size, size, 3)
    assert small.params == large.params
    assert small.aircraft_mask.mean() == pytest.approx(large.aircraft_mask.mean(), abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "testing", 0), "unknown split 'testing'; valid: train, val, test"),
        ((0, "test", -1), "index must be >= 0"),
        ((-1, "test", 0), "seed and index must be >= 0, got seed -1"),
        ((0, "test", 0, 8), "size is 8, expected at least 16 pixels"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        draw(*arguments)


def test_colours_and_coarse_pixels_do_not_tell_the_variant():
    """Logistic regression on a colour histogram and the 8x8 image stays below 3x chance on test."""
    features, labels = {}, {}
    for split, n in (("train", 800), ("test", 480)):
        drawn = [draw(9, split, index) for index in range(n)]
        features[split] = np.stack([_coarse_features(example.image) for example in drawn])
        labels[split] = np.array([example.label for example in drawn])
    mean, std = features["train"].mean(0), features["train"].std(0) + 1e-6
    train, test = ((features[split] - mean[None, :]) / std[None, :] for split in ("train", "test"))
    chance = 1.0 / len(VARIANTS)
    accuracies = []
    for decay in (1e-3, 1e-2, 1e-1):  # the best of several penalties, so that none excuses the result
        weights = _fit_logistic_regression(train, labels["train"], decay)
        accuracies.append(np.mean((test @ weights).argmax(1) == labels["test"]))
    assert max(accuracies) < 3 * chance, f"{accuracies}, chance is {chance}"


def _coarse_features(image: np.ndarray) -> np.ndarray:
    """Histogram of 4x4x4 colours and the 8x8 RGB means: float [64 + 192 + 1], the last a constant."""
    bins = image.astype(int) // 64
    histogram = np.bincount((bins @ np.array([16, 4, 1])).ravel(), minlength=64) / image[..., 0].size
    means = image.reshape(8, 12, 8, 12, 3).mean((1, 3)).ravel() / 255.0
    return np.concatenate([histogram, means, [1.0]])


def _fit_logistic_regression(features: np.ndarray, labels: np.ndarray, decay: float) -> np.ndarray:
    """Weights [D, L] of the multinomial logistic regression with an L2 penalty."""
    n, n_features = features.shape
    onehot = np.eye(len(VARIANTS))[labels]

    def objective(flat):
        weights = flat.reshape(n_features, -1)
        log_p = scipy.special.log_softmax(features @ weights, axis=1)
        gradient = features.T @ (np.exp(log_p) - onehot) / n + decay * weights
        return -np.sum(onehot * log_p) / n + 0.5 * decay * np.sum(weights**2), gradient.ravel()

    start = np.zeros(n_features * len(VARIANTS))
    return scipy.optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}
    ).x.reshape(n_features, -1)


def test_the_set_is_frozen():
    """Masks and drawing parameters stay as published: what studies report of this data set refers to them."""
    digest = hashlib.sha256()
    for seed, split, index in itertools.product((0, 1, 2024), drawing.SPLITS, (0, 1, 17, 500, 4999)):
        example = draw(seed, split, index)
        digest.update(
            np.packbits(example.part_masks).tobytes() + np.packbits(example.aircraft_mask).tobytes()
        )
        rounded = {
            name: np.round(np.asarray(value, float), 9).tolist() for name, value in example.params.items()
        }
        digest.update(json.dumps([example.label, rounded], sort_keys=True).encode())
    assert digest.hexdigest() == FROZEN, (
        "The drawings of synthetic_aircraft changed. The set is frozen: do not put in a new digest, undo the "
        "change that moved them. The digest was made with, and is the same for, OpenCV 4.10.0 and 5.0.0, and "
        "NumPy 2.4 and 2.5; if a newer one draws other pixels, replace the call that differs."
    )


def test_drawing_needs_neither_tfds_nor_jax():
    code = (
        "import sys; from jsae.data.synthetic_aircraft import drawing; drawing.draw(0, 'train', 0); "
        "print([m for m in ('jax', 'tensorflow_datasets', 'tensorflow') if m in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    from jsae.data.synthetic_aircraft import builder

    config = builder.SyntheticAircraftConfig(seed=2, image_size=48, n_train=300, n_val=16, n_test=17)
    made = builder.SyntheticAircraft(
        config=config, data_dir=tmp_path_factory.mktemp("tfds"), file_format="array_record"
    )
    made.download_and_prepare()
    return made


def test_the_builder_stores_what_draw_returns_in_the_order_of_the_index(prepared):
    assert prepared.builder_config.name == "seed2-48px-300-16-17"
    assert prepared.info.features["label"].names == [variant.name for variant in VARIANTS]
    for split, n in (("train", 300), ("val", 16), ("test", 17)):
        source = prepared.as_data_source(split)
        assert len(source) == n
        for index in (0, 5, n - 1):
            stored, drawn = source[index], draw(2, split, index, 48)
            assert stored["id"] == f"{split}-{index:05d}".encode()
            assert stored["label"] == drawn.label
            np.testing.assert_array_equal(stored["image"], drawn.image)
            np.testing.assert_array_equal(stored["parts"], drawn.parts)
            bits = stored["part_masks"]
            assert bits.dtype == np.uint16
            np.testing.assert_array_equal(bits >> 15 == 1, drawn.aircraft_mask)
            for part in range(len(PART_NAMES)):
                np.testing.assert_array_equal((bits >> part) & 1 == 1, drawn.part_masks[part])


def test_the_builder_needs_no_tensorflow(prepared):
    assert "tensorflow" not in sys.modules


def test_a_split_without_images_is_refused():
    from jsae.data.synthetic_aircraft import builder

    with pytest.raises(ValueError, match="n_val is 0, expected at least 1 image"):
        builder.SyntheticAircraftConfig(n_val=0)
