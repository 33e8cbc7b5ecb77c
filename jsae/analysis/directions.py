"""Directions of activation space as a dictionary: the same encode, decode and w_dec as an SAE has.

    features = relu((x - mean) @ rows.T)      x_hat = mean + features @ rows

or with rows of their own to read along, as supervised directions have (`jsae.analysis.readouts`).
Whatever is measured of an SAE can be measured of them. Units are those of the activations (raw).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from numpy.typing import ArrayLike

from jsae.runtime.pytrees import pytree


@pytree
class Directions:
    """Features that are projections on the rows [F, C], cut off at 0.

    Attributes:
      w_dec: unit rows [F, C].
      mean: [C], raw units.
      nearest_only: the largest feature of a vector alone fires; static.
      mesh: over whose axis `model` the rows are dealt, None for none; static.
      w_enc: rows [F, C] that the features are projections on; None: those of w_dec.
    """

    w_dec: jax.Array | np.ndarray
    mean: jax.Array
    nearest_only: bool = dataclasses.field(default=False, metadata={"static": True})
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})
    w_enc: jax.Array | np.ndarray | None = None

    @property
    def n_features(self) -> int:
        """F."""
        return self.w_dec.shape[0]

    def encode(self, x: jax.Array) -> jax.Array:
        """Features [..., F] of raw activations [..., C], >= 0, raw units."""
        centred = x.astype(jnp.float32) - self.mean.reshape((1,) * (x.ndim - 1) + (-1,))
        rows = self.w_dec if self.w_enc is None else self.w_enc
        feats = jax.nn.relu(jnp.matmul(centred, rows.T, precision="float32"))
        if self.nearest_only:
            feats = jnp.where(feats == feats.max(-1, keepdims=True), feats, 0)
        return feats

    def decode(self, feats: jax.Array) -> jax.Array:
        """Raw activations [..., C] of features [..., F]."""
        mean = self.mean.reshape((1,) * (feats.ndim - 1) + (-1,))
        return jnp.matmul(feats, self.w_dec, precision="float32") + mean


def random(mean: jax.Array | np.ndarray, n_features: int, seed: int) -> Directions:
    """n_features directions, uniform on the sphere, one sign each."""
    rng = np.random.default_rng([seed, 0x726E64])
    rows = unit_rows(rng.normal(size=(n_features, len(mean))))
    return Directions(rows, jnp.asarray(mean, jnp.float32))


def unit_rows(rows: ArrayLike) -> np.ndarray:
    """Rows [F, C] divided by their norms, float32 on the host; a zero row stays zero."""
    rows = np.asarray(rows, np.float32)
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / np.where(norms > 0, norms, np.float32(1))
