"""ResNet as a `classifier.model.Trainable`: sizes, fresh weights, head.

Batch norm is folded into the convolutions, in published weights when they are read and in fresh ones from the
start: what is trained are kernels and biases, and the network does the same in training and in use. Without
batch norm nothing keeps the sum of many blocks from growing, and there is no last scale to start at zero: the
last convolution of each block starts small instead (`layer_scale`), so that a deep network begins near the
identity, as in arXiv 1901.09321.
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import numpy as np

from jsae.classifier.families import layers
from jsae.classifier.families.resnet.network import Conv, Network
from jsae.classifier.families.staged import Staged
from jsae.classifier.model import Head

SIZES: dict[str, dict[str, Any]] = {
    "resnet18": {"depths": (2, 2, 2, 2), "dims": (64, 128, 256, 512)},
    "resnet34": {"depths": (3, 4, 6, 3), "dims": (64, 128, 256, 512)},
    "resnet50": {"depths": (3, 4, 6, 3), "dims": (256, 512, 1024, 2048), "bottleneck": True},
}
_CUT_STD = 0.87962566103423978  # standard deviation of a standard normal cut at +-2


@dataclasses.dataclass(frozen=True)
class ResNet(Staged):
    """A ResNet; each stage has a block or more, all sites lie behind a ReLU, the stem behind the max-pool.

    Attributes:
      stem_stride: 4 as published, 2 without the max-pool, 1 with a stride of 1 besides.
      bottleneck: blocks of 1x1, 3x3, 1x1 convolutions with a quarter of the channels inside.
    """

    bottleneck: bool = False
    family: ClassVar[str] = "resnet"
    inits: ClassVar[tuple[str, ...]] = ("fan_in",)

    def __post_init__(self):
        self.check_sizes("ResNet", least_depth=1)
        if self.bottleneck and any(dim % 4 for dim in self.dims):
            raise ValueError(f"dims of bottleneck blocks are multiples of 4, got {self.dims}")
        if self.stem_stride not in (1, 2, 4):
            raise ValueError(f"the stem_stride of a ResNet is 1, 2 or 4, got {self.stem_stride}")

    def network(self, drop_path: float = 0.0, remat: bool = False) -> Network:
        return Network(self, drop_path, remat)

    def grid(self, site: str, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the site's grid; each halving rounds up, as padded convolutions do."""
        stride = self.stride_px(site)
        return -(-image_hw[0] // stride), -(-image_hw[1] // stride)

    def channels(self, site: str) -> int:
        """C of the site."""
        found = super().channels(site)
        return found // 4 if self.bottleneck and site == "stem" else found

    def linear_head(self, variables: Any) -> Head:
        """Mean pool and linear map."""
        return Head(variables["head"]["kernel"], variables["head"]["bias"])

    def init(self, key: jax.Array, *, layer_scale: float = 1.0, kernels: str = "fan_in") -> Any:
        """Fresh weights: zero biases, truncated normal kernels of variance 2 / fan in (arXiv 1502.01852).

        Args:
          key: a jax random key.
          layer_scale: of the last convolution of each block, beside that; 0 makes each block the identity.
          kernels: "fan_in"; the head's standard deviation is 0.02.

        Raises ValueError for another `kernels`.
        """
        self.check_kernels("ResNet", kernels)

        def std(path, shape):
            if path[0] == "head":
                return 0.02
            he = float(np.prod(shape[:-1]) / 2) ** -0.5 / _CUT_STD
            return he * layer_scale if self._is_last_of_block(path) else he

        return layers.fill(key, self.shapes(key), lambda path: 0.0 if path[-1] == "bias" else None, std)

    def _is_last_of_block(self, path: tuple) -> bool:
        return len(path) > 2 and path[1] == ("conv3" if self.bottleneck else "conv2")

    def calibrate_norms(self, variables: Any, images: jax.Array) -> Any:
        """Scale and shift every convolution so that its channels have mean 0 and variance 1 over `images`.

        It is what batch norm does in its first step, folded. The last convolution of each block keeps its
        initial size.
        """
        found = {}

        def standardise(call, args, kwargs, context):
            y = call(*args, **kwargs)
            module = context.module
            if not isinstance(module, Conv) or self._is_last_of_block((*module.path, "kernel")):
                return y
            mean, std = y.mean((0, 1, 2)), y.std((0, 1, 2)) + 1e-3  # a channel that never varies stays small
            found[module.path] = (mean, std)
            return (y - mean[None, None, None, :]) / std[None, None, None, :]

        with nn.intercept_methods(standardise):
            self(variables, images)

        def replace(path, leaf):
            *module, name = (key.key for key in path)
            if tuple(module) not in found:
                return leaf
            mean, std = found[tuple(module)]
            return leaf / std[None, None, None, :] if name == "kernel" else (leaf - mean) / std

        return jax.tree_util.tree_map_with_path(replace, variables)
