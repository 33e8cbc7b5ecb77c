"""The layers of ConvNeXt (arXiv 2201.03545) in flax; `model.ConvNeXt` is what calls them."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jsae.classifier.families.convnext.depthwise import depthwise
from jsae.classifier.families.convnext.gelu import gelu
from jsae.classifier.families.layers import Affine, SiteWalk, blocks_in_turn, drop_examples
from jsae.classifier.layer_norm import layer_norm
from jsae.classifier.model import Edit


class LayerNorm(nn.Module):
    """Layer norm over channels, two-pass variance."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps)


class Patchify(nn.Module):
    """Convolution with stride = kernel size p and no padding, as one product over patches.

    Rows and columns that do not fill a patch are left out, as a convolution without padding does. The
    kernel [p * p * C, features] holds a patch row by row.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        p, (b, h, w, c) = self.stride, x.shape
        h, w = h // p, w // p
        if not h or not w:
            raise ValueError(
                f"an image or grid of {x.shape[1]}x{x.shape[2]} is smaller than a patch of {p}x{p}"
            )
        x = x[:, : h * p, : w * p].reshape(b, h, p, w, p, c).transpose(0, 1, 3, 2, 4, 5)
        return Affine(self.features, name="conv")(x.reshape(b, h, w, p * p * c))  # [B, H/p, W/p, features]


class Block(nn.Module):
    """Depthwise 7x7, layer norm, MLP with exact GELU, layer scale, residual."""

    eps: float
    drop: float

    @nn.compact
    def __call__(self, x: jax.Array, kept: jax.Array | None) -> jax.Array:
        channels = x.shape[-1]
        kernel = self.param("dw_kernel", nn.initializers.zeros, (7, 7, channels))
        bias = self.param("dw_bias", nn.initializers.zeros, (channels,))
        gamma = self.param("gamma", nn.initializers.ones, (channels,))
        y = LayerNorm(self.eps, name="norm")(depthwise(x, kernel, bias))
        y = Affine(4 * channels, name="expand")(y)
        y = Affine(channels, name="project")(gelu(y))
        y = (y.astype(jnp.float32) * gamma[None, None, None, :]).astype(x.dtype)
        if kept is not None and self.drop:
            y = drop_examples(y, kept, self.drop)
        return x + y


class Network(nn.Module):
    """The network: (images or the activations of `start`, edits) -> (logits [B, L], site -> activations)."""

    model: Any  # a ConvNeXt
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
            return LayerNorm(model.eps, name="stem_norm")(
                Patchify(model.dims[0], model.stem_stride, name="stem")(x)
            )

        x = walk.arrive("stem", x, stem)
        blocks = blocks_in_turn(
            model, self.drop_path, examples, lambda s, j, rate, name: make_block(model.eps, rate, name=name)
        )
        for s, (depth, dim) in enumerate(zip(model.depths, model.dims, strict=True), start=1):
            if s > 1 and walk.begun:
                x = LayerNorm(model.eps, name=f"downsample{s}_norm")(x)
                x = Patchify(dim, 2, name=f"downsample{s}")(x)
            for j in range(depth):
                x = walk.arrive(f"stage{s}.block{j}", x, *next(blocks))
            x = walk.arrive(f"stage{s}", x)
        pooled = LayerNorm(model.head_eps, name="head_norm")(x.astype(jnp.float32).mean((1, 2)))  # [B, C]
        return Affine(model.n_classes, "float32", name="head")(pooled), walk.acts
