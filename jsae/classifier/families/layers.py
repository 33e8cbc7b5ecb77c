"""What networks of several families are made of: the walk over the sites, an affine map, stochastic depth."""

from collections.abc import Callable, Iterator, Mapping
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

    XLA:CPU runs a product with more leading axes up to four times slower. The bias is added in float32, and
    so is its gradient, whatever the dtype of x.
    """

    features: int
    precision: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel.astype(x.dtype), precision=self.precision)
        rows = (rows.astype(jnp.float32) + bias[None, :]).astype(x.dtype)
        return rows.reshape(*x.shape[:-1], self.features)


def blocks_in_turn(
    model: Any,
    drop_path: float,
    examples: jax.Array | None,
    make: Callable[[int, int, float, str], nn.Module],
) -> Iterator[tuple[nn.Module, jax.Array | None]]:
    """Every block of a staged model and which examples keep what it adds (`drop_examples`; None: all).

    All blocks draw at once, because on accelerators a draw of some bits costs a start each. Example i draws
    from fold_in(the block's `drop` key, its number).

    Args:
      model: a `staged.Staged`.
      drop_path: rate of the last block; it grows linearly from 0.
      examples: int32 [B], their numbers; None drops nothing.
      make: (stage from 1, block of it from 0, rate, name) -> the block.
    """
    at = [(s, j) for s, depth in enumerate(model.depths, start=1) for j in range(depth)]
    rates = [drop_path * done / max(len(at) - 1, 1) for done in range(len(at))]
    blocks = [make(s, j, rate, f"stage{s}_block{j}") for (s, j), rate in zip(at, rates, strict=True)]
    if examples is None or not drop_path:
        return zip(blocks, [None] * len(blocks), strict=True)

    def draw(key, share):
        return jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), share))(examples)

    keys = jnp.stack([block.make_rng("drop") for block in blocks])
    kept = jax.vmap(draw)(keys, jnp.asarray([1 - rate for rate in rates]))  # [n_blocks, B]
    return zip(blocks, kept, strict=True)


def drop_examples(y: jax.Array, kept: jax.Array, rate: float) -> jax.Array:
    """What a block adds, y [B, H, W, C]: divided by 1 - rate where `kept` [B] is true, else zero."""
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
