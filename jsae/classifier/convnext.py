"""ConvNeXt (arXiv 2201.03545) with named sites that can be read, edited and started from.

Sites, in the order of the forward pass: `stem`, then for each stage `stageS.block0`, ..., `stageS` (the
output of its last block). The final site, `stage4`, lies before pooling and the head's norm. `apply`
returns the activations of all sites; under jit those that nobody uses cost nothing.

`Params` is one pytree that carries its architecture as static fields, so `apply(params, images)` needs
nothing else. This is the only file that imports flax.linen.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jsae.classifier.arch import FINAL_SITE, SIZES, Arch, make_arch
from jsae.classifier.depthwise import depthwise
from jsae.classifier.pointwise import gelu, layer_norm

__all__ = [
    "FINAL_SITE",
    "SIZES",
    "Arch",
    "Params",
    "apply",
    "calibrate_norms",
    "forward_train",
    "init",
    "make_arch",
]
INITS = ("normal", "fan_in")
Edit = Callable[[jax.Array], jax.Array]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Params:
    """Weights of a ConvNeXt and, as static fields, its architecture."""

    variables: Any
    arch: Arch = dataclasses.field(metadata={"static": True})


class LayerNorm(nn.Module):
    """Layer norm over channels, two-pass variance."""

    eps: float

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return layer_norm(x, scale, bias, self.eps)


class Affine(nn.Module):
    """x @ kernel + bias over the last axis, as one product of two matrices.

    XLA:CPU runs a product with more leading axes up to four times slower.
    """

    features: int

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", nn.initializers.zeros, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        rows = x.reshape(-1, x.shape[-1]) @ kernel.astype(x.dtype) + bias.astype(x.dtype)[None, :]
        return rows.reshape(*x.shape[:-1], self.features)


class Patchify(nn.Module):
    """Convolution with stride = kernel size p and no padding, as one product over patches.

    Rows and columns that do not fill a patch are left out, as a convolution without padding does. The
    kernel [p * p * C, features] holds a patch row by row.
    """

    features: int
    stride: int

    @nn.compact
    def __call__(self, x):
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
    def __call__(self, x, examples):
        channels = x.shape[-1]
        kernel = self.param("dw_kernel", nn.initializers.zeros, (7, 7, channels))
        bias = self.param("dw_bias", nn.initializers.zeros, (channels,))
        gamma = self.param("gamma", nn.initializers.ones, (channels,))
        y = depthwise(x, kernel.astype(x.dtype)) + bias.astype(x.dtype)[None, None, None, :]
        y = LayerNorm(self.eps, name="norm")(y)
        y = Affine(4 * channels, name="expand")(y)
        y = Affine(channels, name="project")(gelu(y))
        y *= gamma.astype(x.dtype)[None, None, None, :]
        if examples is not None and self.drop:
            key = self.make_rng("drop")
            kept = jax.vmap(lambda i: jax.random.bernoulli(jax.random.fold_in(key, i), 1 - self.drop))(
                examples
            )
            y = jnp.where(kept[:, None, None, None], y / (1 - self.drop), 0)
        return x + y


class ConvNeXt(nn.Module):
    """The network; use it through `apply`, `forward_train` and `init` (which fills the parameters)."""

    arch: Arch
    drop_path: float = 0.0
    remat: bool = False

    @nn.compact
    def __call__(self, x, edits: Mapping[str, Edit], start: str | None = None, examples=None):
        arch, acts = self.arch, {}
        make_block = nn.remat(Block) if self.remat else Block
        begun = start is None

        def visit(site, x):
            x = edits[site](x) if site in edits else x
            acts[site] = x
            return x

        def arrive(site, x, compute):
            """The site's activations: computed, or x itself where the pass starts here."""
            nonlocal begun
            if begun:
                return visit(site, compute(x))
            begun = site == start
            return visit(site, x) if begun else x

        x = arrive(
            "stem",
            x,
            lambda x: LayerNorm(arch.eps, name="stem_norm")(
                Patchify(arch.dims[0], arch.stem_stride, name="stem")(x)
            ),
        )
        n_blocks, done = sum(arch.depths), 0
        for s, (depth, dim) in enumerate(zip(arch.depths, arch.dims, strict=True), start=1):
            if s > 1 and begun:
                x = LayerNorm(arch.eps, name=f"downsample{s}_norm")(x)
                x = Patchify(dim, 2, name=f"downsample{s}")(x)
            for j in range(depth):
                drop = self.drop_path * done / max(n_blocks - 1, 1)
                block = make_block(arch.eps, drop, name=f"stage{s}_block{j}")
                x = arrive(f"stage{s}.block{j}", x, lambda x, block=block: block(x, examples))
                done += 1
            x = arrive(f"stage{s}", x, lambda x: x)
        pooled = LayerNorm(arch.head_eps, name="head_norm")(x.mean((1, 2)))  # [B, C]
        return Affine(arch.n_classes, name="head")(pooled).astype(jnp.float32), acts


