"""An SAE's numbers over a whole split: sums over batches, divided once (jsae.metrics).

Evaluation runs in raw units and float32 products, streams the activation store image by image, and deals
each batch over the mesh's `data` axis and the features over `model`. No number depends on the batch size or
the device count.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jsae import metrics
from jsae.activations import ActivationStore
from jsae.runtime import mesh as meshes
from jsae.sae import model


def make_sums(mesh: Mesh) -> Callable:
    """A jitted (sae, x [N, C] raw, mask [N]) -> (`metrics.SaeSums`, `metrics.Moments`), replicated."""

    def sums(sae: model.SAE, x, mask):
        sae = dataclasses.replace(sae, mesh=mesh)
        with jax.default_matmul_precision("float32"):
            x = x.astype(jnp.float32)
            feats = sae.encode(x)
            return (
                metrics.sae_sums(x, sae.decode(feats), feats, mask, sae.mean),
                metrics.moments(x, mask, sae.mean),
            )

    return jax.jit(sums, out_shardings=meshes.replicated(mesh))


def over_store(
    sums: Callable,
    sae: model.SAE,
    store: ActivationStore,
    mesh: Mesh,
    *,
    n_vectors: int,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[metrics.SaeSums | None, metrics.Moments | None] | None:
    """One pass over a store.

    Args:
      sums: from `make_sums`.
      sae: the SAE, on the mesh.
      store: an ActivationStore.
      mesh: the mesh.
      n_vectors: about how many vectors a batch should hold; rounded to whole images of every device.
      stop: asked after each batch; True ends the pass.

    Returns:
      (SaeSums, Moments) on the host, or None if stopped. An empty store gives (None, None).
    """
    cells, data = store.grid[0] * store.grid[1], mesh.shape["data"]
    share = -(-n_vectors // (cells * data)) * data  # images of a batch, a multiple of the data axis
    index, count = meshes.process_slice(mesh)
    rows = slice(index * share // count, (index + 1) * share // count)
    total = (None, None)
    for acts, _, _, mask in store.batches(share):
        c = acts.shape[-1]
        local = {"x": acts[rows].reshape(-1, c), "mask": mask[rows].repeat(cells)}
        batch = meshes.put_batch(mesh, local)
        new = meshes.to_host(sums(sae, batch["x"], batch["mask"]))
        total = tuple(metrics.add_sums(a, b) for a, b in zip(total, new, strict=True))
        if stop():
            return None
    return total
