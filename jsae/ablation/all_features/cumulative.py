"""Many features removed from an image one after the other: how fast does the prediction fall?

The features that fire on an image are removed in the order of their attribution a * (w . gradient of the
label's margin), those that hold the margin up most first; in the order of their strength a * ||w||; and in a
random order of the same features, which says how much any m features do. After each removal the margin of
the label and whether it is predicted are read off. Removals at the final site add up in the pooled vector,
so each step is one head. An image on which fewer than m features fire stays as it is beyond them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation import statistics
from jsae.classifier import Head, head_logits
from jsae.sae import dealt
from jsae.tables import Column, Table, interval

ORDERS = ("attribution", "strength", "random")

TABLE = Table(
    "cumulative",
    (
        Column(
            "order",
            pa.string(),
            "in which the features of an image are removed: attribution, strength, random",
        ),
        Column(
            "m",
            pa.int32(),
            "features removed at every position, the error of the SAE kept; 0 is the clean image",
        ),
        Column("n_images", pa.int32(), "test images, all of them"),
        Column(
            "mean_removed", pa.float64(), "mean over images of the features removed: fewer than m may fire"
        ),
        Column(
            "mean_margin",
            pa.float64(),
            "mean over images of the margin of the label",
            interval=statistics.BOOTSTRAP,
        ),
        Column(
            "accuracy",
            pa.float64(),
            "share of images whose label is predicted",
            interval=statistics.BOOTSTRAP,
        ),
    ),
)


class Curves(NamedTuple):
    """Of each image: margin of the label, whether it is predicted, features removed; [B, order, m + 1]."""

    margin: jax.Array | np.ndarray
    correct: jax.Array | np.ndarray
    removed: jax.Array | np.ndarray


def remove_in_order(
    head: Head,
    dictionary: Any,
    pooled: jax.Array,
    strength: jax.Array,
    gradient: jax.Array,
    labels: jax.Array,
    images: jax.Array,
    key: jax.Array,
    *,
    n_joint: int,
) -> Curves:
    """The curves of a batch of images; traced, under float32 products.

    Args:
      head: the classifier's head.
      dictionary: the SAE of the site before pooling.
      pooled: mean over the grid of the raw activations [B, C].
      strength: a [B, F], mean over the grid of each feature, raw units.
      gradient: of the label's margin by `pooled`, [B, C].
      labels: int [B].
      images: int [B], numbers of the images; each draws its random order by itself.
      key: a jax random key.
      n_joint: the last m, at most F.
    """
    w_dec, n_features = dictionary.w_dec, strength.shape[1]
    drawn = jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), (n_features,)))(images)
    scores = {
        "attribution": strength * (gradient @ w_dec.T),
        "strength": strength * jnp.linalg.norm(w_dec, axis=-1)[None, :],
        "random": drawn,
    }
    scores = jnp.stack([scores[order] for order in ORDERS], axis=1)  # [B, order, F]
    scores = jnp.where((strength > 0)[:, None, :], scores, -jnp.inf)
    features, amounts = dealt.largest(dictionary, scores, strength, n_joint)  # [B, order, m]

    def margin_and_correct(vectors):  # [B, order, C]
        logits = head_logits(head, vectors.reshape(-1, vectors.shape[-1]))
        target = jnp.repeat(labels, len(ORDERS))
        margin = metrics.measures(logits, target)["margin"]
        shape = vectors.shape[:2]
        return margin.reshape(shape), (jnp.argmax(logits, -1) == target).reshape(shape)

    def step(vectors, removal):
        feature, amount = removal  # [B, order]
        vectors = vectors - amount[..., None] * dealt.decoder_rows(dictionary, feature)
        return vectors, margin_and_correct(vectors)

    clean = jnp.broadcast_to(pooled[:, None, :], (len(labels), len(ORDERS), pooled.shape[-1]))
    removals = (jnp.moveaxis(features, -1, 0), jnp.moveaxis(amounts, -1, 0))
    _, later = jax.lax.scan(step, clean, removals)
    margin, correct = (
        jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, -1)
        for first, rest in zip(margin_and_correct(clean), later, strict=True)
    )
    removed = jnp.pad(jnp.cumsum(amounts > 0, axis=-1), ((0, 0), (0, 0), (1, 0)))
    return Curves(margin, correct, removed)


def columns(curves: Curves, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """Columns of `TABLE`, one row per (order, m); unknown numbers NaN.

    Args:
      curves: of all images, on the host.
      n_bootstrap, seed: of the intervals, which resample images; the same resamples for all rows.
    """
    n_images, n_orders, n_steps = curves.margin.shape

    def mean(values):
        rng = np.random.default_rng([seed, 4])
        return statistics.mean_interval(values.reshape(n_images, -1), n_bootstrap, rng)

    margin, accuracy, removed = (mean(part) for part in curves)
    return {
        "order": np.repeat(ORDERS, n_steps).tolist(),
        "m": np.tile(np.arange(n_steps), n_orders),
        "n_images": np.full(n_orders * n_steps, n_images),
        "mean_removed": removed[0],
        **interval("mean_margin", *margin),
        **interval("accuracy", *accuracy),
    }
