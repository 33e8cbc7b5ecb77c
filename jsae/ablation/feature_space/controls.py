"""Controls of feature-space ablation, matched image by image to the feature they stand beside.

Removing any feature disturbs an image; what belongs to the feature itself is the difference to removing
something else of the same size from the same image:

- a direction u drawn from N(0, Sigma), Sigma the covariance of the site's train activations, scaled to unit
  norm: f_i(y, x) * ||w_dec_i|| * u is taken away, so at every position as much as the feature's removal
  takes, along a direction that activations really vary in (an isotropic one lies mostly where nothing does);
- another feature that is active on the same image, whose a_j * ||w_dec_j|| is nearest to
  a_i * ||w_dec_i||, removed in the same scope (a: the mean over the grid for "map", the peak for "peak").
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae.runtime.context import RunContext


def covariance_root(store: Any, batch_size: int, context: RunContext) -> np.ndarray:
    """A root R of the activations' covariance: R @ R.T = Sigma, so R @ N(0, 1) is a draw from N(0, Sigma).

    Summed in float64 on the host: eigenvectors of near eigenvalues turn with the rounding of the sum, and the
    directions drawn with them, so float32 sums would tie the controls to the devices.

    Args:
      store: activation store of train: batches(), n_images, mean.
      batch_size: images read at a time.
      context: shows progress and stops.

    Returns:
      float32 [C, C]. If the activations do not vary at all, the identity: any direction is as good.
    """
    mean, n_vectors = np.asarray(store.mean, np.float64), 0
    total = np.zeros((len(mean), len(mean)))
    with context.progress(store.n_images, label="ablation: covariance", unit="image") as progress:
        for batch in store.batches(batch_size):
            acts = batch.acts[batch.mask > 0]
            centred = acts.astype(np.float64).reshape(-1, len(mean)) - mean[None, :]
            total += centred.T @ centred
            n_vectors += len(centred)
            progress.update(len(acts))
            context.check_here()
    return root_of(total / max(n_vectors, 1))


def root_of(covariance: np.ndarray) -> np.ndarray:
    """A root float32 [C, C] of a covariance; the identity if it is 0 or not finite."""
    values, vectors = np.linalg.eigh(covariance)
    if not np.isfinite(values).all() or values[-1] <= 0:
        return np.eye(len(covariance), dtype=np.float32)
    return (vectors * np.sqrt(np.clip(values, 0, None))[None, :]).astype(np.float32)


def draw_directions(key: jax.Array, root: jax.Array, features: jax.Array, images: jax.Array) -> jax.Array:
    """One direction of unit norm per (feature, image) pair, the same whatever batch the pair lies in.

    Args:
      key: a jax random key.
      root: [C, C] from `covariance_root`.
      features: int32 [P]; the pair's feature number.
      images: int32 [P]; the pair's image number.

    Returns:
      [P, C].
    """

    def one(feature, image):
        pair_key = jax.random.fold_in(jax.random.fold_in(key, feature), image)
        return jax.random.normal(pair_key, (root.shape[0],))

    drawn = jnp.matmul(jax.vmap(one)(features, images), root.T, precision="float32")
    return drawn / jnp.linalg.norm(drawn, axis=-1, keepdims=True)


def nearest_feature(strength: jax.Array, norms: jax.Array, feature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For each image the other active feature whose contribution has the nearest size.

    Args:
      strength: a [B, F], raw units; a feature is active where it is above 0.
      norms: ||w_dec|| [F].
      feature: i, integer scalar.

    Returns:
      (j int32 [B], found bool [B]); where no other feature is active, found is False and j means nothing.
    """
    size = strength * norms[None, :]  # [B, F]
    numbers = jnp.arange(size.shape[1])[None, :]
    of_feature = jnp.where(numbers == feature, size, 0).sum(1, keepdims=True)  # [B, 1]
    other = (strength > 0) & (numbers != feature)
    gap = jnp.where(other, jnp.abs(size - of_feature), jnp.inf)
    nearest = gap == gap.min(1, keepdims=True)  # a minimum of numbers, where a sharded argmin would gather
    return jnp.where(nearest, numbers, size.shape[1]).min(1).astype(jnp.int32), other.any(1)
