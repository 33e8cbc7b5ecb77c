"""What networks of several families are made of: the walk over the sites, an affine map, stochastic depth."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jsae.classifier.model import Edit


class SiteWalk:
    """The sites of one forward pass in their order: edits applied, activations kept, the start found.

    Attributes:
      begun: False until the pass has come to the site where it starts.
      acts: site -> activations [B, H, W, C], edited.
    """

    def __init__(self, edits: Mapping[str, Edit] | None, start: str | None) -> None:
        self._edits, self._start = edits or {}, start
        self.begun = start is None
        self.acts: dict[str, jax.Array] = {}

    def arrive(
        self, site: str, x: jax.Array, compute: Callable[..., jax.Array] | None = None, *more: Any
    ) -> jax.Array:
        """The site's activations: compute(x, *more) (None: x itself), or x where the pass starts here."""
        if self.begun:
            x = x if compute is None else compute(x, *more)
        elif site == self._start:
            self.begun = True
        else:
            return x
        self.acts[site] = self._edits[site](x) if site in self._edits else x
        return self.acts[site]


class Affine(nn.Module):
    """x @ kernel + bias over the last axis, as one product of two matrices.

    XLA:CPU runs a product with more leading axes up to four times slower.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype) + bias.astype(x.dtype)[None, :]
        return rows.reshape(*x.shape[:-1], self.features)


def drop_examples(key: jax.Array, y: jax.Array, examples: jax.Array, rate: float) -> jax.Array:
    """What a block adds, y [B, H, W, C], zero for a share `rate` of examples, else divided by 1 - rate.

    Each example draws from fold_in(key, its number), examples being int32 [B].
    """
    kept = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - rate))(examples)
    return jnp.where(kept[:, None, None, None], y / (1 - rate), 0)


def fill(
    key: jax.Array,
    shapes: Any,
    constant: Callable[[tuple[str, ...]], float | None],
    std: Callable[[tuple[str, ...], tuple[int, ...]], float],
) -> Any:
    """Leaves of the shapes: constants, and truncated normal kernels, all cut from one draw.

    A random operation for each of them takes longer to compile than the whole network.

    Args:
      shapes: a pytree of shapes, as jax.eval_shape gives it.
      constant: (path, a tuple of names) -> the value of that leaf, or None where it is drawn.
      std: (path, shape) -> the standard deviation of a leaf that is drawn, before the cut at two of them.
    """
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    draw = jax.random.truncated_normal(key, -2.0, 2.0, (sum(sizes),))
    starts = iter(np.cumsum([0, *sizes[:-1]]))

    def leaf_of(path, leaf):
        start, names = next(starts), tuple(part.key for part in path)
        value = constant(names)
        if value is not None:
            return jnp.full(leaf.shape, value)
        return std(names, leaf.shape) * draw[start : start + leaf.size].reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(leaf_of, shapes)
