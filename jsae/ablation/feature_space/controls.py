"""Controls of feature-space ablation, matched image by image to the feature they stand beside.

Removing any feature disturbs an image; what belongs to the feature itself is the difference to removing
something else of the same size from the same image. The size is a_i * ||w_dec_i||, with a the mean over the
grid in the scope "map" and the peak in the scope "peak". All three controls take away what is really there,
as a feature does: along a direction of random sign, the mean effect would be 0 by symmetry.

    direction  relu((x - mu) . u) u, rescaled to that size: mu the mean of the site's train activations, u
               drawn for each pair from N(0, Sigma), their covariance (an isotropic direction lies mostly
               where nothing is); of u and -u the one along which this image has more
    auroc      the same along a direction that tells the feature's top class as well as the feature does: of
               N_CANDIDATES drawn like u, for each feature the one whose AUROC for that class on train is
               nearest; its sign is part of the choice, and an image that has nothing along it has no control
    feature    another feature that is active on the same image, of nearest a_j * ||w_dec_j||
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae import metrics
from jsae.analysis.directions import Directions
from jsae.analysis.strength import KeepPooled, spaced
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext

N_CANDIDATES = 1024
_VALUES = 2**25  # of their pooled features on train, 4 bytes each on the host; more images are thinned out


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Directions and how well they tell the classes on train.

    Attributes:
      rows: unit rows [G, C].
      auroc: of relu((x - mu) . row), mean over the grid, for each class against the others [G, L].
    """

    rows: np.ndarray
    auroc: np.ndarray

    def nearest(self, classes: np.ndarray, auroc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows [K, C], their AUROC [K]) nearest to `auroc` [K] for the classes [K]; -1 or NaN: 0 and NaN."""
        rows = np.zeros((len(classes), self.rows.shape[1]), np.float32)
        found = np.full(len(classes), np.nan)
        for k in np.flatnonzero((classes >= 0) & np.isfinite(auroc)):
            gap = np.abs(self.auroc[:, classes[k]] - auroc[k])
            if np.isfinite(gap).any():  # else train has no image of that class
                best = np.nanargmin(gap)
                rows[k], found[k] = self.rows[best], self.auroc[best, classes[k]]
        return rows, found


def draw_candidates(
    key: jax.Array, root: np.ndarray, store: Any, pass_over: Callable[..., dict[str, Any]]
) -> Candidates:
    """N_CANDIDATES directions of N(0, Sigma) and what they tell on train.

    Args:
      key: a jax random key.
      root: [C, C] from `covariance_root`.
      store: activation store of train: labels, class_names, mean.
      pass_over: (reducers, dictionary=, label=) -> results of a pass over train.
    """
    numbers = jnp.arange(N_CANDIDATES)
    drawn = draw_directions(jax.random.fold_in(key, 1), jnp.asarray(root), 0 * numbers, numbers)
    rows, mean = np.asarray(drawn), jnp.asarray(store.mean, jnp.float32)
    label = "ablation: directions"
    kept = {"pooled": KeepPooled(_VALUES)}
    pooled = pass_over(kept, dictionary=Directions(rows, mean), label=label)["pooled"]
    labels = np.asarray(store.labels)[spaced(len(store.labels), N_CANDIDATES, _VALUES)]
    return Candidates(rows, metrics.auroc_by_class(pooled, labels, len(store.class_names)))


def covariance_root(store: Any, batch_size: int, context: RunContext) -> np.ndarray:
    """A root R of the activations' covariance: R @ R.T = Sigma, so R @ N(0, 1) is a draw from N(0, Sigma).

    Summed in float64 on the host: eigenvectors of near eigenvalues turn with the rounding of the sum, and the
    directions drawn with them, so float32 sums would tie the controls to the devices.

    Args:
      store: activation store of train: batches(), n_images, grid, mean.
      batch_size: images read at a time.
      context: shows progress and stops.

    Returns:
      float32 [C, C]. If the activations do not vary at all, the identity: any direction is as good.
    """
    mean, n = np.asarray(store.mean, np.float64), store.n_images
    total = np.zeros((len(mean), len(mean)))
    starts = range(0, n, batch_size)

    def products(number: int) -> np.ndarray:
        rows = np.arange(starts[number], min(starts[number] + batch_size, n))
        batch = next(store.batches(len(rows), rows))
        centred = batch.acts.astype(np.float64).reshape(-1, len(mean)) - mean[None, :]
        return centred.T @ centred

    with context.progress(n, label="ablation: covariance", unit="image") as progress:
        for start, part in zip(starts, meshes.shared(len(starts), products), strict=True):
            total += part
            progress.update(min(batch_size, n - start))
            context.check_here()
    return root_of(total / max(n * math.prod(store.grid), 1))


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


def along(acts: jax.Array, mean: jax.Array, directions: jax.Array) -> jax.Array:
    """(x - mu) . u in every cell, [P, H, W], of acts [P, H, W, C] and directions [P, C]."""
    centred = acts.astype(jnp.float32) - mean[None, None, None, :]
    return jnp.einsum("phwc,pc->phw", centred, directions, precision="float32")


def of_size(maps: jax.Array, size: jax.Array) -> jax.Array:
    """Maps >= 0 [P, H, W] rescaled so that each sums to `size` [P]; a map of zeros stays so."""
    total = maps.sum((1, 2))
    return maps * jnp.where(total > 0, size / jnp.where(total > 0, total, 1), 0)[:, None, None]


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
