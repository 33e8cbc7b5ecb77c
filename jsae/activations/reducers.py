"""One pass over a split: encode every batch on the mesh, hand it to reducers, and drop it.

    found = run_pass(store, sae, {"strength": MeasureStrength(10), "pooled": KeepPooled()}, batch_size=64)

A reducer says what it needs of a batch. Its `step` is traced: it sees the features of all B images, dealt
over the mesh's axes `data` and `model`, and returns small arrays, which `add` joins on the host in float64,
one batch late so that the devices never wait. What must stay on the devices from batch to batch is its
`carry`. The same pass serves every dictionary, any number of devices and processes, one reducer or many; it
shows progress, stops where that was asked for, names an image whose numbers are not finite, and keeps its
result for a stage that is started again. Memory is that of one batch [B, H, W, F] over all devices, and the
totals.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext


class Encoded(NamedTuple):
    """A batch as reducers see it, on the mesh.

    Attributes:
      feats: features in raw units [B, H, W, F], 0 in padding rows.
      acts: raw activations, float32 [B, H, W, C].
      labels: int32 [B], -1 for unknown and in padding rows.
      images: int32 [B], numbers in the split.
      real: bool [B], False for padding.
    """

    feats: jax.Array
    acts: jax.Array
    labels: jax.Array
    images: jax.Array
    real: jax.Array


class Reducer:
    """What a pass is made for; a frozen dataclass, `jsae.pytree` so that its arrays are arguments.

    `step` is traced and pure; `start`, `add` and `finish` work on the host.
    """

    def carry(self, dictionary: Any) -> Any:
        """Traced: what stays on the devices, a pytree; arrays with F rows are dealt over `model`."""
        return ()

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> Any:
        """The empty total of a pass over these image numbers."""
        return None

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, Any]:
        """Traced: (carry, what `add` gets) of one batch."""
        raise NotImplementedError

    def add(self, total: Any, part: Any, rows: slice, n: int) -> Any:
        """The total with one more batch: `part` as numpy arrays, `rows` of the pass, the first n real."""
        return total

    def finish(self, carry: Any, total: Any) -> Any:
        """The result, from the carry as numpy arrays and the total."""
        return total


def run_pass(
    store: Any,
    dictionary: Any,
    reducers: Mapping[str, Reducer],
    *,
    batch_size: int,
    mesh: Mesh | None = None,
    images: np.ndarray | None = None,
    context: RunContext | None = None,
    label: str = "",
    keep: Any = None,
    check_finite: bool = True,
) -> dict[str, Any]:
    """Pass once over a split, or over some of its images.

    Args:
      store: an activation store: batches(), n_images, image_ids.
      dictionary: a pytree with encode(x [..., C] raw) -> features [..., F] raw and n_features; arrays with
        F rows are dealt over `model`, the others are replicated.
      reducers: by name.
      batch_size: images at once, divisible by the mesh's data axis; no result depends on it but for rounding.
      mesh: None for one local device.
      images: image numbers [n], rising; None for all.
      context: shows progress and stops; None: neither.
      label: what progress and a kept result are called.
      keep: `passes.Passes` of the stage, so that it does not pass again when it is started again.
      check_finite: False where NaN shall come out instead of an error.

    Returns:
      name -> result of each reducer.

    Raises:
      ValueError: an activation or feature is not finite (the image is named).
      preemption.Preempted: a stop was asked for.
    """
    make = functools.partial(
        _pass, store, dictionary, dict(reducers), batch_size, mesh, images, context, label, check_finite
    )
    return make() if keep is None else keep(label.replace(" ", "-"), make)()


def _pass(
    store, dictionary, reducers, batch_size, mesh, images, context, label, check_finite
) -> dict[str, Any]:
    context = context or RunContext()
    check = context.check_here if mesh is None else context.check  # alone, or all processes together
    index, count = (0, 1) if mesh is None else meshes.process_slice(mesh)
    mesh = meshes.make_mesh(1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    mine = slice(index * batch_size // count, (index + 1) * batch_size // count)
    numbers = np.arange(store.n_images) if images is None else np.asarray(images)
    dictionary, kinds = _deal(mesh, dictionary), meshes.replicate(mesh, tuple(reducers.values()))
    carry = _carries(mesh, kinds, dictionary)
    totals = [reducer.start(store, dictionary, numbers) for reducer in reducers.values()]
    pending = None

    def add(start, n, finite, parts):
        parts, finite = meshes.collect((parts, finite))
        if check_finite and not finite.all():
            image = int(numbers[start + int(np.argmin(finite))])
            raise ValueError(
                f"the activations or features of image {store.image_ids[image]!r} (number {image} of "
                f"its split) "
                "are not finite; extract them again"
            )
        rows = slice(start, start + n)
        return [
            reducer.add(total, part, rows, n)
            for reducer, total, part in zip(reducers.values(), totals, parts, strict=True)
        ]

    with context.progress(len(numbers), label=label, unit="image") as progress:
        for i, batch in enumerate(store.batches(batch_size, images)):
            n = int(batch.mask.sum())
            local = {name: array[mine] for name, array in batch._asdict().items()}
            carry, finite, parts = _step(kinds, dictionary, carry, meshes.put_batch(mesh, local))
            if pending is not None:
                totals = add(*pending)
            pending = (i * batch_size, n, finite, parts)
            progress.update(n)
            check()
        if pending is not None:
            totals = add(*pending)
    carry = meshes.collect(carry)
    found = zip(reducers, reducers.values(), carry, totals, strict=True)
    return {name: reducer.finish(kept, total) for name, reducer, kept, total in found}


@functools.partial(jax.jit, donate_argnums=2)
def _step(reducers, dictionary, carries, batch: dict):
    """(carries, which images are finite [B], what each reducer returns) of one batch."""
    real = batch["mask"] > 0
    with jax.default_matmul_precision("float32"):
        feats = dictionary.encode(batch["acts"])  # [B, H, W, F]
        finite = jnp.isfinite(batch["acts"]).all((1, 2, 3)) & jnp.isfinite(feats).all((1, 2, 3))
        feats = jnp.where(real[:, None, None, None], feats, 0.0)
        encoded = Encoded(feats, batch["acts"], batch["labels"], batch["images"], real)
        found = [r.step(dictionary, kept, encoded) for r, kept in zip(reducers, carries, strict=True)]
    return tuple(kept for kept, _ in found), finite | ~real, tuple(part for _, part in found)


def _deal(mesh: Mesh, dictionary):
    """The dictionary on the mesh; one that can know its mesh does so then."""
    n_features = dictionary.n_features
    rows = PartitionSpec("model" if n_features % mesh.shape["model"] == 0 else None)

    def place(leaf):
        by_feature = np.ndim(leaf) and np.shape(leaf)[0] == n_features
        return meshes.place(mesh, leaf, rows if by_feature else PartitionSpec())

    dictionary = jax.tree.map(place, dictionary)
    if rows[0] and getattr(dictionary, "mesh", mesh) is None:
        dictionary = dataclasses.replace(dictionary, mesh=mesh)
    return dictionary


def _carries(mesh: Mesh, reducers, dictionary):
    """The empty carries on the mesh; arrays with F rows are dealt over `model` where the dictionary is."""

    def make(reducers, dictionary):
        return tuple(reducer.carry(dictionary) for reducer in reducers)

    dealt = getattr(dictionary, "mesh", None) is not None
    specs = jax.tree.map(
        lambda leaf: (
            PartitionSpec("model")
            if dealt and leaf.ndim and leaf.shape[0] == dictionary.n_features
            else PartitionSpec()
        ),
        jax.eval_shape(make, reducers, dictionary),
    )
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(make, out_shardings=shardings)(reducers, dictionary)
