"""The K strongest images of every feature, kept while a split streams by, and the table they make.

A patch is the grid position where a feature peaks in an image; an image gives at most one patch per
feature. The running best [F, K] and the batch's peaks [F, B] are joined by one `lax.top_k`, so memory does
not depend on how many images there are. Equal values keep the order of the images, whatever the batch size.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax.sharding import PartitionSpec

from jsae.activations import Encoded, Reducer
from jsae.runtime.pytrees import pytree
from jsae.tables import Column, Table, class_name, known_class

TABLE = Table(
    "top_patches",
    (
        Column("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
        Column(
            "rank",
            pa.int32(),
            "0 is the image in which the feature peaks highest; at most one patch per image",
        ),
        Column("image", pa.int32(), "index of the image in the test split"),
        Column("image_id", pa.string(), "id of the image in the data set"),
        Column("y", pa.int32(), "row of the peak on the activation grid, 0 at the top"),
        Column("x", pa.int32(), "column of the peak on the activation grid, 0 at the left"),
        Column("value", pa.float32(), "the feature at its peak, raw units, > 0"),
        Column("label", pa.int32(), "class of the image; null where it is unknown"),
        Column("label_name", pa.string(), "name of that class"),
        Column("prediction", pa.int32(), "the classifier's class for the unedited image"),
        Column("prediction_name", pa.string(), "name of the predicted class"),
    ),
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


@pytree
class KeepTopPatches(Reducer):
    """The `n_top` strongest images of every feature, `TopPatches`; images come in rising order."""

    n_top: int = dataclasses.field(metadata={"static": True})

    def carry(self, dictionary: Any) -> TopPatches:
        shape = (dictionary.n_features, self.n_top)
        nowhere = jnp.full(shape, -1, jnp.int32)
        return TopPatches(jnp.full(shape, -jnp.inf), nowhere, jnp.copy(nowhere))

    def step(self, dictionary: Any, carry: TopPatches, batch: Encoded) -> tuple[TopPatches, tuple[()]]:
        feats = batch.feats.reshape(batch.feats.shape[0], -1, batch.feats.shape[-1])  # [B, H*W, F]
        found = feats.max(axis=1), feats.argmax(axis=1).astype(jnp.int32)  # [B, F]
        mesh = getattr(dictionary, "mesh", None)
        if mesh is None or mesh.size == 1:
            return merge(carry, found[0], batch.images, found[1]), ()
        rows, columns, whole = PartitionSpec("model"), PartitionSpec(None, "model"), PartitionSpec()
        merge_rows = jax.shard_map(  # XLA would gather all features for a top_k
            merge, mesh=mesh, in_specs=(rows, columns, whole, columns), out_specs=rows, check_vma=False
        )
        return merge_rows(carry, found[0], batch.images, found[1]), ()

    def finish(self, carry: TopPatches, total: Any) -> TopPatches:
        return carry


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


def labels_of(top: TopPatches, labels: np.ndarray) -> np.ndarray:
    """Labels [F, K] of the top images, -1 behind the last image in which the feature fires."""
    return np.where(np.isfinite(top.value), np.asarray(labels)[top.image], -1)


def table(top: TopPatches, store: Any) -> pa.Table:
    """One row per (feature, rank), only patches where the feature fires.

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
        "label": known_class(label),
        "label_name": class_name(label, store.class_names),
        "prediction": known_class(prediction),
        "prediction_name": class_name(prediction, store.class_names),
    }
    return TABLE.make(columns)
