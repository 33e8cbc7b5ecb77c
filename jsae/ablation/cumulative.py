"""Many features removed from an image one after the other: how fast does the prediction fall?

The features that fire on an image are removed in the order of their attribution a * (w . gradient of the
label's margin), those that hold the margin up most first; in the order of their strength a * ||w||; and in a
random order of the same features, which says how much any m features do. After each removal the margin of
the label and whether it is predicted are read off. Removals at the final site add up in the pooled vector,
so each step is one head. An image on which fewer than m features fire stays as it is beyond them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation import statistics
from jsae.analysis.tables import schema
from jsae.classifier.model import head_logits

ORDERS = ("attribution", "strength", "random")

SCHEMA = schema(
    ("order", pa.string(), "in which the features of an image are removed: attribution, strength, random"),
    ("m", pa.int32(), "features removed at every position, the error of the SAE kept; 0 is the clean image"),
    ("n_images", pa.int32(), "test images, all of them"),
    ("mean_removed", pa.float64(), "mean over images of the features removed: fewer than m may fire"),
    ("mean_margin", pa.float64(), "mean over images of the margin of the label"),
    ("margin_ci95_low", pa.float64(), "lower end of its 95% bootstrap interval over images"),
    ("margin_ci95_high", pa.float64(), "upper end of its 95% bootstrap interval over images"),
    ("accuracy", pa.float64(), "share of images whose label is predicted"),
    ("accuracy_ci95_low", pa.float64(), "lower end of its 95% bootstrap interval over images"),
    ("accuracy_ci95_high", pa.float64(), "upper end of its 95% bootstrap interval over images"),
)


class Curves(NamedTuple):
    """Of each image: margin of the label, whether it is predicted, features removed; [B, order, m + 1]."""

    margin: jax.Array
    correct: jax.Array
    removed: jax.Array


@functools.partial(jax.jit, static_argnames="n_joint")
def remove(head, w_dec, pooled, strength, gradient, labels, images, key, *, n_joint: int) -> Curves:
    """The curves of a batch of images.

    Args:
      head: the classifier's head, a `classifier.Head`.
      w_dec: decoder rows [F, C].
      pooled: mean over the grid of the raw activations [B, C].
      strength: a [B, F], mean over the grid of each feature, raw units.
      gradient: of the label's margin by `pooled`, [B, C].
      labels: int [B].
      images: int [B], numbers of the images; each draws its random order by itself.
      key: a jax random key.
      n_joint: the last m, at most F.
    """
    with jax.default_matmul_precision("float32"):
        scores = jnp.stack(
            [
                strength * (gradient @ w_dec.T),
                strength * jnp.linalg.norm(w_dec, axis=-1)[None, :],
                jax.vmap(lambda i: jax.random.uniform(jax.random.fold_in(key, i), strength.shape[1:]))(
                    images
                ),
            ],
            axis=1,
        )  # [B, order, F]
        active = (strength > 0)[:, None, :]
        features = jax.lax.top_k(jnp.where(active, scores, -jnp.inf), n_joint)[1]  # [B, order, m]
        amounts = jnp.take_along_axis(strength[:, None, :], features, axis=-1)

        def step(vectors, removal):
            feature, amount = removal  # [B, order]
            vectors = vectors - amount[..., None] * w_dec[feature]  # [B, order, C]
            return vectors, read(vectors)

        def read(vectors):
            logits = head_logits(head, vectors.reshape(-1, vectors.shape[-1]))
            target = jnp.repeat(labels, len(ORDERS))
            margin = metrics.measures(logits, target)["margin"]
            shape = vectors.shape[:2]
            return margin.reshape(shape), (jnp.argmax(logits, -1) == target).reshape(shape)

        clean = jnp.broadcast_to(pooled[:, None, :], (len(labels), len(ORDERS), pooled.shape[-1]))
        removals = (jnp.moveaxis(features, -1, 0), jnp.moveaxis(amounts, -1, 0))
        _, later = jax.lax.scan(step, clean, removals)
        margin, correct = (
            jnp.moveaxis(jnp.concatenate([first[None], rest]), 0, -1)
            for first, rest in zip(read(clean), later, strict=True)
        )
        removed = jnp.pad(jnp.cumsum(amounts > 0, axis=-1), ((0, 0), (0, 0), (1, 0)))
        return Curves(margin, correct, removed)


def joined(parts: list[Curves]) -> Curves:
    """The curves of all images, on the host."""
    return Curves(*(np.concatenate(each) for each in zip(*parts, strict=True)))


def columns(curves: Curves, n_bootstrap: int, seed: int) -> dict:
    """Columns of `SCHEMA`, one row an (order, m); unknown numbers NaN.

    Args:
      curves: of all images, on the host.
      n_bootstrap, seed: of the intervals, which resample images; the same resamples for all rows.
    """
    n_images, n_orders, n_steps = curves.margin.shape

    def mean(values):
        return statistics.mean_interval(
            values.reshape(n_images, -1), n_bootstrap, np.random.default_rng([seed, 4])
        )

    margin, accuracy, removed = (mean(part) for part in curves)
    return {
        "order": np.repeat(ORDERS, n_steps).tolist(),
        "m": np.tile(np.arange(n_steps), n_orders),
        "n_images": np.full(n_orders * n_steps, n_images),
        "mean_removed": removed[0],
        "mean_margin": margin[0],
        "margin_ci95_low": margin[1],
        "margin_ci95_high": margin[2],
        "accuracy": accuracy[0],
        "accuracy_ci95_low": accuracy[1],
        "accuracy_ci95_high": accuracy[2],
    }
