"""Which way a step takes: dense or on rows of active features, and how a device multiplies and sorts.

The dense step costs five products of N * C * F; the sparse one of "topk" and "batch_topk" only the encoder's,
and reads and adds k rows per vector. Which is faster depends on F / k and on how a platform gathers and
scatters; this is the one place that says so.
"""

import jax
from jax.sharding import Mesh

from jsae.sae.recipe import Recipe
from jsae.sae.variants import Shard, Variant, shard

# Smallest F / k from which the sparse step is taken. CPU: measured on two cores. GPU: a published estimate,
# not measured here. A TPU scatters row by row: never.
SPARSE_FROM = {"cpu": 8, "gpu": 120, "cuda": 120}
# float32 scatter-adds of these versions become compare-and-swap loops on CUDA (jax#38806)
_SLOW_SCATTER = ((0, 10, 2), (0, 11, 1))


def is_sparse(mesh: Mesh, variant: Variant, n_features: int, deterministic: bool = False) -> bool:
    """Whether a step of this SAE works on the rows of active features only.

    With `deterministic` (config.runtime) only on CPUs: elsewhere XLA turns a scatter whose order must not
    matter into a loop over its rows.
    """
    platform = mesh.devices.flat[0].platform
    if variant.sparse is None or platform not in SPARSE_FROM:
        return False
    if deterministic and platform != "cpu":
        return False
    first, fixed = _SLOW_SCATTER
    if platform != "cpu" and first <= jax.version.__version_info__ < fixed:
        return False
    return n_features >= SPARSE_FROM[platform] * (variant.k or 1)


def shard_of(mesh: Mesh, recipe: Recipe) -> Shard:
    """How each device of the mesh computes a step of this recipe."""
    dtype = "bfloat16" if recipe.precision == "bfloat16" else "float32"
    return shard.of_mesh(mesh, dtype=dtype, stable=recipe.stable_top_k)
