"""Scores and tables of a classifier against counting by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from jsae import metrics
from jsae.classifier import evaluate, picture, train
from jsae.data import cache

NAMES = ("A", "B", "C/1", "never")
LOGITS = np.array([[2, 0, 0, -9], [0, 3, 0, -9], [0, 3, 1, -9], [0, 1, 4, -9], [5, 1, 0, -9]], np.float32)
LABELS = np.array([0, 1, 2, 2, 1])


def test_tables_count_images():
    tables = evaluate.tables(LOGITS, LABELS, NAMES)
    rows = tables["per_class"].to_pylist()
    assert [row["n_images"] for row in rows] == [1, 2, 2, 0]
    assert [row["accuracy"] for row in rows] == [1.0, 0.5, 0.5, None]
    assert [row["precision"] for row in rows] == [0.5, 0.5, 1.0, None]
    assert [row["most_taken_for"] for row in rows] == [None, "A", "B", None]
    pairs = {(row["label"], row["prediction"]): row["n_images"] for row in tables["confusion"].to_pylist()}
    assert pairs == {(0, 0): 1, (1, 0): 1, (1, 1): 1, (2, 1): 1, (2, 2): 1}
    bins = tables["calibration"].to_pylist()
    assert sum(row["n_images"] for row in bins) == 5
    assert {row["accuracy"] for row in bins if not row["n_images"]} == {None}


def test_a_prediction_is_right_at_a_coarser_level_if_its_parent_is():
    levels = {"family": (("AB", "C"), np.array([0, 0, 1, -1])), "maker": (("all",), np.array([0, 0, 0, -1]))}
    found = evaluate.coarser_scores(LOGITS, LABELS, levels)
    # predictions 0, 1, 1, 2, 0 for labels 0, 1, 2, 2, 1: only the third has another family
    assert found["family"] == {
        "accuracy": pytest.approx(4 / 5),
        "mean_per_class_accuracy": pytest.approx(0.75),
    }
    assert found["maker"]["accuracy"] == 1
    unknown = np.array([[0, 0, 0, 1.0]], np.float32)  # the class whose parent is not known
    assert evaluate.coarser_scores(unknown, np.array([0]), levels)["maker"]["accuracy"] == 0


def test_confusion_sums_to_the_images_and_its_diagonal_to_the_accuracy():
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((200, 7)), rng.integers(0, 7, 200)
    confusion = metrics.confusion(logits, labels)
    assert confusion.sum() == 200
    assert np.trace(confusion) / 200 == metrics.accuracy(logits, labels)
    naive = np.zeros((7, 7), int)
    for row, label in zip(logits, labels, strict=True):
        naive[label, row.argmax()] += 1
    np.testing.assert_array_equal(confusion, naive)


def test_calibration_error_equals_the_definition():
    rng = np.random.default_rng(1)
    logits, labels = 2 * rng.standard_normal((300, 5)), rng.integers(0, 5, 300)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (p.max(1) > low) & (p.max(1) <= low + 0.1)
        if inside.any():
            gap = (p.argmax(1) == labels)[inside].mean() - p.max(1)[inside].mean()
            expected += inside.sum() / 300 * abs(gap)
    # the bin edges are the same numbers up to rounding, and no confidence lies on one
    assert metrics.calibration(logits, labels, 10)["ece"] == pytest.approx(expected, rel=1e-9)


def test_a_classifier_that_is_always_right_and_sure_has_no_calibration_error():
    logits = 100 * np.eye(4)
    assert metrics.calibration(logits, np.arange(4), 15)["ece"] == 0
    assert metrics.calibration(logits, (np.arange(4) + 1) % 4, 15)["ece"] == 1


def test_the_picture_shows_images_and_their_augmented_forms():
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    split = cache.Split("train", images, np.arange(3, dtype=np.int32), ("a", "b", "c"), NAMES)
    recipe = train.Recipe(
        n_steps=1,
        warmup_steps=0,
        learning_rate=1.0,
        weight_decay=0.0,
        clip_norm=1.0,
        label_smoothing=0.0,
        drop_path=0.0,
        ema_decay=0.9,
        augmentation={"crop": "pad", "pad_px": 2, "flip": True},
    )
    grid = np.asarray(Image.open(io.BytesIO(picture.augmentation_grid(split, recipe, 0))))
    assert grid.shape == (3 * 18, 10 * 18, 3)
    shown = {grid[18 * row : 18 * row + 16, :16].tobytes() for row in range(3)}
    assert shown == {image.tobytes() for image in images}
    assert grid[:16, 18:34].tobytes() not in shown
