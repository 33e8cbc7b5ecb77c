"""For every step k of a 200-step run: gone on from k, the state is that of a run left alone.

Both trainers, in one process, on tiny shapes: state k is taken off the devices and put back, and one more
step is taken from it, with the data that a run started at k would draw. Its digest must be that of step k + 1
of the run that was never interrupted; by induction every later one is then the same. Every 25th state takes
its way through a checkpoint on disk.
"""

import hashlib

import jax
import numpy as np
import pytest

from jsae.classifier import make_model
from jsae.classifier import train as classifier_train
from jsae.data import cache, pipeline
from jsae.runtime import checkpoints, mesh
from jsae.sae import model
from jsae.sae import train as sae_train
from jsae.sae.batches import resident

N_STEPS = 200
SAVE_EVERY = 25
N_CHANNELS, N_FEATURES = 8, 32


def digest(state) -> str:
    """Names, types, shapes and bits of a whole state."""
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.asarray(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def strong(state):
    """The state as it is after a step: with no weakly typed array, so that one compiled step serves all."""
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)


@pytest.fixture(scope="module")
def one_device():
    return mesh.make_mesh(devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def classifier(one_device):
    """(state before step 1, steps_from): steps_from(k) is a function of states that takes steps k + 1, ..."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (48, 16, 16, 3), np.uint8)
    labels = (np.arange(48) % 4).astype(np.int32)
    split = cache.Split("train", images, labels, tuple(map(str, range(48))), ("a", "b", "c", "d"))
    arch = make_model("own", 4, stem_stride=2, depths=(1, 0, 0, 1), dims=(4, 4, 4, 8))
    recipe = classifier_train.Recipe(
        n_steps=N_STEPS + 1,
        warmup_steps=10,
        learning_rate=1e-2,
        weight_decay=0.05,
        clip_norm=1.0,
        label_smoothing=0.1,
        drop_path=0.2,
        ema_decay=0.99,
        augmentation={"crop": "pad", "pad_px": 2, "flip": True},
    )
    whole = mesh.replicated(one_device)
    make = jax.jit(
        lambda: strong(classifier_train.init_state(jax.random.key(0), arch, recipe, layer_scale=0.5)),
        out_shardings=whole,
    )
    step = jax.jit(classifier_train.make_step(arch, recipe, 0), out_shardings=whole)

    def steps_from(k):
        batches = pipeline.train_batches(split, seed=0, batch_size=16, start_step=k)
        return lambda state: step(state, mesh.put_batch(one_device, next(batches)))[0]

    return make(), steps_from


@pytest.fixture(scope="module")
def sae(one_device):
    """The same for an SAE."""
    rng = np.random.default_rng(0)
    acts = rng.normal(size=(700, N_CHANNELS)).astype(np.float32)
    shape = resident.shape_of(len(acts), N_CHANNELS, 128)
    recipe = sae_train.Recipe(
        n_steps=N_STEPS + 1,
        learning_rate=1e-2,
        lr_warmup_steps=10,
        lr_decay_share=0.5,
        dead_after_steps=3,
        ema_decay=0.9,
    )
    constants = {"mean": acts.mean(0), "scale": np.float32(acts.std())}
    fresh = model.init(
        jax.random.key(0),
        n_channels=N_CHANNELS,
        n_features=N_FEATURES,
        variant="topk",
        k=3,
        **constants,
    )
    source = resident.Resident(one_device, iter([acts]), shape, seed=0)
    dispatch = sae_train.make_dispatch(one_device, fresh, recipe, shape, 1)

    def steps_from(k):
        place = [k]

        def step(state):
            window = source.at(place[0])
            place[0] += 1
            copy = jax.tree.map(jax.numpy.copy, state)  # the dispatch takes its argument's memory
            return dispatch(copy, window.x, window.mask, window.order, window.first, 1)[0]

        return step

    whole = mesh.replicated(one_device)
    return jax.device_put(strong(sae_train.init_state(fresh, recipe)), whole), steps_from


@pytest.mark.parametrize("trainer", ["classifier", "sae"])
def test_going_on_from_any_step_is_never_having_stopped(trainer, request, one_device, tmp_path):
    state, steps_from = request.getfixturevalue(trainer)
    abstract = checkpoints.abstract(state, mesh.replicated(one_device))
    step, left_alone = steps_from(0), [digest(state)]
    saved = checkpoints.Checkpoints(tmp_path, keep=N_STEPS)
    on_host = []
    for k in range(N_STEPS):
        if k % SAVE_EVERY == 0:
            saved.save(k, state)
        on_host.append(jax.tree.map(np.asarray, state))
        state = step(state)
        left_alone.append(digest(state))
    assert len(set(left_alone)) == N_STEPS + 1, "a step changed nothing"
    for k in range(N_STEPS):
        again = jax.device_put(on_host[k], mesh.replicated(one_device))
        if k % SAVE_EVERY == 0:
            _, again = saved.restore(abstract, step=k)
            assert digest(again) == left_alone[k], f"restored at step {k}"
        assert digest(steps_from(k)(again)) == left_alone[k + 1], f"the step after {k}"
    saved.close()
    print(f"{trainer}: {N_STEPS} of {N_STEPS} resumed steps equal, last state {left_alone[-1][:16]}")
