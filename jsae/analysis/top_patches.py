"""The K strongest images of every feature, kept while a split streams by, and the table they make.

A patch is the grid position where a feature peaks in an image; an image gives at most one patch a
feature. The running best [F, K] and the batch's peaks [F, B] are joined by one `lax.top_k`, so memory does
not depend on how many images there are. Equal values keep the order of the images, whatever the batch size.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae.analysis import tables

FILE = "top_patches.parquet"
SCHEMA = tables.schema(
    ("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
    ("rank", pa.int32(), "0 is the image in which the feature peaks highest; at most one patch an image"),
    ("image", pa.int32(), "index of the image in the test split"),
    ("image_id", pa.string(), "id of the image in the data set"),
    ("y", pa.int32(), "row of the peak on the activation grid, 0 at the top"),
    ("x", pa.int32(), "column of the peak on the activation grid, 0 at the left"),
    ("value", pa.float32(), "the feature at its peak, raw units, > 0"),
    ("label", pa.int32(), "class of the image; null where it is unknown"),
    ("label_name", pa.string(), "name of that class"),
    ("prediction", pa.int32(), "the classifier's class for the unedited image"),
    ("prediction_name", pa.string(), "name of the predicted class"),
)


class TopPatches(NamedTuple):
    """The best patches so far, strongest first; each [F, K].

    Attributes:
      value: peak of the feature, raw units; -inf where there are fewer than K images in which it fires.
      image: int32, index in the split.
      position: int32, y * W + x on the grid.
    """

    value: jax.Array
    image: jax.Array
    position: jax.Array


def empty(n_features: int, n_top: int) -> TopPatches:
    """No patches yet."""
    shape = (n_features, n_top)
    return TopPatches(
        jnp.full(shape, -jnp.inf), jnp.full(shape, -1, jnp.int32), jnp.full(shape, -1, jnp.int32)
    )


def merge(top: TopPatches, peak: jax.Array, image: jax.Array, position: jax.Array) -> TopPatches:
    """The best of `top` and of one batch.

    Args:
      top: [F, K].
      peak: largest value on the grid [B, F], 0 where the feature is silent and in padding rows.
      image: int32 [B], index in the split; larger than all images already in `top`.
      position: int32 [B, F], where the peak is.
    """
    shape = peak.T.shape
    fired = jnp.where(peak > 0, peak, -jnp.inf).T  # [F, B]
    batch = TopPatches(fired, jnp.broadcast_to(image[None, :], shape), position.T)
    joined = TopPatches(*(jnp.concatenate(pair, axis=1) for pair in zip(top, batch, strict=True)))
    _, best = jax.lax.top_k(joined.value, top.value.shape[1])  # equal values: the lower index first
    return TopPatches(*(jnp.take_along_axis(array, best, axis=1) for array in joined))


def labels_of(top: TopPatches, labels) -> np.ndarray:
    """Labels [F, K] of the top images, -1 behind the last image in which the feature fires."""
    return np.where(np.isfinite(top.value), np.asarray(labels)[top.image], -1)


def table(top: TopPatches, store) -> pa.Table:
    """One row a (feature, rank), only patches where the feature fires; columns as in `SCHEMA`.

    Args:
      top: on the host.
      store: activation store of the split: grid, image_ids, labels, predictions, class_names.
    """
    feature, rank = np.nonzero(np.isfinite(top.value))
    image, position = top.image[feature, rank], top.position[feature, rank]
    y, x = np.divmod(position, store.grid[1])
    label, prediction = np.asarray(store.labels)[image], np.asarray(store.predictions)[image]
    ids = np.asarray(store.image_ids, dtype=object)
    columns = {
        "feature": feature,
        "rank": rank,
        "image": image,
        "image_id": ids[image],
        "y": y,
        "x": x,
        "value": top.value[feature, rank],
        "label": tables.known_class(label),
        "label_name": tables.class_name(label, store.class_names),
        "prediction": tables.known_class(prediction),
        "prediction_name": tables.class_name(prediction, store.class_names),
    }
    return tables.make(columns, SCHEMA)
