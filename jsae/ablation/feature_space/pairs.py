"""What single features do, in feature space: each is removed from the stored activations it fires on.

Every (feature, image) pair on which the feature fires gets seven forward passes from the site on: the clean
one; the feature removed at every position ("map") or at the cell of its peak only ("peak"); and for each of
the two scopes the two controls of `controls`. All seven take away s(y, x) * v from the activations, an
outer product of a map and a vector, so one compiled function with one batch shape serves them all, and an
intervention with s = 0 has an effect of exactly 0. Effects are intervened minus clean of the same pair.

The public edits of `jsae.edits` do the same one intervention at a time.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae import edits
from jsae.ablation.effects import (
    TARGETS,
    Named,
    changes,
    decoder_rows,
    feature_maps,
    flips_of,
    make_effects,
)
from jsae.ablation.feature_space import controls

SCOPES = ("map", "peak")
KINDS = ("effect", "direction", "feature")  # the feature itself, then its two controls


@dataclasses.dataclass(frozen=True)
class FeatureEffects:
    """Effects of M (feature, image) pairs, on the host.

    Attributes:
      features: int32 [M], SAE feature numbers.
      images: int32 [M], image numbers of the split.
      peaks: int32 [M, 2], the feature's peak cell (y, x) on that image.
      deltas: float32 [M, scope, kind, target, measure], intervened minus clean; NaN where a measure or a
        target does not exist, and for the kind "feature" where no other feature fires on the image.
      flips: bool [M, scope, kind], the prediction changed; False where deltas are NaN for want of a control.
      matched: bool [M], whether another feature fires on the image.
      n_images: images of the split, fired on or not.
    """

    features: np.ndarray
    images: np.ndarray
    peaks: np.ndarray
    deltas: Named
    flips: Named
    matched: np.ndarray
    n_images: int


@jax.jit
def maps_of(feats: jax.Array, w_dec: jax.Array, features: jax.Array) -> dict[str, jax.Array]:
    """Maps of some features on a batch of images, and of the features matched to them.

    Args:
      feats: [B, H, W, F], raw units.
      w_dec: decoder rows [F, C].
      features: int [K].

    Returns:
      "size" [K, B, H, W], the features' maps; for each scope "j_SCOPE" int [K, B], the matched feature, and
      "size_SCOPE" [K, B, H, W], its map; "matched" bool [K, B].
    """
    norms = jnp.linalg.norm(w_dec, axis=-1)  # [F]
    strengths = {"map": feats.mean((1, 2)), "peak": feats.max((1, 2))}  # [B, F]
    numbers = jnp.arange(feats.shape[-1])[None, :]

    def one(feature):
        found = {}
        for scope in SCOPES:
            j, found["matched"] = controls.nearest_feature(strengths[scope], norms, feature)
            chosen = (numbers == j[:, None])[:, None, None, :]  # [B, 1, 1, F]
            found[f"j_{scope}"] = j
            found[f"size_{scope}"] = jnp.where(chosen, feats, 0).sum(-1)
        return found

    return jax.lax.map(one, features) | {"size": jnp.moveaxis(feature_maps(feats, features), -1, 0)}


@jax.jit
def effects_of_pairs(
    logits_from_acts: Callable,
    w_dec: jax.Array,
    root: jax.Array,
    key: jax.Array,
    acts: jax.Array,
    maps: dict[str, jax.Array],
    pairs: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Effects of P pairs of one batch of images.

    Args:
      logits_from_acts: acts [P, H, W, C] -> logits [P, L]; a pytree.
      w_dec: decoder rows [F, C].
      root, key: of `controls.draw_directions`.
      acts: the images' activations [B, H, W, C], raw.
      maps: from `maps_of`.
      pairs: each int [P]: the row of the pair's feature in the maps ("k") and of its image in the batch
        ("b"), the numbers of both ("feature", "image"), the image's "label" and the feature's "top_class".

    Returns:
      deltas [P, scope, kind, target, measure], flips [P, scope, kind], peak cells [P] (flat).
    """
    acts = acts[pairs["b"]]
    of_pair = {name: value[pairs["k"], pairs["b"]] for name, value in maps.items()}
    size = of_pair["size"]  # [P, H, W]
    vector = decoder_rows(w_dec, pairs["feature"])
    direction = controls.draw_directions(key, root, pairs["feature"], pairs["image"])
    direction *= jnp.linalg.norm(vector, axis=-1)[:, None]
    sizes, vectors = [jnp.zeros_like(size)], [vector]
    for scope in SCOPES:
        at_scope = at_peak_only if scope == "peak" else lambda maps: maps
        sizes += [at_scope(size), at_scope(size), at_scope(of_pair[f"size_{scope}"])]
        vectors += [vector, direction, decoder_rows(w_dec, of_pair[f"j_{scope}"])]  # in the order of KINDS

    def logits_without(intervention):
        s, v = intervention
        return logits_from_acts(edits.subtract(acts, s[..., None] * v[:, None, None, :]))

    logits = jax.lax.map(logits_without, (jnp.stack(sizes), jnp.stack(vectors)))  # [7, P, L]
    clean, changed = logits[0], logits[1:].reshape(len(SCOPES), len(KINDS), *logits.shape[1:])
    prediction = jnp.argmax(clean, -1)
    targets = jnp.stack([pairs["label"], prediction.astype(jnp.int32), pairs["top_class"]])  # TARGETS, P
    deltas = jnp.moveaxis(changes(clean, changed, targets), -1, 0)
    flips = jnp.moveaxis(flips_of(prediction, changed), -1, 0)
    return deltas, flips, jnp.argmax(size.reshape(len(size), -1), -1)


def at_peak_only(maps: jax.Array) -> jax.Array:
    """Maps [P, H, W] with all but the first largest cell set to 0."""
    flat = maps.reshape(maps.shape[0], -1)
    cells = jnp.arange(flat.shape[1])[None, :]
    return jnp.where(cells == jnp.argmax(flat, -1)[:, None], flat, 0).reshape(maps.shape)
