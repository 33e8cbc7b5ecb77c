"""A run saved on one topology goes on upon another: the same vectors in order, the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae
from jsae.runtime import checkpoints
from jsae.runtime import mesh as meshes
from jsae.sae import train
from jsae.sae.batches import blocks, resident

C, F, K, N = 16, 64, 4, 128
SHAPE = resident.shape_of(700, C, N)  # 6 steps an epoch
RECIPE = train.Recipe(n_steps=60, learning_rate=3e-3, dead_after_steps=2)
STEPS = 8
# Sums of a few hundred float32 terms in another order: the project's bound for a change of topology
RELATIVE = 1e-5


class Topology:
    """One mesh with its source and state; `run` trains."""

    def __init__(self, data, model, folder):
        self.mesh = meshes.make_mesh(data, model, devices=jax.devices()[: data * model])
        rng = np.random.default_rng(0)
        codes = rng.exponential(size=(700, 32)) * (rng.random((700, 32)) < 0.1)
        vectors = (codes @ rng.normal(size=(32, C)) / 1.2).astype(np.float32)
        self.source = resident.Resident(self.mesh, [vectors], SHAPE, seed=0)
        self.abstract = jax.eval_shape(self.fresh)
        self.shardings = train.shardings(self.mesh, self.abstract)
        self.saved = checkpoints.Checkpoints(folder)

    def fresh(self):
        made = sae.init(
            jax.random.key(1), n_channels=C, n_features=F, variant="topk", k=K, mean=jnp.zeros(C), scale=1.0
        )
        return train.init_state(made, RECIPE)

    def restore(self):
        return self.saved.restore(checkpoints.abstract(self.abstract, self.shardings))

    def batch(self, step):
        window = self.source.at(step)
        constants = np.zeros(C, np.float32), np.float32(1)
        return blocks.take(window.x, window.mask, window.order, step - window.first, SHAPE, *constants)

    def gradients(self, state, step):
        batch = self.batch(step)
        dead = state.silent_steps >= RECIPE.dead_after_steps
        sums = train.sums_over_mesh(self.mesh, state.sae, RECIPE)
        return jax.device_get(jax.jit(sums)(state.sae.params, batch["x"], batch["mask"], dead, 0.0)[1])

    def run(self, state, step, n):
        dispatch = train.make_dispatch(self.mesh, self.abstract.sae, RECIPE, SHAPE, n)
        for i in range(step, step + n):
            window = self.source.at(i)
            state, _ = dispatch(state, window.x, window.mask, window.order, window.first, 1)
        return state


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """(folder, batches, gradients of the next step) of a run of `STEPS` steps on 2 x 4 devices."""
    folder = tmp_path_factory.mktemp("checkpoints")
    first = Topology(2, 4, folder)
    state = jax.jit(first.fresh, out_shardings=first.shardings)()
    state = first.run(state, 0, STEPS)
    assert int((state.silent_steps >= RECIPE.dead_after_steps).sum()) > 0  # AuxK has something to do
    first.saved.save(STEPS, state)
    first.saved.wait()
    batches = [jax.device_get(first.batch(step)) for step in range(STEPS, STEPS + 7)]
    return folder, batches, first.gradients(state, STEPS)


@pytest.mark.parametrize("data, model", [(2, 1), (1, 2), (1, 1), (8, 1), (4, 2)])
def test_a_state_of_eight_devices_goes_on_upon_others(saved, data, model):
    folder, batches, expected = saved
    other = Topology(data, model, folder)
    step, state = other.restore()
    assert step == STEPS == int(state.step)
    assert state.adam[0].mu["w_dec"].addressable_shards[0].data.shape == (F // (data * model), C)
    for i, batch in enumerate(batches):  # over the end of an epoch
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(other.batch(STEPS + i)), batch)
    for name, gradient in other.gradients(state, step).items():
        assert np.abs(gradient - expected[name]).max() <= RELATIVE * np.abs(expected[name]).max(), name
    if (data, model) == (1, 1):
        state = other.run(state, step, 1)
        assert int(state.step) == STEPS + 1
