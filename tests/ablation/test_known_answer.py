"""Removing a feature that only some variants have: the difference between variants by hand."""

import jax
import numpy as np
import pytest

from jsae import metrics
from jsae.ablation import controls, known_answer, statistics
from jsae.analysis import dictionaries, parts
from jsae.analysis.tables import documentation, make

CHANNELS, CLASSES = 4, 3
RNG = np.random.default_rng(0)
ACTS = RNG.normal(size=(30, 2, 2, CHANNELS)).astype(np.float32)
LABELS = np.arange(30).astype(np.int32) % CLASSES
KERNEL = RNG.normal(size=(CHANNELS, CLASSES)).astype(np.float32)
DICTIONARY = dictionaries.channels(np.zeros(CHANNELS))


def logits(acts):
    return acts.mean((1, 2)) @ KERNEL


def batches(size=8):
    for start in range(0, 30, size):
        acts = np.zeros((size, *ACTS.shape[1:]), np.float32)
        part = ACTS[start : start + size]
        acts[: len(part)] = part
        yield start, acts, (np.arange(size) < len(part)).astype(np.float32)


def test_removing_a_feature_is_the_forward_pass_without_it():
    found = known_answer.margin_effects(
        logits, DICTIONARY, batches(), labels=LABELS, features=np.array([1, 6])
    )
    for column, (channel, sign) in enumerate([(1, 1), (2, -1)]):
        without = ACTS.copy()
        without[..., channel] -= sign * np.maximum(sign * ACTS[..., channel], 0)
        expected = np.asarray(
            metrics.measures(logits(without), LABELS)["margin"]
            - metrics.measures(logits(ACTS), LABELS)["margin"]
        )
        np.testing.assert_allclose(found[:, column], expected, atol=1e-5)  # float32 sums in another order


def test_images_of_unknown_class_have_no_effect_and_a_silent_feature_an_exact_zero():
    labels = np.where(LABELS == 2, -1, LABELS)
    silent = dictionaries.Directions(DICTIONARY.w_dec, np.full(CHANNELS, 100.0, np.float32))
    found = known_answer.margin_effects(logits, silent, batches(), labels=labels, features=np.array([0]))
    assert np.isnan(found[labels < 0]).all() and (found[labels >= 0] == 0).all()


def test_the_control_takes_as_much_along_another_direction():
    key, root = jax.random.key(3), np.eye(CHANNELS, dtype=np.float32)
    settings = {"labels": LABELS, "features": np.array([1])}
    found = known_answer.margin_effects(logits, DICTIONARY, batches(), root=root, key=key, **settings)
    drawn = np.asarray(controls.draw_directions(key, root, np.ones(30, np.int32), np.arange(30)))
    without = ACTS - np.maximum(ACTS[..., 1], 0)[..., None] * drawn[:, None, None, :]
    expected = (
        metrics.measures(logits(without), LABELS)["margin"] - metrics.measures(logits(ACTS), LABELS)["margin"]
    )
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)  # float32 sums in another order


@pytest.fixture(scope="module")
def columns():
    n_parts = 4
    found = {field.name: np.zeros(n_parts) for field in parts.SCHEMA}
    found["part"] = np.array(["wing", "tail", "everywhere", "aircraft"])
    found["found"] = np.array([True, True, True, False])
    has = np.array([[1, 0, 1], [1, 1, 1], [0, 1, 1]], bool)  # the aircraft has no column
    deltas = np.zeros((30, n_parts))
    deltas[:, 0] = np.where(LABELS == 2, -0.1, -1.0) + 0.01 * RNG.normal(size=30)
    deltas[:, 1] = 0.01 * RNG.normal(size=30)
    effects = dict.fromkeys(known_answer.KINDS, 0 * deltas) | {"": deltas, "random_": -deltas}
    return known_answer.columns(found, effects, has, LABELS, n_bootstrap=200, seed=0), deltas


def test_parts_that_set_variants_apart_are_compared(columns):
    columns, deltas = columns
    assert columns["part"].tolist() == ["wing", "tail"]  # what all variants have tells nothing
    assert columns["n_with"].tolist() == [20, 20] and columns["n_without"].tolist() == [10, 10]
    with_part = LABELS < 2
    assert columns["with_delta_margin"][0] == pytest.approx(deltas[with_part, 0].mean())
    assert columns["difference"][0] == pytest.approx(
        deltas[with_part, 0].mean() - deltas[~with_part, 0].mean()
    )
    assert columns["difference_low"][0] < columns["difference"][0] < columns["difference_high"][0] < -0.85
    assert columns["random_difference"][0] == pytest.approx(-columns["difference"][0])
    assert columns["specific"].tolist() == [True, False] or columns["difference_high"][1] < 0
    assert known_answer.headline(columns)["n_parts"] == 2
    documented = documentation(make(columns, known_answer.SCHEMA))
    assert all(documented.values())


def test_which_variants_have_a_part_is_what_most_of_their_images_show():
    has = np.zeros((30, 2), bool)
    has[LABELS == 1, 0] = True
    has[np.flatnonzero(LABELS == 1)[:2], 0] = False  # hidden in two images
    has[0, 1] = True
    found = known_answer.variants_with(has, LABELS, 4)
    np.testing.assert_array_equal(found, [[0, 0], [1, 0], [0, 0], [0, 0]])


def test_the_interval_of_a_difference():
    rng = np.random.default_rng(1)
    a, b = rng.normal(1, 1, 400), rng.normal(0, 2, 100)
    mean, low, high = statistics.difference_interval(a, b, 2000, np.random.default_rng(0))
    assert mean == pytest.approx(a.mean() - b.mean())
    half = 1.96 * np.sqrt(a.var() / 400 + b.var() / 100)
    np.testing.assert_allclose([low, high], [mean - half, mean + half], atol=0.1 * half)  # of 2,000 resamples
    assert np.isnan(statistics.difference_interval(a[:0], b, 10, rng)).all()
