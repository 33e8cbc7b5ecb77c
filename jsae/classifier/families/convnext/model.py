"""ConvNeXt as a `classifier.model.Trainable`: sizes, fresh weights, head."""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from jsae.classifier.families import layers
from jsae.classifier.families.convnext import depthwise
from jsae.classifier.families.convnext.network import LayerNorm, Network
from jsae.classifier.families.staged import Staged
from jsae.classifier.model import Head, HeadNorm

SIZES = {
    "atto": {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)},
    "femto": {"depths": (2, 2, 6, 2), "dims": (48, 96, 192, 384)},
    "pico": {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512)},
    "nano": {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640)},
    "tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "large": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
}


@dataclasses.dataclass(frozen=True)
class ConvNeXt(Staged):
    """A ConvNeXt; a stage may have no blocks and only downsample.

    Attributes:
      eps: of every layer norm but the head's.
      head_eps: of the head's layer norm.
    """

    eps: float = 1e-6
    head_eps: float = 1e-6
    family: ClassVar[str] = "convnext"
    inits: ClassVar[tuple[str, ...]] = ("normal", "fan_in")

    def __post_init__(self):
        self.check_sizes("ConvNeXt", least_depth=0)

    def network(self, drop_path: float = 0.0, remat: bool = False) -> Network:
        return Network(self, drop_path, remat)

    def forms(self, platform: str) -> dict[str, str]:
        """How the depthwise convolution is computed on a platform, in words."""
        return {"depthwise": depthwise.form(platform)}

    def grid(self, site: str, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the site's grid; every patch that is not full is left out."""
        stride = self.stride_px(site)
        return image_hw[0] // stride, image_hw[1] // stride

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
        self.check_kernels("ConvNeXt", kernels)
        constants = {"bias": 0.0, "dw_bias": 0.0, "scale": 1.0, "gamma": layer_scale}

        def std(path, shape):
            if kernels == "normal" or path[0] == "head":
                return 0.02
            return min(0.2, float(np.prod(shape[:-1])) ** -0.5)

        return layers.fill(key, self.shapes(key), lambda path: constants.get(path[-1]), std)

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
