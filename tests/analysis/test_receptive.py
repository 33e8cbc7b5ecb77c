"""The share of a gradient inside a cell, where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.analysis import receptive
from jsae.analysis.directions import Directions
from jsae.tables import documentation

STRIDE = 4
SAE = Directions(jnp.concatenate([jnp.eye(3), -jnp.eye(3)]), jnp.zeros(3))  # relu of each channel
IMAGES = np.random.default_rng(0).uniform(1, 2, (5, 8, 12, 3)).astype(np.float32)


def own_cell(images):
    """Mean colour of each cell: depends on that cell alone."""
    return images.reshape(len(images), 2, STRIDE, 3, STRIDE, 3).mean((2, 4))


def all_pixels(images):
    """The same everywhere: the mean colour of the image."""
    return jnp.broadcast_to(images.mean((1, 2))[:, None, None, :], (len(images), 2, 3, 3))


@pytest.mark.parametrize(("acts_of", "share"), [(own_cell, 1.0), (all_pixels, 1 / 6)])
def test_a_cell_that_sees_itself_and_one_that_sees_all(acts_of, share):
    features, peaks = np.array([0, 1, 2, 1, 0]), np.array([[0, 0], [1, 2], [0, 1], [1, 0], [1, 1]])
    found = receptive.shares(acts_of, SAE, IMAGES, features, peaks, stride_px=STRIDE)
    np.testing.assert_allclose(found, share, rtol=1e-6)  # float32 sums


def test_a_feature_that_does_not_fire_has_no_share():
    found = receptive.shares(
        own_cell, SAE, IMAGES[:1], np.array([3]), np.zeros((1, 2), int), stride_px=STRIDE
    )
    assert np.isnan(np.asarray(found)).all()


def test_a_row_is_the_mean_over_the_features_top_patches():
    def half(images):  # a cell and its right neighbour, alike
        cells = own_cell(images)
        return cells + jnp.roll(cells, -1, axis=2)

    def read(images):
        return IMAGES[images]

    n = 13
    patches = {
        "feature": np.array([0] * 10 + [2] * 3),
        "image": np.arange(n) % 5,
        "y": np.arange(n) % 2,
        "x": np.arange(n) % 3,
    }
    measure = jax.jit(lambda batch: receptive.shares(half, SAE, **batch, stride_px=STRIDE))
    found = receptive.columns(measure, read, patches, [2, 0, 4], image_px=12, stride_px=STRIDE, batch_size=4)
    table = receptive.TABLE.make(found)
    assert table["feature"].to_pylist() == [2, 0, 4] and table["n_patches"].to_pylist() == [3, 8, 0]
    np.testing.assert_allclose(table["erf_share"].to_pylist()[:2], 0.5, rtol=1e-6)  # float32 sums
    assert table["erf_share"][2].as_py() is None and table["uniform_share"][0].as_py() == pytest.approx(1 / 9)
    assert all(documentation(table).values())
