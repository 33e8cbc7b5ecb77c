"""The classifier as the measuring functions want it: callables that are pytrees.

The weights are leaves, so a jitted function takes the callable as an argument and the weights do not end
up as constants inside the compiled program. `as_argument` makes a plain closure acceptable in its place.
"""

import dataclasses
from collections.abc import Callable

import jax

from jsae.classifier.model import Params, apply
from jsae.runtime.pytrees import pytree


@pytree
class LogitsFromActs:
    """acts [B, H, W, C] at `site` -> logits [B, L], by the forward pass from there on."""

    params: Params
    site: str = dataclasses.field(metadata={"static": True})

    def __call__(self, acts: jax.Array) -> jax.Array:
        return apply(self.params, acts, start=self.site)[0]


@pytree
class LogitsAndActs:
    """images float32 [B, S, S, 3], normalised -> (logits [B, L], acts at `site` [B, H, W, C])."""

    params: Params
    site: str = dataclasses.field(metadata={"static": True})

    def __call__(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits, acts = apply(self.params, images)
        return logits, acts[self.site]


def as_argument(function: Callable) -> Callable:
    """The callable itself if it is a pytree, else wrapped so that jit takes it as an argument."""
    return jax.tree_util.Partial(function) if jax.tree_util.all_leaves([function]) else function
