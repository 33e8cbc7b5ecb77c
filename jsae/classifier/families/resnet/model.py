"""ResNet as a `classifier.model.Trainable`: sizes, sites, forward pass, fresh weights.

Batch norm is folded into the convolutions, in published weights when they are read and in fresh ones from the
start: what is trained are kernels and biases, and the network does the same in training and in use. Without
batch norm nothing keeps the sum of many blocks from growing, and there is no last scale to start at zero: the
last convolution of each block starts small instead (`layer_scale`), so that a deep network begins near the
identity, as in arXiv 1901.09321.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jsae.classifier.families import layers
from jsae.classifier.families.resnet.network import Conv, Network
from jsae.classifier.model import Edit, Head

SIZES = {
    "resnet18": {"depths": (2, 2, 2, 2), "dims": (64, 128, 256, 512)},
    "resnet34": {"depths": (3, 4, 6, 3), "dims": (64, 128, 256, 512)},
    "resnet50": {"depths": (3, 4, 6, 3), "dims": (256, 512, 1024, 2048), "bottleneck": True},
}
_CUT_STD = 0.87962566103423978  # standard deviation of a standard normal cut at +-2


@dataclasses.dataclass(frozen=True)
class ResNet:
    """A ResNet; the methods are those of `classifier.model.Trainable`.

    Sites, in the order of the forward pass: `stem` (behind the max-pool), then for each stage
    `stageS.block0`, ..., `stageS` (the output of its last block). All lie behind a ReLU.

    Attributes:
      name: one of `SIZES`, or any other name.
      depths: blocks of each of the four stages, at least one.
      dims: channels that each stage puts out; of bottleneck blocks, multiples of 4.
      n_classes: L.
      stem_stride: pixels a cell of the stem spans: 4 as published, 2 without the max-pool, 1 with a stride of
        1 besides; a cell of stage 4 is 8 times that.
      bottleneck: blocks of 1x1, 3x3, 1x1 convolutions with a quarter of the channels inside.
    """

    name: str
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    n_classes: int
    stem_stride: int = 4
    bottleneck: bool = False
    family: ClassVar[str] = "resnet"
    inits: ClassVar[tuple[str, ...]] = ("fan_in",)

    def __post_init__(self):
        for field, values in (("depths", self.depths), ("dims", self.dims)):
            if len(values) != 4 or min(values) < 1:
                raise ValueError(f"{field} of a ResNet are four numbers of at least 1, got {values}")
        if self.bottleneck and any(dim % 4 for dim in self.dims):
            raise ValueError(f"dims of bottleneck blocks are multiples of 4, got {self.dims}")
        if self.stem_stride not in (1, 2, 4):
            raise ValueError(f"the stem_stride of a ResNet is 1, 2 or 4, got {self.stem_stride}")
        if self.n_classes < 1:
            raise ValueError(f"n_classes is positive, got {self.n_classes}")

    @property
    def sites(self) -> tuple[str, ...]:
        """All site names in the order of the forward pass."""
        return tuple(self._stages)

    def grid(self, site: str, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the site's grid; each halving rounds up, as padded convolutions do."""
        height, width = image_hw
        stride = self.stride_px(site)
        return -(-height // stride), -(-width // stride)

    def channels(self, site: str) -> int:
        """C of the site."""
        self.check_site(site)
        if site == "stem":
            return self.dims[0] // 4 if self.bottleneck else self.dims[0]
        return self.dims[self._stages[site]]

    def stride_px(self, site: str) -> int:
        """Pixels of the input from one cell of the site's grid to the next."""
        self.check_site(site)
        return self.stem_stride * 2 ** self._stages[site]

    def check_site(self, site: str) -> None:
        """Raise ValueError unless `site` is a site of this network."""
        if site not in self._stages:
            raise ValueError(f"there is no site {site!r}; the sites are {', '.join(self.sites)}")

    @property
    def _stages(self) -> dict[str, int]:
        """Site -> its stage from 0; the stem has the grid of the first."""
        stages = {"stem": 0}
        for s, depth in enumerate(self.depths):
            stages |= {f"stage{s + 1}.block{j}": s for j in range(depth)} | {f"stage{s + 1}": s}
        return stages

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
        if kernels not in self.inits:
            raise ValueError(f"a ResNet has no {kernels!r} kernels; valid are {', '.join(self.inits)}")
        side = 8 * self.stem_stride
        shapes = jax.eval_shape(Network(self).init, key, jnp.zeros((1, side, side, 3)))["params"]

        def std(path, shape):
            if path[0] == "head":
                return 0.02
            he = float(np.prod(shape[:-1]) / 2) ** -0.5 / _CUT_STD
            return he * layer_scale if self._is_last_of_block(path) else he

        return layers.fill(key, shapes, lambda path: 0.0 if path[-1] == "bias" else None, std)

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
        """0 for the head, 1 for the last block, ..., one more than the first block for the stem."""
        modules = ["stem"]
        for s, depth in enumerate(self.depths, start=1):
            modules += [f"stage{s}_block{j}" for j in range(depth)]
        return [*modules, "head"][::-1].index(module)