def init(key: jax.Array, arch: Arch, *, layer_scale: float = 1e-6, kernels: str = "normal") -> Params:
    """Fresh weights: zero biases, unit norms, layer scale as given, truncated normal kernels.

    All kernels are cut from one draw: a random operation for each of them takes longer to compile than
    the whole network.

    Args:
      key: a jax random key.
      arch: the architecture.
      layer_scale: initial value of every block's gamma.
      kernels: their standard deviation: "normal" is 0.02, as published; "fan_in" is 1 / sqrt(fan in), at
        most 0.2, the head's 0.02, which narrow networks start learning from sooner.

    Raises ValueError for another `kernels`.
    """
    if kernels not in INITS:
        raise ValueError(f"there are no {kernels!r} kernels; valid are {', '.join(INITS)}")
    side = 8 * arch.stem_stride
    shapes = jax.eval_shape(ConvNeXt(arch).init, key, jnp.zeros((1, side, side, 3)), {})["params"]
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes)]
    draw = jax.random.truncated_normal(key, -2.0, 2.0, (sum(sizes),))
    starts = iter(np.cumsum([0, *sizes[:-1]]))
    constants = {"bias": 0.0, "dw_bias": 0.0, "scale": 1.0, "gamma": layer_scale}

    def fill(path, leaf):
        start, name = next(starts), path[-1].key
        if name in constants:
            return jnp.full(leaf.shape, constants[name])
        fan_in = np.prod(leaf.shape[:-1])
        std = 0.02 if kernels == "normal" or path[0].key == "head" else min(0.2, float(fan_in) ** -0.5)
        return std * draw[start : start + leaf.size].reshape(leaf.shape)

    return Params(jax.tree_util.tree_map_with_path(fill, shapes), arch)


def calibrate_norms(params: Params, images: jax.Array) -> Params:
    """Set every layer norm so that each of its channels has mean 0 and variance 1 over `images`.

    Data-dependent initialisation (arXiv 1511.06422, 1602.07868), one forward pass. A layer norm leaves what
    all images share, their mean, in place; in a narrow network it drowns the differences, and training
    stays at chance for many epochs, how many being a matter of the seed.

    Args:
      params: fresh weights.
      images: float32 [B, H, W, 3], normalised; some hundred images of the train split.
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
        apply(params, images)

    def replace(path, leaf):
        *module, name = (key.key for key in path)
        return found.get(tuple(module), {}).get(name, leaf)

    return Params(jax.tree_util.tree_map_with_path(replace, params.variables), params.arch)


def apply(
    params: Params,
    images: jax.Array,
    *,
    edits: Mapping[str, Edit] | None = None,
    start: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits and the activations of every site.

    Args:
      params: weights with their architecture.
      images: float32 [B, H, W, 3], already normalised; with `start`, that site's activations [B, H, W, C].
      edits: site -> function of that site's activations [B, H, W, C] -> the same shape; what it returns
        takes their place in the forward pass and in the returned activations.
      start: a site to continue from instead of the images (edits at `start` itself still apply).

    Returns:
      logits [B, L] in float32, and a dict site -> [B, H, W, C] from `start` on.

    Raises:
      ValueError: unknown site, an edit at a site before `start`, or a wrong number of channels.
    """
    edits = dict(edits or {})
    sites = params.arch.sites
    for site in [*edits, *([start] if start else [])]:
        params.arch.check_site(site)
    if start:
        early = [site for site in edits if sites.index(site) < sites.index(start)]
        if early:
            raise ValueError(f"edits at {', '.join(early)} lie before start={start!r} and would never run")
    channels = 3 if start is None else params.arch.dims[0 if start == "stem" else int(start[5]) - 1]
    if images.ndim != 4 or images.shape[-1] != channels:
        what = "images" if start is None else f"activations of {start!r}"
        raise ValueError(f"{what} are [B, H, W, {channels}], got {list(images.shape)}")
    return ConvNeXt(params.arch).apply({"params": params.variables}, images, edits, start)


def forward_train(
    params: Params, images: jax.Array, key: jax.Array, examples, *, drop_path: float, remat: bool = False
) -> jax.Array:
    """Logits [B, L] with stochastic depth (arXiv 1603.09382), its rate growing linearly to `drop_path`.

    Args:
      images: [B, H, W, 3], normalised; their dtype is that of the computation.
      key: of the step; every example draws from fold_in(key, its number), so that which of its blocks are
        dropped does not depend on how a batch is cut.
      examples: int32 [B], a number that tells an example of the batch from the others.
      drop_path: rate of the last block.
      remat: compute each block anew in the backward pass instead of keeping what is inside it.
    """
    model = ConvNeXt(params.arch, drop_path=drop_path, remat=remat)
    logits, _ = model.apply({"params": params.variables}, images, {}, examples=examples, rngs={"drop": key})
    return logits
