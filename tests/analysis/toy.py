"""A store in memory with the read side of an ActivationStore, and a small SAE to go with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jsae import sae as saes
from jsae.activations import run_pass
from jsae.activations.store import make_batches


@dataclasses.dataclass
class Store:
    acts: np.ndarray  # [n, H, W, C]
    labels: np.ndarray
    class_names: list = ()
    predictions: np.ndarray | None = None

    @property
    def grid(self):
        return self.acts.shape[1:3]

    @property
    def n_channels(self):
        return self.acts.shape[-1]

    @property
    def n_images(self):
        return len(self.acts)

    @property
    def image_ids(self):
        return [f"image-{i}" for i in range(self.n_images)]

    @property
    def mean(self):
        return self.acts.mean((0, 1, 2))

    def read(self, start, stop):
        return self.acts[start:stop]

    def batches(self, batch_size, images=None):
        return make_batches(self, batch_size, images)


@dataclasses.dataclass
class Study:
    """What analysis and ablation need of an opened study, in memory."""

    sae: saes.SAE
    stores: dict
    mesh: object = None

    def activations(self, split):
        return self.stores[split]

    def run_pass(self, split, reducers, *, dictionary=None, **settings):
        chosen = self.sae if dictionary is None else dictionary
        return run_pass(self.stores[split], chosen, reducers, mesh=self.mesh, **settings)


def store(seed=0, n=60, n_classes=4, grid=(3, 2), channels=5) -> Store:
    """Classes push one channel each, so that some features follow them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n).astype(np.int32)
    acts = rng.normal(size=(n, *grid, channels)).astype(np.float32)
    acts[np.arange(n), :, :, labels % channels] += 1.0
    predictions = rng.integers(0, n_classes, n).astype(np.int32)
    return Store(acts, labels, [f"class {c}" for c in range(n_classes)], predictions)


def sae(features=8, channels=5, seed=0) -> saes.SAE:
    """Random directions; feature 0 is dead, 1 fires on padding too, the others are sparse."""
    new = saes.init(
        jax.random.key(seed),
        n_channels=channels,
        n_features=features,
        variant="relu_l1",
        mean=jnp.full(channels, 0.1),
        scale=1.2,
    )
    bias = -jnp.linspace(0.0, 1.5, features).at[0].set(1e6).at[1].set(-0.5)
    return dataclasses.replace(new, b_enc=bias)


def sae_of_channels(channels=5) -> saes.SAE:
    """Feature j is relu of channel j: what it should see can be written down by hand."""
    new = saes.init(
        jax.random.key(0),
        n_channels=channels,
        n_features=channels,
        variant="relu_l1",
        mean=jnp.zeros(channels),
        scale=1.0,
    )
    return dataclasses.replace(new, w_enc=jnp.eye(channels), w_dec=jnp.eye(channels))
