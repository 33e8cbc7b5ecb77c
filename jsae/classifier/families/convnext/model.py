"""ConvNeXt as a `classifier.model.Trainable`: its forward pass, fresh weights, what training asks of it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jsae.classifier.families import layers
from jsae.classifier.families.convnext.arch import Arch
from jsae.classifier.families.convnext.network import LayerNorm, Network
from jsae.classifier.model import Edit, Head, HeadNorm


@dataclasses.dataclass(frozen=True)
class ConvNeXt(Arch):
    """A ConvNeXt; the methods are those of `classifier.model.Trainable`."""

    family: ClassVar[str] = "convnext"
    inits: ClassVar[tuple[str, ...]] = ("normal", "fan_in")

    def __call__(
        self,
        variables: Any,
        images: jax.Array,
        *,
        edits: Mapping[str, Edit] | None = None,
        start: str | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return Network(self).apply({"params": variables}, images, edits, start)

    def linear_head(self, variables: Any) -> Head:
        """Mean pool, layer norm with the epsilon that came with the weights, linear map."""
        norm, linear = variables["head_norm"], variables["head"]
        return Head(linear["kernel"], linear["bias"], HeadNorm(norm["scale"], norm["bias"], self.head_eps))

    def init(self, key: jax.Array, *, layer_scale: float = 1e-6, kernels: str = "normal") -> Any:
        """Fresh weights: zero biases, unit norms, layer scale as given, truncated normal kernels.

        Args:
          key: a jax random key.
          layer_scale: initial value of every block's gamma.
          kernels: their standard deviation: "normal" is 0.02, as published; "fan_in" is 1 / sqrt(fan in),
            at most 0.2, the head's 0.02, which narrow networks start learning from sooner.

        Raises ValueError for another `kernels`.
        """
        if kernels not in self.inits:
            raise ValueError(f"there are no {kernels!r} kernels; valid are {', '.join(self.inits)}")
        side = 8 * self.stem_stride
        shapes = jax.eval_shape(Network(self).init, key, jnp.zeros((1, side, side, 3)))["params"]
        constants = {"bias": 0.0, "dw_bias": 0.0, "scale": 1.0, "gamma": layer_scale}

        def std(path, shape):
            if kernels == "normal" or path[0] == "head":
                return 0.02
            return min(0.2, float(np.prod(shape[:-1])) ** -0.5)

        return layers.fill(key, shapes, lambda path: constants.get(path[-1]), std)

    def calibrate_norms(self, variables: Any, images: jax.Array) -> Any:
        """Set every layer norm so that each of its channels has mean 0 and variance 1 over `images`.

        A layer norm leaves what all images share, their mean, in place; in a narrow network it drowns the
        differences, and training stays at chance for many epochs, how many being a matter of the seed.
        """
        found = {}

        def standardise(call, args, kwargs, context):
            y = call(*args, **kwargs)
            if not isinstance(context.module, LayerNorm) or context.method_name != "__call__":
                return y
            axes = tuple(range(y.ndim - 1))
            mean, std = y.mean(axes), y.std(axes) + 1e-3  # a channel that never varies stays small
            found[context.module.path] = {"scale": 1 / std, "bias": -mean / std}
            lift = (None,) * (y.ndim - 1)
            return (y - mean[lift]) / std[lift]

        with nn.intercept_methods(standardise):
            self(variables, images)

        def replace(path, leaf):
            *module, name = (key.key for key in path)
            return found.get(tuple(module), {}).get(name, leaf)

        return jax.tree_util.tree_map_with_path(replace, variables)

    def train_logits(
        self,
        variables: Any,
        images: jax.Array,
        key: jax.Array,
        examples: jax.Array,
        *,
        drop_path: float,
        remat: bool = False,
    ) -> jax.Array:
        network = Network(self, drop_path=drop_path, remat=remat)
        return network.apply({"params": variables}, images, examples=examples, rngs={"drop": key})[0]

    def depth_from_head(self, module: str) -> int:
        """Blocks between a module and the head: a downsampling counts with the block behind it, the stem one
        more than the first block.
        """
        if module.startswith("head"):
            return 0
        if module.startswith("stem"):
            return sum(self.depths) + 1
        stage, block = re.match(r"(?:stage|downsample)(\d)(?:_block(\d+))?", module).groups()
        before = sum(self.depths[: int(stage) - 1]) + int(block or 0)
        return max(sum(self.depths) - before, 1)
