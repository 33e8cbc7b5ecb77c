"""The benchmark's section on all features: it counts what it says, and sees an error of the closed form."""

import types

import jax
import numpy as np
import pytest

from jsae import classifier
from jsae import sae as saes
from jsae.ablation.all_features import formula
from jsae.activations.store import make_batches
from launch.benchmark import all_features, turns


def test_rates_of_a_small_case():
    row = all_features.rates(turns.alternate, 1, n_images=8, n_features=40, n_channels=16, n_classes=3)
    assert row["n_pairs"] == 320 and 0 <= row["n_guarded"] < 320
    assert row["ablations_per_s"] > 0 and row["three_targets_ablations_per_s"] > 0


class Store:
    """Activations of 20 images, two of which one feature carries nearly alone."""

    n_images = 20

    def __init__(self, sae, params):
        rng = np.random.default_rng(0)
        self._acts = rng.normal(size=(20, 2, 2, 8)).astype(np.float32)
        self._acts[:2] = 30 * np.asarray(sae.w_dec)[:2, None, None, :] + 0.1 * self._acts[:2]
        self.labels = rng.integers(0, 3, 20).astype(np.int32)
        logits = jax.jit(lambda acts: classifier.apply(params, acts, start="stage4")[0])(self._acts)
        self.predictions = np.asarray(logits).argmax(-1).astype(np.int32)

    def read(self, start, stop):
        return self._acts[start:stop]

    def batches(self, batch_size):
        return make_batches(self, batch_size)


@pytest.fixture(scope="module")
def study():
    arch = classifier.make_model("toy", 3, stem_stride=1, depths=(0, 0, 0, 0), dims=(2, 2, 2, 8))
    params = jax.jit(lambda key: classifier.init(key, arch, kernels="fan_in"))(jax.random.key(0))
    kinds = {"variant": "topk", "k": 5, "mean": np.zeros(8, np.float32), "scale": 1.0}
    sae = saes.init(jax.random.key(1), n_channels=8, n_features=24, **kinds)
    return types.SimpleNamespace(params=params, sae=sae, store=Store(sae, params))


def compare(study, **settings):
    tops = np.arange(24) % 3 - (np.arange(24) == 5)
    return all_features.against_forward_pass(study.params, study.sae, study.store, tops, **settings)


def test_the_closed_form_is_the_forward_pass(study):
    row = compare(study, n_pairs=150, n_strongest=20)
    assert row["n_pairs"] == 480 and 150 == row["n_compared"] < row["n_active_pairs"] < 480
    assert row["n_silent_not_zero"] == 0 and row["n_flips_differing"] == 0 and row["n_guarded"] >= 2
    assert row["smallest_share_left"] < formula.GUARD  # so the guarded ones are compared
    for name in ("logit", "margin", "confidence", "log_confidence"):
        assert row[f"largest_difference_{name}"] < 1e-5 * row["largest_logit"]  # float32


def test_an_error_is_seen(study, monkeypatch):
    right = all_features.closed_form.effects

    def wrong(head, w_dec, *rest):
        return right(head, 1.001 * w_dec, *rest)

    monkeypatch.setattr(all_features.closed_form, "effects", wrong)
    row = compare(study, n_pairs=150, n_strongest=20)
    assert row["largest_difference_logit"] > 1e-5 * row["largest_logit"]
