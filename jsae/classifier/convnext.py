"""ConvNeXt (arXiv 2201.03545) with named sites that can be read, edited and started from.

Sites, in the order of the forward pass: `stem`, then for each stage `stageS.block0`, ..., `stageS` (the
output of its last block). The final site, `stage4`, lies before pooling and the head's norm. `apply`
returns the activations of all sites; under jit those that nobody uses cost nothing.

`Params` is one pytree that carries its architecture as static fields, so `apply(params, images)` needs
nothing else. This is the only file that imports flax.linen.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jsae.classifier.depthwise import depthwise

SIZES = {  # depths, dims
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
FINAL_SITE = "stage4"
INITS = ("normal", "fan_in")
_SQRT_HALF = 0.5**0.5
_DENSITY_AT_0 = (2 * np.pi) ** -0.5  # of the standard normal distribution
Edit = Callable[[jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Arch:
    """What a ConvNeXt is, besides its weights.

    Attributes:
      name: one of `SIZES`, or any other name for own depths and dims.
      depths: blocks of each of the four stages; a stage without blocks only downsamples.
      dims: channels of each stage.
      n_classes: L.
      stem_stride: side of the stem's patches in pixels; a cell of stage 4 is 8 times that.
      eps: of every layer norm but the head's.
      head_eps: of the head's layer norm.
    """

    name: str
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    n_classes: int
    stem_stride: int = 4
    eps: float = 1e-6
    head_eps: float = 1e-6

    def __post_init__(self):
        for field, least in (("depths", 0), ("dims", 1)):
            values = getattr(self, field)
            if len(values) != 4 or min(values) < least:
                raise ValueError(f"{field} of a ConvNeXt are four numbers of at least {least}, got {values}")
        if self.stem_stride < 1 or self.n_classes < 1:
            raise ValueError(
                f"stem_stride and n_classes are positive, got {self.stem_stride} and {self.n_classes}"
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """All site names in the order of the forward pass."""
        sites = ["stem"]
        for s, depth in enumerate(self.depths, start=1):
            sites += [f"stage{s}.block{j}" for j in range(depth)] + [f"stage{s}"]
        return tuple(sites)

    def stride(self, site: str) -> int:
        """Pixels of the input that one cell of the site's grid spans."""
        self.check_site(site)
        return self.stem_stride * (1 if site == "stem" else 2 ** (int(site[5]) - 1))

    def check_site(self, site: str) -> None:
        """Raise ValueError unless `site` is a site of this network."""
        if site not in self.sites:
            raise ValueError(f"there is no site {site!r}; the sites are {', '.join(self.sites)}")


def make_arch(
    name: str, n_classes: int, *, stem_stride: int = 4, depths=(), dims=(), eps: float = 1e-6
) -> Arch:
    """An `Arch` by size name, or with own depths and dims under any name.

    Raises ValueError for an unknown name without depths and dims.
    """
    if bool(depths) != bool(dims):
        raise ValueError(f"depths and dims go together, got depths={tuple(depths)} and dims={tuple(dims)}")
    if not depths:
        if name not in SIZES:
            raise ValueError(
                f"there is no ConvNeXt {name!r}; the sizes are {', '.join(SIZES)}, or give depths and dims"
            )
        depths, dims = SIZES[name]
    return Arch(name, tuple(depths), tuple(dims), n_classes, stem_stride, eps, eps)


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Normalise the last axis of x [..., C]; statistics in float32, two passes.

    The backward pass is written out: autodiff's reads x again for each of its reductions.
    """
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x, scale, bias, eps):
    wide = x.astype(jnp.float32)
    centred = wide - wide.mean(-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    normal = centred * inverse
    per_channel = (1,) * (x.ndim - 1) + (-1,)
    y = normal * scale.reshape(per_channel) + bias.reshape(per_channel)
    return y.astype(x.dtype), (normal, inverse, scale)


def _layer_norm_backward(eps, saved, grad):
    normal, inverse, scale = saved
    wide = grad.astype(jnp.float32)
    scaled = wide * scale.reshape((1,) * (grad.ndim - 1) + (-1,))
    along = (scaled * normal).mean(-1, keepdims=True)
    grad_x = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    rows = tuple(range(grad.ndim - 1))
    return grad_x.astype(grad.dtype), (wide * normal).sum(rows), wide.sum(rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


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


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU; its slope is computed with it, so that the backward pass is one product."""
    return x * (0.5 + 0.5 * jax.lax.erf(x * _SQRT_HALF))


def _gelu_forward(x):
    phi = 0.5 + 0.5 * jax.lax.erf(x * _SQRT_HALF)
    return x * phi, phi + x * jnp.exp(-0.5 * x * x) * _DENSITY_AT_0


gelu.defvjp(_gelu_forward, lambda slope, grad: (grad * slope,))


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
