"""Activations made from a dictionary that is known, and what an SAE finds of it.

    x = offset + sum_j a_j d_j + noise

The G true directions d_j are random unit vectors; feature j is active with probability p_j, log-uniform
between two bounds, and then a_j = floor + (1 - floor) * an exponential, of mean 1. Vectors are drawn by the
batch from fold_in(key, step), so no vector comes twice and a rare feature is never a few memorised examples.
Training is the step of `jsae.sae.train`, without a store or a stage.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jsae import metrics
from jsae.sae import model, train, variants
from jsae.sae.batches import blocks


@dataclasses.dataclass(frozen=True)
class Truth:
    """A known dictionary.

    Attributes:
      directions: unit rows [G, C].
      frequencies: probability that a feature is active [G].
      offset: a vector [C] added to all activations.
      noise: standard deviation of each channel.
      floor: smallest strength of an active feature, in 0..1; the mean is 1.
    """

    directions: np.ndarray
    frequencies: np.ndarray
    offset: np.ndarray
    noise: float
    floor: float = 0.3


def make_truth(
    seed: int, *, n_true: int, n_channels: int, rarest: float, commonest: float, noise: float, offset: float
) -> Truth:
    """A truth with frequencies log-uniform between rarest and commonest and an offset of this length."""
    rng = np.random.default_rng([seed, n_true, n_channels])
    directions = rng.normal(size=(n_true, n_channels))
    direction = rng.normal(size=n_channels)
    return Truth(
        directions=(directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32),
        frequencies=np.exp(rng.uniform(np.log(rarest), np.log(commonest), n_true)).astype(np.float32),
        offset=(offset * direction / np.linalg.norm(direction)).astype(np.float32),
        noise=noise,
    )


def draw(key: jax.Array, truth: Truth, n: int) -> jax.Array:
    """Raw activations [n, C] of a key."""
    active, noise = jax.random.split(key)
    u = jax.random.uniform(active, (n, len(truth.frequencies)), minval=2.0**-25)
    # Where u < p, u / p is uniform again, so -log(u / p) is exponential: one number serves both
    share = u / truth.frequencies[None, :]
    size = truth.floor - (1 - truth.floor) * jnp.log(share)
    clean = jnp.matmul(jnp.where(share < 1, size, 0.0), truth.directions, precision="float32")
    return clean + truth.offset[None, :] + truth.noise * jax.random.normal(noise, clean.shape)


def fit(
    mesh: Mesh,
    truth: Truth,
    recipe: train.Recipe,
    *,
    seed: int,
    variant: variants.Variant,
    n_features: int,
    batch_size: int,
) -> model.SAE:
    """An SAE trained on fresh draws; mean and scale are measured on one large draw first."""
    key = jax.random.key(seed)
    sample = np.asarray(draw(jax.random.fold_in(key, 2**31 - 1), truth, 65536), np.float64)
    mean = sample.mean(0)
    fresh = model.init(
        key,
        n_channels=sample.shape[1],
        n_features=n_features,
        variant=variant,
        mean=mean,
        scale=np.sqrt(((sample - mean[None, :]) ** 2).mean()),
    )
    step = train.make_step(mesh, fresh, recipe)
    mask = jnp.ones((blocks.N_BLOCKS, batch_size // blocks.N_BLOCKS))

    def run_steps(state):
        def body(_, state):
            x = model.normalise(state.sae, draw(jax.random.fold_in(key, state.step), truth, batch_size))
            return step(state, {"x": x.reshape(*mask.shape, -1), "mask": mask})[0]

        return jax.lax.fori_loop(0, recipe.n_steps, body, state)

    return train.trained_sae(jax.jit(run_steps)(train.init_state(fresh, recipe)))


def report(sae: model.SAE, truth: Truth, *, seed: int, n_vectors: int, frequent: float = 1e-3) -> dict:
    """What was found.

    Returns:
      recovered, recovered_frequent: share of the true features, and of those with a frequency above
      `frequent`, whose direction some alive row has (cosine above 0.9); share_true: share of the alive
      rows that have a true direction; fvu, l0 and dead_fraction on n_vectors fresh vectors.
    """
    x = draw(jax.random.fold_in(jax.random.key(seed), 2**31 - 2), truth, n_vectors)
    with jax.default_matmul_precision("float32"):
        feats = sae.encode(x)
        sums = metrics.sae_sums(x, sae.decode(feats), feats, jnp.ones(n_vectors), sae.mean)
    numbers = metrics.sae_metrics(sums)
    alive = np.asarray(sae.w_dec)[np.asarray(sums.fires) > 0]
    found = metrics.recovery(alive, truth.directions)
    often = truth.frequencies > frequent
    return {
        "recovered": float(found["recovered"].mean()),
        "recovered_frequent": float(found["recovered"][often].mean()),
        "share_true": found["share_true"],
    } | {name: numbers[name] for name in ("fvu", "l0", "dead_fraction")}
