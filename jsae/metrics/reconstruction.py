"""Activations and their reconstruction: the SAE's sums, moments of the activations, fvu, PCA beside it."""

import logging
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jsae.metrics.sums import add_sums, ratio

_log = logging.getLogger("jsae.metrics")


class SaeSums(NamedTuple):
    """Sums over activation vectors; from `sae_sums`, joined by `add_sums`, read by `sae_metrics`.

    Attributes:
      n: vectors.
      sse: sum of ||x - x_hat||^2.
      mean: mean of x - shift, [C].
      m2: sum of ||x - mean of x||^2.
      fires: vectors on which each feature is not 0, [F].
    """

    n: jax.Array
    sse: jax.Array
    mean: jax.Array
    m2: jax.Array
    fires: jax.Array


class Moments(NamedTuple):
    """Moments of vectors: n, mean of x - shift [C], scatter = sum of (x - mean)(x - mean)^T [C, C]."""

    n: jax.Array
    mean: jax.Array
    scatter: jax.Array


def _centred(x: jax.Array, mask: jax.Array, shift: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(n, mean of x - shift [C], x - mean with 0 in padding rows [N, C]) of the rows with mask 1."""
    real = mask[:, None] > 0
    n = jnp.sum(mask > 0)
    pivot = x[jnp.argmax(mask > 0)]  # a real row lies within the spread of the others, whatever their mean
    d = jnp.where(real, x - pivot[None, :], 0.0)
    mean = jnp.sum(d, axis=0) / jnp.maximum(n, 1)
    centred = jnp.where(real, d - mean[None, :], 0.0)
    return n, jnp.where(n > 0, (pivot - shift) + mean, 0.0), centred


def sae_sums(x: jax.Array, x_hat: jax.Array, feats: jax.Array, mask: jax.Array, shift: jax.Array) -> SaeSums:
    """Sums of one batch of activation vectors.

    Args:
      x: raw activations [N, C].
      x_hat: their reconstruction, raw [N, C].
      feats: features [N, F], any units.
      mask: [N], 0 for padding rows.
      shift: [C], something near the mean (the train mean); the same for all batches that are added up.
    """
    x = x.astype(jnp.float32)
    real = mask > 0
    n, mean, centred = _centred(x, mask, shift)
    error = jnp.where(real[:, None], x - x_hat, 0.0)
    return SaeSums(
        n=n,
        sse=jnp.sum(jnp.sum(error**2, axis=1)),  # by rows first: float32 sums over N*C terms drift
        mean=mean,
        m2=jnp.sum(jnp.sum(centred**2, axis=1)),
        fires=jnp.sum((feats != 0) & real[:, None], axis=0),
    )


def moments(x: jax.Array, mask: jax.Array, shift: jax.Array) -> Moments:
    """Moments of the real rows of x [N, C]; mask [N], shift [C] as in `sae_sums`."""
    n, mean, centred = _centred(x.astype(jnp.float32), mask, shift)
    return Moments(n, mean, jnp.matmul(centred.T, centred, precision="float32"))


def sae_metrics(sums: SaeSums) -> dict[str, Any]:
    """l0, fvu, ev, dead_fraction, density [F] and n_vectors of a whole split.

    l0 is the mean over vectors of the features that are not 0, density the share of vectors on which a
    feature fires, dead_fraction the share of features that fire on none. fvu = sum ||x - x_hat||^2 /
    sum ||x - x_bar||^2 with x_bar the vector mean over the same set, ev = 1 - fvu. Constant activations,
    or numbers that are not finite, give fvu and ev None and a warning; no vectors give None throughout.
    """
    sums = add_sums(None, sums)
    n = int(sums.n)
    fvu = ratio(sums.sse, sums.m2)
    if fvu is None:
        reason = "constant" if sums.m2 == 0 else "or their reconstruction not finite"
        _log.warning("fvu and ev are null: the activations (%d vectors) are %s", n, reason)
    return {
        "l0": float(sums.fires.sum()) / n if n else None,
        "fvu": fvu,
        "ev": None if fvu is None else 1.0 - fvu,
        "dead_fraction": float(np.mean(sums.fires == 0)) if n else None,
        "density": sums.fires / n if n else None,  # [F]
        "n_vectors": n,
    }


def covariance(sums: Moments) -> np.ndarray:
    """Population covariance [C, C] in float64 (divided by n); zeros for no vectors."""
    return np.asarray(sums.scatter, np.float64) / max(int(sums.n), 1)


def pca_fvu(
    train_mean: ArrayLike, train_cov: ArrayLike, test_mean: ArrayLike, test_cov: ArrayLike, k: int
) -> float | None:
    """fvu on test of projecting on the first k principal components of train (about the train mean).

    Needs no vectors: with M = test_cov + d d^T, d = test_mean - train_mean, the mean squared error is
    tr(M) - tr(V^T M V). k above C counts as C. None for constant test activations.

    Args:
      train_mean, test_mean: [C]. train_cov, test_cov: population covariances [C, C].
      k: number of components, >= 0 (`round(l0)` beside an SAE).
    """
    if k < 0:
        raise ValueError(f"pca_fvu needs k >= 0 components, got k={k}")
    train_cov, test_cov = np.asarray(train_cov, np.float64), np.asarray(test_cov, np.float64)
    d = np.asarray(test_mean, np.float64) - np.asarray(train_mean, np.float64)
    if not all(np.isfinite(a).all() for a in (train_cov, test_cov, d)):
        return None
    components = np.linalg.eigh(train_cov)[1][:, ::-1][:, :k]  # [C, k]
    second = test_cov + np.outer(d, d)
    kept = np.sum(components * (second @ components))
    return ratio(max(np.trace(second) - kept, 0.0), np.trace(test_cov))


def gamma(mean: ArrayLike, std: ArrayLike) -> float | None:
    """||mean|| / ||std|| of raw activations [C] (arXiv 2605.31518); None where std is 0."""
    return ratio(np.linalg.norm(np.asarray(mean, np.float64)), np.linalg.norm(np.asarray(std, np.float64)))


def recovered(ablated: float | None, spliced: float | None, clean: float | None) -> float | None:
    """(ablated - spliced) / (ablated - clean): 1 where the splice loses nothing; None if ablated = clean."""
    if ablated is None or spliced is None or clean is None:
        return None
    return ratio(float(ablated) - float(spliced), float(ablated) - float(clean))
