"""The pixel baseline: a fit that is a minimum, and colours that tell the class."""

import dataclasses

import numpy as np
import pytest
from scipy import special

from jsae.classifier import baseline
from jsae.data import cache


def test_the_fit_is_a_minimum_of_the_penalised_cross_entropy():
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((60, 5)), rng.integers(0, 3, 60)
    model = baseline.fit(x, labels, 0.1)
    weights = np.concatenate([model.coef_.T, model.intercept_[None]])

    def loss(weights):
        logits = x @ weights[:-1] + weights[-1]
        log_p = logits - special.logsumexp(logits, 1, keepdims=True)
        return -log_p[np.arange(60), labels].mean() + 0.05 * np.square(weights[:-1]).sum()

    for _ in range(50):
        assert loss(weights + 0.01 * rng.standard_normal(weights.shape)) > loss(weights)


def split(name, n, seed, informative):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, n).astype(np.int32)
    images = rng.integers(0, 100, (n, 16, 16, 3))
    if informative:
        images[..., 0] += 40 * labels[:, None, None]
    ids = tuple(f"{name} {i}" for i in range(n))
    return cache.Split(name, images.astype(np.uint8), labels, ids, ("a", "b", "c", "d"))


def test_it_sees_colours_and_nothing_where_there_is_nothing():
    def accuracy(informative):
        sizes = {"train": 400, "val": 100, "test": 200}
        splits = {name: split(name, n, i, informative) for i, (name, n) in enumerate(sizes.items())}
        return baseline.pixel_baseline(splits, seed=0)

    assert accuracy(True) > 0.95
    assert abs(accuracy(False) - 0.25) < 0.13  # 4 standard errors of 200 images


def test_with_trainval_the_penalty_is_chosen_without_the_images_of_val(monkeypatch):
    val, other = split("val", 30, 0, True), split("train", 50, 1, True)
    both = {
        field: np.concatenate([getattr(other, field), getattr(val, field)]) for field in ("images", "labels")
    }
    train = dataclasses.replace(other, ids=other.ids + val.ids, **both)
    fitted, fit = [], baseline.fit
    monkeypatch.setattr(baseline, "fit", lambda x, *rest: fitted.append(len(x)) or fit(x, *rest))
    baseline.pixel_baseline({"train": train, "val": val, "test": split("test", 20, 2, True)}, seed=0)
    assert fitted == [50, 50, 50, 80]


def test_a_stop_ends_the_fits():
    class Stop(Exception):
        pass

    asked = []

    def stop():
        asked.append(0)
        if len(asked) == 2:
            raise Stop

    splits = {name: split(name, 40, i, True) for i, name in enumerate(("train", "val", "test"))}
    with pytest.raises(Stop):
        baseline.pixel_baseline(splits, 0, stop)
