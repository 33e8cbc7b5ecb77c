"""A small SAE, a small classifier head with a planted effect, and a store in memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jsae.activations import run_pass
from jsae.runtime import preemption
from jsae.runtime.context import RunContext
from jsae.runtime.pytrees import pytree
from tests.analysis.toy import Store

N_FEATURES, N_CHANNELS, N_CLASSES, GRID = 12, 8, 4, (3, 4)


@pytree
class ToySAE:
    """f = relu(x @ w_enc.T - threshold); the members that this room uses."""

    w_enc: jax.Array
    w_dec: jax.Array
    threshold: float = dataclasses.field(default=1.5, metadata={"static": True})

    @property
    def n_features(self):
        return len(self.w_dec)

    def encode(self, x):
        return jax.nn.relu(jnp.matmul(x, self.w_enc.T, precision="float32") - self.threshold)

    def decode(self, f):
        return jnp.matmul(f, self.w_dec, precision="float32")


def make_sae(seed=0, n_channels=N_CHANNELS) -> ToySAE:
    """Rows of unit norm, encoder tied; feature 0 reads and writes channel 0, the others leave it alone."""
    rows = np.random.default_rng(seed).normal(size=(N_FEATURES, n_channels))
    rows[1:, 0] = 0
    rows[0] = np.eye(n_channels)[0]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return ToySAE(jnp.asarray(rows, jnp.float32), jnp.asarray(rows, jnp.float32))


def make_acts(n=50, seed=1, n_channels=N_CHANNELS) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, *GRID, n_channels)).astype(np.float32)


@pytree
class ToyHead:
    """Pooled, non-linear head; class 2 depends on channel 0 only if `planted`."""

    weight: jax.Array

    def __call__(self, acts):
        pooled = (acts + jnp.tanh(acts)).mean((1, 2))
        return jnp.matmul(pooled, self.weight, precision="float32")


def make_head(planted: bool, n_channels=N_CHANNELS) -> ToyHead:
    weight = np.random.default_rng(3).normal(size=(n_channels, N_CLASSES)) * 2
    if planted:
        weight = 0.02 * weight
        weight[0] = [0, 0, 8, 0]
    return ToyHead(jnp.asarray(weight, jnp.float32))


class StoppedWhen(RunContext):
    """A run that is asked to stop as soon as `asked()` is true."""

    def __init__(self, asked):
        super().__init__()
        self.asked = asked

    def check(self):
        if self.asked():
            raise preemption.Preempted

    check_here = check


def reduce(reducer, sae, acts, labels=None, size=16, **settings):
    """The result of one reducer over activations in hand."""
    labels = np.zeros(len(acts), np.int32) if labels is None else np.asarray(labels, np.int32)
    return run_pass(Store(acts, labels), sae, {"it": reducer}, batch_size=size, **settings)["it"]
