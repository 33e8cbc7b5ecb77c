"""An SAE's numbers over a whole split: sums over batches, divided once (jsae.metrics).

Evaluation runs in raw units and float32 products, in one pass over the split on all devices
(`jsae.activations.run_pass`). No number depends on the batch size or the device count.
"""

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jsae import metrics
from jsae.activations import ActivationStore, Encoded, Reducer, run_pass
from jsae.runtime.context import RunContext
from jsae.runtime.pytrees import pytree
from jsae.sae import model


class Sums(NamedTuple):
    """`metrics.SaeSums`, and the `metrics.Moments` that PCA is made from; None for a split without images."""

    sae: Any
    moments: Any


@pytree
class MeasureReconstruction(Reducer):
    """`Sums` of any dictionary with encode, decode and mean, over all vectors of a split."""

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> Sums:
        return Sums(None, None)

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, Sums]:
        x, feats = (part.reshape(-1, part.shape[-1]) for part in (batch.acts, batch.feats))
        mask = jnp.repeat(batch.real.astype(jnp.float32), len(x) // len(batch.real))
        sums = metrics.sae_sums(x, dictionary.decode(feats), feats, mask, dictionary.mean)
        return carry, Sums(sums, metrics.moments(x, mask, dictionary.mean))

    def add(self, total: Sums, part: Sums, rows: slice, n: int) -> Sums:
        return Sums(*(metrics.add_sums(old, new) for old, new in zip(total, part, strict=True)))


def over_store(
    sae: model.SAE,
    store: ActivationStore,
    mesh: Mesh | None = None,
    *,
    n_vectors: int,
    context: RunContext | None = None,
    label: str = "sae: evaluation",
) -> Sums:
    """The sums of an SAE over a store.

    Args:
      sae: on the mesh.
      store: of the split.
      mesh: None for one local device.
      n_vectors: about how many vectors a batch should hold; rounded to whole images of every device.
      context, label: progress and stop requests.

    Raises preemption.Preempted if a stop was asked for.
    """
    cells, data = store.grid[0] * store.grid[1], 1 if mesh is None else mesh.shape["data"]
    return run_pass(
        store,
        dataclasses.replace(sae, mesh=mesh),
        {"sums": MeasureReconstruction()},
        batch_size=-(-n_vectors // (cells * data)) * data,
        mesh=mesh,
        context=context,
        label=label,
        check_finite=False,  # a batch that was refused in training does not end the run here
    )["sums"]
