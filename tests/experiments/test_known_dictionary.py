"""The known answer in a small form: training finds the true features, a frozen decoder does not."""

import jax
import numpy as np
import pytest

from configs import known_dictionary as configs
from jsae import sae
from jsae.experiments import known_dictionary
from jsae.runtime import mesh as meshes
from jsae.sae.run import recipe_of
from launch import known_dictionary as command


@pytest.fixture(scope="module")
def rows():
    """Numbers of three rows of the small form."""
    config, mesh = configs.get_config("small"), meshes.make_mesh(1, 1, devices=jax.devices()[:1])
    names = ("topk", "frozen_decoder")
    return {name: command.run_row(mesh, config, name, seed=0) for name in names}


def test_training_finds_the_features_and_a_frozen_decoder_does_not(rows):
    assert rows["topk"]["recovered_frequent"] >= 0.9
    assert rows["topk"]["l0"] <= 8
    assert rows["topk"]["fvu"] < 0.25
    assert rows["frozen_decoder"]["recovered_frequent"] < 0.1
    assert rows["frozen_decoder"]["share_true"] < 0.1


def test_drawn_activations_have_the_offset_noise_and_frequencies_they_should():
    truth = known_dictionary.make_truth(
        3, n_true=20, n_channels=8, rarest=1e-2, commonest=0.3, noise=0.1, offset=4.0
    )
    np.testing.assert_allclose(np.linalg.norm(truth.directions, axis=1), 1, rtol=1e-6)
    assert np.linalg.norm(truth.offset) == pytest.approx(4)
    x = np.asarray(known_dictionary.draw(jax.random.key(0), truth, 40000), np.float64)
    expected = truth.offset + truth.frequencies @ truth.directions  # an active feature has mean strength 1
    np.testing.assert_allclose(x.mean(0), expected, atol=0.02)
    f = truth.frequencies.astype(np.float64)
    second = truth.floor**2 + 2 * truth.floor * (1 - truth.floor) + 2 * (1 - truth.floor) ** 2
    variance = ((f * second - f**2)[:, None] * truth.directions.astype(np.float64) ** 2).sum(0) + 0.1**2
    np.testing.assert_allclose(x.var(0), variance, rtol=0.1)


@pytest.mark.parametrize("form", ["full", "small"])
def test_every_row_of_the_config_can_be_trained(form):
    config = configs.get_config(form)
    assert {row.variant for row in config.rows.values()} == set(sae.VARIANTS)
    for row in config.rows.values():
        c = config.sae.copy_and_resolve_references()
        c.update(row)
        recipe_of(c, n_steps=config.n_steps, dead_after_steps=config.dead_after_steps)
        sae.variants.of_section(c).check(c.n_features)
    with pytest.raises(ValueError, match="full and small"):
        configs.get_config("tiny")


def test_an_unknown_row_lists_the_rows():
    with pytest.raises(ValueError, match="the rows are"):
        command.run_row(None, configs.get_config("small"), "sparse", seed=0)
