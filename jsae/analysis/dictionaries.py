"""Dictionaries to hold an SAE against: the same encode, decode and w_dec, so that one code measures all.

    features = relu((x - mean) @ rows.T)      x_hat = mean + features @ rows

A signed direction u is two features, relu(u) and relu(-u). Units are those of the activations (raw), rows
have unit norm unless said otherwise. All of them are made from train vectors only:

    channels     each channel                          pca           principal components
    rotation     a random orthogonal basis             random        random directions, one sign each
    class_mean   mean of a class minus the mean of all: as detectors, not as a dictionary
    kmeans       directions of spherical k-means; only the nearest one fires
    nmf          of the channels' positive and negative parts, by multiplicative updates, which bring
                 features near 0 but never to it: all of them count as firing
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

N_VECTORS = 16_384  # train vectors that pca, kmeans and nmf are made from
_KMEANS_ROUNDS = 20
_NMF_ROUNDS = 100
_NMF_ENCODE_ROUNDS = 30


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Directions:
    """Features that are projections on the rows [F, C], cut off at 0.

    Attributes:
      w_dec: unit rows [F, C].
      mean: [C], raw units.
      nearest_only: the largest feature of a vector alone fires; static.
    """

    w_dec: jax.Array
    mean: jax.Array
    nearest_only: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def n_features(self) -> int:
        return self.w_dec.shape[0]

    def encode(self, x: jax.Array) -> jax.Array:
        """Features [..., F] of raw activations [..., C], >= 0, raw units."""
        centred = x.astype(jnp.float32) - self.mean.reshape((1,) * (x.ndim - 1) + (-1,))
        feats = jax.nn.relu(jnp.matmul(centred, self.w_dec.T, precision="float32"))
        if self.nearest_only:
            feats = jnp.where(feats == feats.max(-1, keepdims=True), feats, 0)
        return feats

    def decode(self, feats: jax.Array) -> jax.Array:
        """Raw activations [..., C] of features [..., F]."""
        mean = self.mean.reshape((1,) * (feats.ndim - 1) + (-1,))
        return jnp.matmul(feats, self.w_dec, precision="float32") + mean


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Nmf:
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
        """Features [..., F] of raw activations [..., C], by multiplicative updates from equal ones."""
        centred = (x.astype(jnp.float32) - self.mean.reshape((1,) * (x.ndim - 1) + (-1,))).reshape(
            -1, x.shape[-1]
        )
        target = jnp.concatenate([jax.nn.relu(centred), jax.nn.relu(-centred)], -1)  # [N, 2C]
        feats = jnp.ones((len(target), self.n_features)) * target.mean(-1, keepdims=True)
        feats = jax.lax.fori_loop(
            0, _NMF_ENCODE_ROUNDS, lambda _, feats: _nmf_step(target, feats, self.parts), feats
        )
        return feats.reshape(*x.shape[:-1], -1)

    def decode(self, feats: jax.Array) -> jax.Array:
        """Raw activations [..., C] of features [..., F]."""
        mean = self.mean.reshape((1,) * (feats.ndim - 1) + (-1,))
        return jnp.matmul(feats, self.w_dec, precision="float32") + mean


def _nmf_step(target, feats, parts):
    """One multiplicative update of feats [N, F] for target [N, D] ~ feats @ parts (Lee and Seung 2001)."""
    gram = jnp.matmul(parts, parts.T, precision="float32")
    wanted = jnp.matmul(target, parts.T, precision="float32")
    return feats * wanted / (jnp.matmul(feats, gram, precision="float32") + 1e-9)


def sample(store) -> np.ndarray:
    """About N_VECTORS vectors [N, C] of a store, all cells of evenly spaced images."""
    n = min(store.n_images, max(1, N_VECTORS // (store.grid[0] * store.grid[1])))
    images = np.unique(np.linspace(0, store.n_images - 1, n).astype(np.int64)).tolist()
    return np.concatenate([store.read(i, i + 1).reshape(-1, store.n_channels) for i in images])


def signed(rows, mean) -> Directions:
    """relu(u) and relu(-u) for every row u [G, C]: 2G features, of unit norm."""
    rows = _unit(rows)
    return Directions(jnp.concatenate([rows, -rows]), jnp.asarray(mean, jnp.float32))


def channels(mean) -> Directions:
    return signed(np.eye(len(mean)), mean)


def rotation(mean, seed: int) -> Directions:
    """A random orthogonal basis of the channels."""
    rng = np.random.default_rng([seed, 0x726F74])
    return signed(np.linalg.qr(rng.normal(size=(len(mean), len(mean))))[0], mean)


def random(mean, n_features: int, seed: int) -> Directions:
    """n_features directions, uniform on the sphere."""
    rng = np.random.default_rng([seed, 0x726E64])
    return Directions(_unit(rng.normal(size=(n_features, len(mean)))), jnp.asarray(mean, jnp.float32))


def pca(vectors, mean) -> Directions:
    """All principal components of vectors [N, C]."""
    centred = np.asarray(vectors, np.float64) - np.asarray(mean, np.float64)[None, :]
    return signed(np.linalg.eigh(centred.T @ centred)[1].T[::-1], mean)


def class_mean(class_vectors, mean) -> Directions:
    """Direction from the mean to each class's mean vector [L, C]; classes without images (NaN) give 0."""
    rows = np.nan_to_num(np.asarray(class_vectors, np.float64) - np.asarray(mean, np.float64)[None, :])
    return Directions(_unit(rows), jnp.asarray(mean, jnp.float32))


