"""Which way a step takes: dense or on rows of active features, and in which precision it multiplies.

The dense step costs five products of N * C * F; the sparse one of "topk" and "batch_topk" only the encoder's,
and reads and adds k rows per vector. This is the one place that says which is taken. On accelerators it is
the dense one always: at F / k = 192 the gathered rows are more bytes than the dense matrices, the sparse step
needs candidates that a sort finds, and XLA turns its scatters into loops over rows where results must be the
same (xla#34917) or on some versions (jax#38806).
"""

from jax.sharding import Mesh

from jsae.sae.recipe import AUTO, Recipe
from jsae.sae.variants import Shard, Variant, shard

SPARSE_FROM = 8  # smallest F / k from which a CPU takes the sparse step; measured on two cores


def is_sparse(mesh: Mesh, variant: Variant, n_features: int) -> bool:
    """Whether a step of this SAE works on the rows of active features only."""
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return on_cpu and variant.sparse is not None and n_features >= SPARSE_FROM * (variant.k or 1)


def precision_of(mesh: Mesh, precision: str) -> str:
    """`Recipe.precision`, where "auto" is float32 on CPUs and bfloat16 elsewhere."""
    if precision != AUTO:
        return precision
    return "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"


def shard_of(mesh: Mesh, recipe: Recipe) -> Shard:
    """How each device of the mesh computes a step of this recipe."""
    is_short = precision_of(mesh, recipe.precision) == "bfloat16"
    return shard.of_mesh(mesh, dtype="bfloat16" if is_short else "float32")
