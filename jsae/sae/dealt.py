"""Choosing features of a dictionary whose F rows are dealt over a mesh's axis `model`.

Each device takes what it holds of the chosen features and a psum joins them; all but one of the terms are
zeros, so that what comes out is exact. No device ever holds the whole dictionary [F, C], or all features of
its images [B, H, W, F].
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec


def mesh_of(dictionary: Any) -> Mesh | None:
    """The mesh that a dictionary is dealt over; None if it is whole wherever it lies."""
    mesh = getattr(dictionary, "mesh", None)
    return None if mesh is None or mesh.size == 1 else mesh


def map_shards(function: Callable, mesh: Mesh | None, in_specs: tuple, out_specs: Any) -> Callable:
    """The function on every device's share of its arguments; without a mesh the function itself."""
    if mesh is None:
        return function
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def decoder_rows(dictionary: Any, features: jax.Array) -> jax.Array:
    """Decoder rows [..., C] of features int [...], numbers in 0..F-1."""
    return _rows(dictionary, dictionary.w_dec, features)


def preactivations(sae: Any, acts: jax.Array, features: jax.Array) -> jax.Array:
    """Pre-activations [B] of one feature int [B] for each raw activation vector [B, C], raw units.

    s * ((x_n - b_dec) . w_enc + b_enc), before any gate, threshold or competition: it has a gradient where
    the feature itself is off.
    """
    centred = (acts - sae.mean[None, :]) / sae.scale - sae.b_dec[None, :]
    row, bias = _rows(sae, sae.w_enc, features), _rows(sae, sae.b_enc[:, None], features)[:, 0]
    return sae.scale * ((centred * row).sum(-1) + bias)


def _rows(dictionary, array, features):
    """Rows [..., C] of an array [F, C] of the dictionary."""
    mesh, rows = mesh_of(dictionary), _images_over(dictionary, features)
    if mesh is None:
        return array[features]

    def take(array, features):
        at, held = _held(features, len(array))
        return lax.psum(jnp.where(held[..., None], array[at], 0), "model")

    specs = (PartitionSpec("model"), PartitionSpec(rows))
    return map_shards(take, mesh, specs, PartitionSpec(rows))(array, features)


def feature_maps(dictionary: Any, feats: jax.Array, features: jax.Array | np.ndarray) -> jax.Array:
    """Maps [B, H, W, K] of features int [K] out of all features [B, H, W, F]."""
    mesh, rows = mesh_of(dictionary), _images_over(dictionary, feats)
    if mesh is None:
        return feats[..., features]

    def take(feats, features):
        at, held = _held(features, feats.shape[-1])
        return lax.psum(jnp.where(held, feats[..., at], 0), "model")

    specs = (PartitionSpec(rows, None, None, "model"), PartitionSpec())
    return map_shards(take, mesh, specs, PartitionSpec(rows))(feats, features)


def map_per_image(dictionary: Any, feats: jax.Array, features: jax.Array) -> jax.Array:
    """Maps [B, H, W] of one feature per image, int [B], out of all features [B, H, W, F]."""
    mesh, rows = mesh_of(dictionary), _images_over(dictionary, feats)

    def take(feats, at):
        return jnp.take_along_axis(feats, at[:, None, None, None], axis=-1)[..., 0]

    if mesh is None:
        return take(feats, features)

    def take_held(feats, features):
        at, held = _held(features, feats.shape[-1])
        return lax.psum(jnp.where(held[:, None, None], take(feats, at), 0), "model")

    specs = (PartitionSpec(rows, None, None, "model"), PartitionSpec(rows))
    return map_shards(take_held, mesh, specs, PartitionSpec(rows))(feats, features)


def largest(dictionary: Any, scores: jax.Array, amounts: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """The k features of the largest scores, equal ones by rising number, and their amounts, [B, n, k] each.

    Args:
      dictionary: an SAE, or another dictionary.
      scores: [B, n, F], n lists per image.
      amounts: [B, F].
      k: at most F.
    """
    mesh = mesh_of(dictionary)

    def of_these(scores, amounts, k):
        best, features = lax.top_k(scores, k)
        return best, features, jnp.take_along_axis(amounts[:, None, :], features, axis=-1)

    if mesh is None:
        return of_these(scores, amounts, k)[1:]

    def choose(scores, amounts):
        n_here = scores.shape[-1]
        best, features, found = of_these(scores, amounts, min(k, n_here))
        candidates = (best, features + lax.axis_index("model") * n_here, found)
        best, *rest = (lax.all_gather(each, "model", axis=-1, tiled=True) for each in candidates)
        at = lax.top_k(best, k)[1]
        return tuple(jnp.take_along_axis(each, at, axis=-1) for each in rest)

    rows = _images_over(dictionary, scores)
    specs = (PartitionSpec(rows, None, "model"), PartitionSpec(rows, "model"))
    return map_shards(choose, mesh, specs, (PartitionSpec(rows), PartitionSpec(rows)))(scores, amounts)


def _images_over(dictionary, array) -> str | None:
    """The mesh axis that the first axis of the array is dealt over: `data` where that divides it."""
    mesh = mesh_of(dictionary)
    return None if mesh is None or not array.ndim or len(array) % mesh.shape["data"] else "data"


def _held(features, n_here: int):
    """Where in this device's n_here features the given ones lie, and whether they do."""
    at = features - lax.axis_index("model") * n_here
    return jnp.clip(at, 0, n_here - 1), (at >= 0) & (at < n_here)
