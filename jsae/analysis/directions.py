"""Directions as features: what an SAE is held against has the same encode, decode and w_dec.

    features = relu((x - mean) @ rows.T)      x_hat = mean + features @ rows

Units are those of the activations (raw), rows have unit norm unless said otherwise.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Directions:
    """Features that are projections on the rows [F, C], cut off at 0.

    Attributes:
      w_dec: unit rows [F, C].
      mean: [C], raw units.
    """

    w_dec: jax.Array
    mean: jax.Array

    @property
    def n_features(self) -> int:
        return self.w_dec.shape[0]

    def encode(self, x: jax.Array) -> jax.Array:
        """Features [..., F] of raw activations [..., C], >= 0, raw units."""
        centred = x.astype(jnp.float32) - self.mean.reshape((1,) * (x.ndim - 1) + (-1,))
        return jax.nn.relu(jnp.matmul(centred, self.w_dec.T, precision="float32"))

    def decode(self, feats: jax.Array) -> jax.Array:
        """Raw activations [..., C] of features [..., F]."""
        mean = self.mean.reshape((1,) * (feats.ndim - 1) + (-1,))
        return jnp.matmul(feats, self.w_dec, precision="float32") + mean


def make_directions(rows: np.ndarray, mean: np.ndarray) -> Directions:
    """Directions along rows [F, C], scaled to unit norm; a zero row stays zero and never fires."""
    return Directions(unit_rows(rows), jnp.asarray(mean, jnp.float32))


def random(mean: np.ndarray, n_features: int, seed: int) -> Directions:
    """n_features directions, uniform on the sphere, one sign each."""
    rng = np.random.default_rng([seed, 0x726E64])
    return make_directions(rng.normal(size=(n_features, len(mean))), mean)


def unit_rows(rows: np.ndarray | jax.Array) -> jax.Array:
    """Rows [F, C] divided by their norms; a zero row stays zero."""
    rows = jnp.asarray(rows, jnp.float32)
    norms = jnp.linalg.norm(rows, axis=-1, keepdims=True)
    return rows / jnp.where(norms > 0, norms, 1.0)
