"""The layers of ResNet (arXiv 1512.03385) in flax, each batch norm folded into the convolution before it.

Bottleneck blocks have their stride in the 3x3 convolution, as torchvision and timm have (called v1.5).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jsae.classifier.families.layers import Affine, SiteWalk, blocks_in_turn, drop_examples
from jsae.classifier.model import Edit


class Conv(nn.Module):
    """Convolution of odd side with zero padding side // 2 and a bias; kernel [side, side, C, features]."""

    features: int
    side: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.side, self.side, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.zeros, shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = jax.lax.conv_general_dilated(
            x,
            kernel.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=[(self.side // 2, self.side // 2)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        # in float32, as its gradient then is
        return (y.astype(jnp.float32) + bias[None, None, None, :]).astype(x.dtype)


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 with a quarter of the channels inside; residual, then ReLU."""

    features: int
    stride: int
    bottleneck: bool
    drop: float

    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array | None) -> jax.Array:
        if self.bottleneck:
            width = self.features // 4
            y = nn.relu(Conv(width, 1, name="conv1")(x))
            y = nn.relu(Conv(width, 3, self.stride, name="conv2")(y))
            y = Conv(self.features, 1, name="conv3")(y)
        else:
            y = nn.relu(Conv(self.features, 3, self.stride, name="conv1")(x))
            y = Conv(self.features, 3, name="conv2")(y)
        if self.stride != 1 or x.shape[-1] != self.features:
            x = Conv(self.features, 1, self.stride, name="downsample")(x)
        if kept is not None and self.drop:
            y = drop_examples(y, kept, self.drop)
        return nn.relu(x + y)


class Network(nn.Module):
    """The network: (images or the activations of `start`, edits) -> (logits [B, L], site -> activations)."""

    model: Any  # a ResNet
    drop_path: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        edits: Mapping[str, Edit] | None = None,
        start: str | None = None,
        examples: jax.Array | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        model, walk = self.model, SiteWalk(edits, start)
        make_block = nn.remat(Block) if self.remat else Block

        def stem(x):
            x = nn.relu(Conv(model.channels("stem"), 7, min(model.stem_stride, 2), name="stem")(x))
            if model.stem_stride < 4:
                return x
            return nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))

        x = walk.arrive("stem", x, stem)

        def make(s, j, rate, name):
            stride = 2 if s > 1 and j == 0 else 1
            return make_block(model.dims[s - 1], stride, model.bottleneck, rate, name=name)

        blocks = blocks_in_turn(model, self.drop_path, examples, make)
        for s, depth in enumerate(model.depths, start=1):
            for j in range(depth):
                x = walk.arrive(f"stage{s}.block{j}", x, *next(blocks))
            x = walk.arrive(f"stage{s}", x)
        pooled = x.astype(jnp.float32).mean((1, 2))
        return Affine(model.n_classes, "float32", name="head")(pooled), walk.acts