def kmeans(vectors, mean, n_features: int, seed: int) -> Directions:
    """Spherical k-means of vectors [N, C], started from random ones; a row that nobody is near stays."""
    rng = np.random.default_rng([seed, 0x6B6D])
    centred = jnp.asarray(np.asarray(vectors, np.float32) - np.asarray(mean, np.float32)[None, :])
    rows = _unit(centred[rng.choice(len(centred), n_features, replace=len(centred) < n_features)])
    rows = _kmeans(centred / jnp.maximum(jnp.linalg.norm(centred, axis=-1, keepdims=True), 1e-12), rows)
    return Directions(rows, jnp.asarray(mean, jnp.float32), nearest_only=True)


@jax.jit
def _kmeans(directions, rows):
    def update(_, rows):
        nearest = jnp.argmax(jnp.matmul(directions, rows.T, precision="float32"), -1)
        one_hot = jax.nn.one_hot(nearest, rows.shape[0])  # a product, since scatter-add is slow on some GPUs
        sums = jnp.matmul(one_hot.T, directions, precision="float32")
        norms = jnp.linalg.norm(sums, axis=-1, keepdims=True)
        return jnp.where(norms > 0, sums / jnp.maximum(norms, 1e-12), rows)

    return jax.lax.fori_loop(0, _KMEANS_ROUNDS, update, rows)


def nmf(vectors, mean, n_features: int, seed: int) -> Nmf:
    """Non-negative factors of the positive and negative parts of vectors [N, C] minus mean."""
    centred = np.asarray(vectors, np.float32) - np.asarray(mean, np.float32)[None, :]
    parts = _nmf(jax.random.key(seed), jnp.asarray(centred), n_features)
    return Nmf(parts, jnp.asarray(mean, jnp.float32))


@functools.partial(jax.jit, static_argnums=2)
def _nmf(key, centred, n_features: int):
    target = jnp.concatenate([jax.nn.relu(centred), jax.nn.relu(-centred)], -1)
    size = jnp.sqrt(target.mean() / n_features)
    left, right = (
        size * jax.random.uniform(k, shape, minval=0.5, maxval=1.5)
        for k, shape in zip(
            jax.random.split(key),
            ((len(target), n_features), (n_features, target.shape[1])),
            strict=True,
        )
    )

    def update(_, factors):
        feats, parts = factors
        feats = _nmf_step(target, feats, parts)
        return feats, _nmf_step(target.T, parts.T, feats.T).T

    parts = jax.lax.fori_loop(0, _NMF_ROUNDS, update, (left, right))[1]
    added = parts[:, : centred.shape[1]] - parts[:, centred.shape[1] :]
    return parts / jnp.maximum(jnp.linalg.norm(added, axis=-1, keepdims=True), 1e-12)


def _unit(rows):
    rows = jnp.asarray(rows, jnp.float32)
    norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1.0)
