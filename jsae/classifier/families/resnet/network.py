"""The layers of ResNet (arXiv 1512.03385) in flax, each batch norm folded into the convolution before it.

Bottleneck blocks have their stride in the 3x3 convolution, as torchvision and timm have (called v1.5).
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jsae.classifier.families.layers import Affine, SiteWalk, drop_examples
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
        return y + bias.astype(x.dtype)[None, None, None, :]


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 with a quarter of the channels inside; residual, then ReLU."""

    features: int
    stride: int
    bottleneck: bool
    drop: float

    @nn.compact
    def __call__(self, x: jax.Array, examples: jax.Array | None) -> jax.Array:
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
        if examples is not None and self.drop:
            y = drop_examples(self.make_rng("drop"), y, examples, self.drop)
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
        n_blocks, done = sum(model.depths), 0
        for s, (depth, dim) in enumerate(zip(model.depths, model.dims, strict=True), start=1):
            for j in range(depth):
                stride = 2 if s > 1 and j == 0 else 1
                drop = self.drop_path * done / max(n_blocks - 1, 1)
                block = make_block(dim, stride, model.bottleneck, drop, name=f"stage{s}_block{j}")
                x = walk.arrive(f"stage{s}.block{j}", x, block, examples)
                done += 1
            x = walk.arrive(f"stage{s}", x)
        return Affine(model.n_classes, name="head")(x.mean((1, 2))).astype(jnp.float32), walk.acts
