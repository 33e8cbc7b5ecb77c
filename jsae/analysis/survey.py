"""One pass over a split: encode every image on the device and keep what the tables need.

A batch of activations is encoded, reduced over its grid, and dropped; the running best patches stay on the
device, sums go to the host, one batch late so that the device never waits, and are added up in float64.
Memory is that of one batch [B, H, W, F], besides the pooled activations [n_images, F] where they are asked
for (ranks and permutations need them): 4 bytes each on the host, announced by `run`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jsae.analysis import top_patches
from jsae.runtime import mesh as meshes
from jsae.runtime import preemption


@dataclasses.dataclass
class Survey:
    """What one pass over a split found; arrays on the host.

    Attributes:
      n_images, n_vectors: images, and images times grid cells.
      fires: vectors on which a feature is not 0, int64 [F].
      active_images: images in which a feature fires anywhere, int64 [F].
      total: sum over vectors, raw units, float64 [F].
      max: largest value, raw units, float32 [F].
      class_count: images a class, int64 [L].
      class_mean: mean over the images of a class of the mean over the grid, float64 [F, L]; NaN for a class
        without images.
      class_max: the same of the maximum over the grid.
      top: the best patches, [F, K].
      pooled: mean over the grid, float32 [n_images, F], or None.
    """

    n_images: int
    n_vectors: int
    fires: np.ndarray
    active_images: np.ndarray
    total: np.ndarray
    max: np.ndarray
    class_count: np.ndarray
    class_mean: np.ndarray
    class_max: np.ndarray
    top: top_patches.TopPatches
    pooled: np.ndarray | None


def survey(store, sae, *, batch_size: int, n_top: int, keep_pooled: bool, mesh=None, on_batch=None) -> Survey:
    """Look at every vector of a split once.

    Args:
      store: an activation store: grid, n_images, labels, class_names, batches().
      sae: a pytree with encode(x [..., C] raw) -> features [..., F] in raw units, >= 0, and n_features.
      batch_size: images at once, divisible by the mesh's data axis; no number depends on it but for rounding.
      n_top: best images to keep for each feature; 0 for none.
      keep_pooled: return the pooled activations.
      mesh: deals the batch over its `data` axis; one device if None.
      on_batch: called with the number of images after each batch.

    Raises:
      ValueError: an activation or feature is not finite (the image is named), or a label has no class name.
      Preempted: a stop was asked for.
    """
    labels, n_classes = np.asarray(store.labels, np.int32), len(store.class_names)
    if len(labels) and labels.max() >= n_classes:
        raise ValueError(f"label {labels.max()} has no name: the store has {n_classes} class names")
    index, count = (0, 1) if mesh is None else meshes.process_slice(mesh)
    check = preemption.check_here if mesh is None else preemption.check  # alone, or all together
    mesh = meshes.make_mesh(1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    step = jax.jit(
        _step, static_argnames="n_classes", donate_argnums=1, out_shardings=meshes.replicated(mesh)
    )
    sae = jax.jit(lambda s: s, out_shardings=meshes.replicated(mesh))(meshes.to_host(sae))
    top = jax.jit(top_patches.empty, static_argnums=(0, 1), out_shardings=meshes.replicated(mesh))(
        sae.n_features, n_top
    )
    totals = _Totals(store, sae.n_features, n_classes, keep_pooled)
    mine = slice(index * batch_size // count, (index + 1) * batch_size // count)
    pending = None
    for start, acts, mask in store.batches(batch_size):
        rows = np.zeros(batch_size, np.int32)
        part = labels[start : start + batch_size]
        rows[: len(part)] = part
        image = start + np.arange(batch_size, dtype=np.int32)
        batch = {"acts": acts, "mask": mask, "label": rows, "image": image}
        batch = meshes.put_batch(mesh, {name: array[mine] for name, array in batch.items()})
        top, sums = step(sae, top, batch, n_classes=n_classes)
        if pending is not None:
            totals.add(*pending)
        pending = (start, len(part), sums)
        if on_batch is not None:
            on_batch(len(part))
        check()
    if pending is not None:
        totals.add(*pending)
    return totals.finish(meshes.to_host(top))


def _step(sae, top, batch, *, n_classes: int):
    """The best patches with one more batch, and the batch's sums."""
    acts, real = batch["acts"], batch["mask"] > 0
    with jax.default_matmul_precision("float32"):
        feats = sae.encode(acts)  # [B, H, W, F]
        feats = feats.reshape(acts.shape[0], -1, feats.shape[-1])  # [B, H*W, F]
        finite = jnp.isfinite(acts).all(axis=(1, 2, 3)) & jnp.isfinite(feats).all(axis=(1, 2))  # [B]
        feats = jnp.where(real[:, None, None], feats, 0.0)
        pooled, peak = feats.mean(axis=1), feats.max(axis=1)  # [B, F]
        is_class = jax.nn.one_hot(batch["label"], n_classes) * real[:, None]  # [B, L]; label -1 is no class
        # products instead of segment sums: float32 scatter-add is slow on some GPU versions
        class_mean, class_max = pooled.T @ is_class, peak.T @ is_class  # [F, L]
    if top.value.shape[1]:
        top = top_patches.merge(top, peak, batch["image"], feats.argmax(axis=1).astype(jnp.int32))
    sums = {
        "finite": finite | ~real,
        "fires": (feats != 0).sum(axis=(0, 1)),
        "active_images": (feats != 0).any(axis=1).sum(axis=0),
        "total": feats.sum(axis=1).sum(axis=0),
        "max": peak.max(axis=0),
        "class_mean": class_mean,
        "class_max": class_max,
        "pooled": pooled,
    }
    return top, sums


class _Totals:
    """Adds the batches' sums up on the host, counts in int64, the rest in float64."""

    def __init__(self, store, n_features: int, n_classes: int, keep_pooled: bool):
        self._store, self._labels = store, np.asarray(store.labels)
        self._n_classes = n_classes
        self._counts = {name: np.zeros(n_features, np.int64) for name in ("fires", "active_images")}
        self._sums = {"total": np.zeros(n_features)}
        self._sums |= {name: np.zeros((n_features, n_classes)) for name in ("class_mean", "class_max")}
        self._max = np.zeros(n_features, np.float32)
        self._pooled = np.zeros((store.n_images, n_features), np.float32) if keep_pooled else None

    def add(self, start: int, n: int, sums: dict) -> None:
        if self._pooled is None:
            sums = {name: value for name, value in sums.items() if name != "pooled"}
        sums = meshes.to_host(sums)
        if not sums["finite"].all():
            image = start + int(np.argmin(sums["finite"]))
            raise ValueError(
                f"the activations or features of image {self._store.image_ids[image]!r} (number {image} of "
                "its split) are not finite; extract them again"
            )
        for kept in (self._counts, self._sums):
            for name in kept:
                kept[name] += sums[name]
        self._max = np.maximum(self._max, sums["max"])
        if self._pooled is not None:
            self._pooled[start : start + n] = sums["pooled"][:n]

    def finish(self, top: top_patches.TopPatches) -> Survey:
        count = np.bincount(self._labels[self._labels >= 0], minlength=self._n_classes)
        divisor = np.where(count > 0, count, np.nan)[None, :]  # NaN for a class without images
        return Survey(
            n_images=self._store.n_images,
            n_vectors=self._store.n_images * self._store.grid[0] * self._store.grid[1],
            **self._counts,
            total=self._sums["total"],
            max=self._max,
            class_count=count,
            class_mean=self._sums["class_mean"] / divisor,
            class_max=self._sums["class_max"] / divisor,
            top=top,
            pooled=self._pooled,
        )
