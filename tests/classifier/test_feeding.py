"""Images on the devices or batch by batch: the same batches and bits, however many steps a dispatch has."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.classifier import feeding, train
from jsae.data.cache import Split
from jsae.runtime import mesh
from tests.classifier.test_train import ARCH, RECIPE

SMALL = dataclasses.replace(ARCH, depths=(0, 0, 0, 1))
N, BATCH, N_STEPS = 21, 8, 6


@pytest.fixture(scope="module")
def split():
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (N, 16, 16, 3), np.uint8), rng.integers(0, 4, N).astype(np.int32)
    return Split("train", images, labels, tuple(map(str, range(N))), ("a", "b", "c", "d"))


def run(device_mesh, split, step, state, store, lengths):
    feed = feeding.open_feed(device_mesh, split, step, seed=3, batch_size=BATCH, start=0, store=store)
    state, found, at = mesh.replicate(device_mesh, state), [], 0
    for n in lengths:
        state, values = feed(state, at, n)
        found += [{name: np.asarray(value)[i] for name, value in values.items()} for i in range(n)]
        at += n
    feed.close()
    return jax.tree.map(np.asarray, state), found


def assert_same(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_array_equal(a, b)


def test_many_steps_in_one_dispatch_are_the_same_steps_bit_for_bit(split):
    one_device = mesh.make_mesh(devices=jax.devices()[:1])
    step = train.make_step(SMALL, RECIPE, seed=3)
    state = jax.jit(lambda: train.init_state(jax.random.key(3), SMALL, RECIPE, layer_scale=0.5))()
    state = jax.tree.map(np.asarray, state)
    streamed = run(one_device, split, step, state, "streamed", [1] * N_STEPS)
    assert_same(run(one_device, split, step, state, "resident", [1, 2, 3]), streamed)


@pytest.mark.parametrize("n_devices", [1, 8])
def test_both_feeds_give_the_same_batches(split, n_devices):
    def step(state, batch):
        seen = {name: state[name].at[state["step"]].set(batch[name]) for name in batch}
        return seen | {"step": state["step"] + 1}, {"sum": batch["image"].astype(jnp.int32).sum()}

    device_mesh = mesh.make_mesh(devices=jax.devices()[:n_devices])
    state = {
        "image": np.zeros((N_STEPS, BATCH, 16, 16, 3), np.uint8),
        "label": np.zeros((N_STEPS, BATCH), np.int32),
        "index": np.zeros((N_STEPS, BATCH), np.int32),
        "step": np.int32(0),
    }
    streamed = run(device_mesh, split, step, state, "streamed", [1] * N_STEPS)
    resident = run(device_mesh, split, step, state, "resident", [4, 2])
    assert_same(resident, streamed)
    np.testing.assert_array_equal(resident[0]["image"], split.images[resident[0]["index"]])


def test_a_device_holds_its_share_and_gathers_no_image(split):
    device_mesh = mesh.make_mesh(devices=jax.devices()[:8])
    images = feeding.put_images(device_mesh, split.images)
    assert {shard.data.shape[0] for shard in images.addressable_shards} == {3}
    look_up = jax.jit(feeding.make_look_up(device_mesh))
    compiled = look_up.lower(images, np.arange(BATCH, dtype=np.int32)).compile().as_text()
    assert "reduce-scatter" in compiled and "all-gather" not in compiled


def test_nobody_knows_what_fits_on_a_cpu(split):
    assert not feeding.fits(mesh.make_mesh(devices=jax.devices()[:1]), split.images)
