"""Dictionaries to hold an SAE against: the same encode, decode and w_dec, so that one code measures all.

All of them are made from train vectors only (`jsae.analysis.directions` has the random ones). A signed
direction u is two features, relu(u) and relu(-u):

    channels     each channel                          pca           principal components
    rotation     a random orthogonal basis
    class_mean   mean of a class minus the mean of all: as detectors, not as a dictionary
    kmeans       directions of spherical k-means (scikit-learn); only the nearest one fires
    nmf          non-negative factors (scikit-learn) of the channels' positive and negative parts; features by
                 multiplicative updates, which bring them near 0 but never to it: all of them count as firing
"""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae.analysis.directions import Directions, unit_rows
from jsae.runtime.pytrees import pytree

N_VECTORS = 16_384  # train vectors that pca, kmeans and nmf are made from
_KMEANS_ROUNDS = 20
_NMF_ROUNDS = 15
_NMF_ENCODE_ROUNDS = 30


@pytree
class Factors:
    """Features >= 0 whose sum of parts [F, 2C] comes near the positive and negative parts of x - mean.

    Attributes:
      parts: rows >= 0 [F, 2C], each scaled so that its row of w_dec has unit norm.
      mean: [C], raw units.
    """

    parts: jax.Array
    mean: jax.Array

    @property
    def n_features(self) -> int:
        return self.parts.shape[0]

    @property
    def w_dec(self) -> jax.Array:
        """What a feature adds to the activations [F, C]."""
        positive, negative = jnp.split(self.parts, 2, axis=-1)
        return positive - negative

    def encode(self, x: jax.Array) -> jax.Array:
        """Features [..., F] of raw activations [..., C], by multiplicative updates from equal ones.

        The update is that of Lee and Seung (2001), with the parts held fixed.
        """
        target = _split(x.astype(jnp.float32).reshape(-1, x.shape[-1]) - self.mean[None, :])  # [N, 2C]
        gram = jnp.matmul(self.parts, self.parts.T, precision="float32")
        wanted = jnp.matmul(target, self.parts.T, precision="float32")

        def update(_, feats):
            return feats * wanted / (jnp.matmul(feats, gram, precision="float32") + 1e-9)

        feats = jnp.ones((len(target), self.n_features)) * target.mean(-1, keepdims=True)
        feats = jax.lax.fori_loop(0, _NMF_ENCODE_ROUNDS, update, feats)
        return feats.reshape(*x.shape[:-1], -1)

    def decode(self, feats: jax.Array) -> jax.Array:
        """Raw activations [..., C] of features [..., F]."""
        return Directions(self.w_dec, self.mean).decode(feats)


def sample(store: Any) -> np.ndarray:
    """About N_VECTORS vectors [N, C] of a store, all cells of evenly spaced images."""
    n = min(store.n_images, max(1, N_VECTORS // (store.grid[0] * store.grid[1])))
    images = np.unique(np.linspace(0, store.n_images - 1, n).astype(np.int64)).tolist()
    return np.concatenate([store.read(i, i + 1).reshape(-1, store.n_channels) for i in images])


def signed(rows: np.ndarray, mean: np.ndarray) -> Directions:
    """relu(u) and relu(-u) for every row u [G, C]: 2G features, of unit norm."""
    return Directions(unit_rows(np.concatenate([rows, -rows])), jnp.asarray(mean, jnp.float32))


def channels(mean: np.ndarray) -> Directions:
    """Every channel and its negative."""
    return signed(np.eye(len(mean)), mean)


def rotation(mean: np.ndarray, seed: int) -> Directions:
    """A random orthogonal basis of the channels."""
    rng = np.random.default_rng([seed, 0x726F74])
    return signed(np.linalg.qr(rng.normal(size=(len(mean), len(mean))))[0], mean)


def pca(vectors: np.ndarray, mean: np.ndarray) -> Directions:
    """All principal components of vectors [N, C]."""
    centred = np.asarray(vectors, np.float64) - np.asarray(mean, np.float64)[None, :]
    return signed(np.linalg.eigh(centred.T @ centred)[1].T[::-1], mean)


def class_mean(class_vectors: np.ndarray, mean: np.ndarray) -> Directions:
    """Direction from the mean to each class's mean vector [L, C]; classes without images (NaN) give 0."""
    rows = np.asarray(class_vectors, np.float64) - np.asarray(mean, np.float64)[None, :]
    return Directions(unit_rows(np.nan_to_num(rows)), jnp.asarray(mean, jnp.float32))


def kmeans(vectors: np.ndarray, mean: np.ndarray, n_features: int, seed: int) -> Directions:
    """Spherical k-means of vectors [N, C]: of their directions, from random ones; at most N clusters."""
    from sklearn.cluster import KMeans  # a second to import, which most starts do not need

    rows = np.asarray(unit_rows(np.asarray(vectors, np.float32) - np.asarray(mean, np.float32)[None, :]))
    n_clusters = min(n_features, len(rows))
    fit = KMeans(n_clusters, init="random", n_init=1, max_iter=_KMEANS_ROUNDS, random_state=seed).fit(rows)
    rows = unit_rows(fit.cluster_centers_)
    return Directions(rows, jnp.asarray(mean, jnp.float32), nearest_only=True)


def nmf(vectors: np.ndarray, mean: np.ndarray, n_features: int, seed: int) -> Factors:
    """Non-negative factors of the positive and negative parts of vectors [N, C] minus mean."""
    from sklearn.decomposition import NMF
    from sklearn.exceptions import ConvergenceWarning

    target = np.asarray(_split(jnp.asarray(vectors, jnp.float32) - jnp.asarray(mean, jnp.float32)[None, :]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of rounds
        fit = NMF(n_features, init="random", max_iter=_NMF_ROUNDS, random_state=seed).fit(target)
    parts = fit.components_
    added = parts[:, : len(mean)] - parts[:, len(mean) :]
    norms = np.maximum(np.linalg.norm(added, axis=-1, keepdims=True), 1e-12)
    return Factors(jnp.asarray(parts / norms, jnp.float32), jnp.asarray(mean, jnp.float32))


def _split(centred: jax.Array) -> jax.Array:
    """The positive and the negative parts of vectors [N, C] side by side, [N, 2C]."""
    return jnp.concatenate([jax.nn.relu(centred), jax.nn.relu(-centred)], -1)
