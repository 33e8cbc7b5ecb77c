"""The resident blocks: each vector once an epoch, the same batches on any number of devices, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jsae.runtime import mesh as meshes
from jsae.sae.batches import blocks, resident


@functools.cache
def programs(length, rows, n_devices):
    """(mesh, epoch -> order, batch of (x, mask, order, position)) for blocks of this length, compiled."""
    mesh = meshes.make_mesh(devices=jax.devices()[:n_devices])
    shape = blocks.Shape(n_vectors=64 * length, n_channels=1, batch_size=64 * rows, length=length)
    order_of = blocks.make_order(mesh, shape, 5)
    take = functools.partial(blocks.take, shape=shape, mean=np.zeros(1, np.float32), scale=1.0)
    return mesh, order_of, jax.jit(take)


def epoch_batches(n_vectors, batch_size, epoch, n_devices=1, seed=0):
    """The numbers of the vectors in each batch of an epoch; a vector's only channel is its number."""
    shape = resident.shape_of(n_vectors, 1, batch_size)
    mesh, order_of, take = programs(shape.length, shape.rows, n_devices)
    numbers = np.arange(n_vectors, dtype=np.float32)[:, None]
    chunks = np.array_split(numbers, 3)
    x, mask = (blocks.put(mesh, array) for array in resident._fill(mesh, chunks, shape, seed))
    order = order_of(epoch)
    batches = [take(x, mask, order, i) for i in range(shape.steps_per_epoch)]
    assert all(b["x"].shape == (64, batch_size // 64, 1) for b in batches)
    return [np.asarray(b["x"])[..., 0][np.asarray(b["mask"]) > 0].astype(int) for b in batches]


@settings(max_examples=12, deadline=None)
@given(
    n_vectors=st.integers(1, 7 * 64),
    epoch=st.integers(0, 2**20),
    seed=st.integers(0, 2**31 - 1),
)
def test_each_real_vector_comes_once_an_epoch(n_vectors, epoch, seed):
    batches = epoch_batches(n_vectors, 128, epoch, seed=seed)
    assert sorted(np.concatenate(batches)) == list(range(n_vectors))


def test_the_same_batches_on_1_and_8_devices_and_others_in_another_epoch():
    one, eight = (epoch_batches(700, 128, 3, n) for n in (1, 8))
    assert [list(b) for b in one] == [list(b) for b in eight]
    other = epoch_batches(700, 128, 4)
    assert [list(b) for b in one] != [list(b) for b in other]


def test_blocks_are_mixed():
    """Vectors that follow each other in the store do not end in one block or one batch."""
    first = np.sort(epoch_batches(6400, 640, 0)[0])
    assert abs(first.mean() - 3200) < 250  # 3.4 standard deviations of a fair sample's mean
    assert np.diff(first).max() < 120


def test_the_numbers_of_a_batch_are_those_of_its_vectors():
    mesh = meshes.make_mesh(devices=jax.devices()[:2])
    shape = resident.shape_of(700, 1, 128)
    source = resident.Resident(mesh, [np.arange(700, dtype=np.float32)[:, None]], shape, seed=3)
    for step in (0, 5, shape.steps_per_epoch + 2):
        window, numbers = source.at(step), source.numbers(step)
        batch = blocks.take(
            *(window.x, window.mask, window.order, step - window.first, shape), np.zeros(1, np.float32), 1.0
        )
        real = np.asarray(batch["mask"]) > 0
        np.testing.assert_array_equal(np.asarray(batch["x"])[..., 0][real], numbers[real])
        assert (numbers[~real] == -1).all()


def test_scaling_happens_in_float32_about_the_mean():
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    rng = np.random.default_rng(0)
    x = (1000 + 0.5 * rng.normal(size=(63, 3))).astype(np.float32)
    shape = resident.shape_of(63, 3, 64)
    window = resident.Resident(mesh, [x], shape, seed=0).at(0)
    batch = blocks.take(
        *(window.x, window.mask, window.order, 0, shape), np.full(3, 1000, np.float32), np.float32(0.5)
    )
    assert batch["mask"].sum() == 63
    assert batch["x"].dtype == jnp.float32
    found = np.sort(np.asarray(batch["x"])[np.asarray(batch["mask"]) > 0], axis=0)
    np.testing.assert_allclose(found, np.sort((x - 1000) / np.float32(0.5), axis=0), rtol=1e-6)
    assert (np.asarray(batch["x"])[np.asarray(batch["mask"]) == 0] == 0).all()


def test_memory_is_announced(caplog):
    mesh = meshes.make_mesh(devices=jax.devices()[:2])
    with caplog.at_level("INFO", logger="jsae"):
        resident.Resident(mesh, [np.zeros((64, 4))], resident.shape_of(64, 4, 64), seed=0)
    assert "64 vectors of 4 channels" in caplog.text
    assert "MiB" in caplog.text


def test_errors_name_the_setting_and_what_would_do():
    with pytest.raises(ValueError, match=r"batch_size=100 must be a positive multiple of 64.*128 would do"):
        resident.shape_of(1000, 4, 100)
    with pytest.raises(ValueError, match="no activation vectors"):
        resident.shape_of(0, 4, 64)
    with pytest.raises(ValueError, match="data axis, 3, must divide the 64 blocks"):
        blocks.check_mesh(meshes.make_mesh(devices=jax.devices()[:3]))
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    shape = resident.shape_of(64, 1, 64)
    for n in (63, 65):
        with pytest.raises(ValueError, match="64 vectors"):
            resident.Resident(mesh, [np.zeros((n, 1))], shape, seed=0)
