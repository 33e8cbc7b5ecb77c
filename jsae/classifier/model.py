"""What every room knows of a classifier: the protocol of a network, its weights, and its linear head.

A network is a `Model`: a frozen, hashable description that computes. `Params` pairs it with its weights in
one pytree, the description being static, so that `apply(params, images)` needs nothing else. The networks
themselves are in `jsae.classifier.families`; nothing outside of it knows one by name.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp

from jsae.classifier.layer_norm import layer_norm
from jsae.runtime.pytrees import pytree

Edit = Callable[[jax.Array], jax.Array]  # a site's activations [B, H, W, C] -> the same shape


@pytree
class HeadNorm:
    """Layer norm over channels before a linear head: scale [C], bias [C] and its epsilon."""

    scale: jax.Array
    bias: jax.Array
    eps: float = dataclasses.field(metadata={"static": True})


@pytree
class Head:
    """Mean over the last site's grid, a layer norm where `norm` is not None, then a linear map.

    Attributes:
      kernel: [C, L].
      offset: [L].
      norm: of the pooled vector, or None.
    """

    kernel: jax.Array
    offset: jax.Array
    norm: HeadNorm | None = None


def head_logits(head: Head, pooled: jax.Array) -> jax.Array:
    """Logits [N, L] of pooled vectors [N, C], by a two-pass layer norm and a float32 product."""
    if head.norm is not None:
        pooled = layer_norm(pooled, head.norm.scale, head.norm.bias, head.norm.eps)
    return jnp.matmul(pooled, head.kernel, precision="float32") + head.offset[None, :]


class Model(Protocol):
    """A network whose sites can be read, edited and started from.

    Attributes:
      name: of its size, or any other name.
      sites: all site names in the order of the forward pass; the last one lies before pooling and head.
      n_classes: L.
    """

    @property
    def name(self) -> str: ...

    @property
    def sites(self) -> tuple[str, ...]: ...

    @property
    def n_classes(self) -> int: ...

    def grid(self, site: str, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the site's grid for images of height and width `image_hw`."""
        ...

    def channels(self, site: str) -> int:
        """C of the site."""
        ...

    def stride_px(self, site: str) -> int:
        """Pixels of the input that one step of the site's grid spans."""
        ...

    def check_site(self, site: str) -> None:
        """Raise ValueError, listing the sites, unless `site` is one."""
        ...

    def __call__(
        self,
        variables: Any,
        images: jax.Array,
        *,
        edits: Mapping[str, Edit] | None = None,
        start: str | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """What `apply` does, its arguments being checked already."""
        ...

    def linear_head(self, variables: Any) -> Head | None:
        """The head by which the last site's activations become logits; None if it has another form."""
        ...


class Trainable(Model, Protocol):
    """A `Model` that can be trained, as those of the families are.

    Its variables are a dict of modules; the linear head is variables["head"], kernel [C, L] and bias [L].

    Attributes:
      family: a key of `families.FAMILIES`.
      inits: valid `kernels` of `init`, the first the published one.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def family(self) -> str: ...

    @property
    def inits(self) -> tuple[str, ...]: ...

    def init(self, key: jax.Array, *, layer_scale: float, kernels: str) -> Any:
        """Fresh float32 variables.

        Args:
          key: a jax random key.
          layer_scale: initial scale of what a residual block adds.
          kernels: one of `inits`.

        Raises ValueError for another `kernels`.
        """
        ...

    def forms(self, platform: str) -> dict[str, str]:
        """How layers with several ways to be computed are computed on a platform, in words."""
        ...

    def calibrate_norms(self, variables: Any, images: jax.Array) -> Any:
        """Fresh variables with every normalisation set so that its channels are standardised over `images`.

        Data-dependent initialisation (arXiv 1511.06422, 1602.07868), one forward pass.

        Args:
          images: float32 [B, H, W, 3], normalised; some hundred images of the train split.
        """
        ...

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
        """Logits [B, L] with stochastic depth (arXiv 1603.09382), its rate growing linearly to `drop_path`.

        Args:
          images: [B, H, W, 3], normalised; their dtype is that of the computation.
          key: of the step; every example draws from fold_in(key, its number), so that which of its blocks
            are dropped does not depend on how a batch is cut.
          examples: int32 [B], a number that tells an example of the batch from the others.
          drop_path: rate of the last block.
          remat: compute each block again in the backward pass instead of keeping what is inside it.
        """
        ...

    def depth_from_head(self, module: str) -> int:
        """How many blocks lie between a module of the variables and the head: 0 for the head itself."""
        ...


@pytree
class Params:
    """Weights of a network and, as a static field, the network."""

    variables: Any
    model: Any = dataclasses.field(metadata={"static": True})  # a Model


def init(key: jax.Array, model: Trainable, *, layer_scale: float = 1e-6, kernels: str = "") -> Params:
    """Fresh weights of a network; `kernels` "" is the published way. See `Trainable.init`."""
    return Params(model.init(key, layer_scale=layer_scale, kernels=kernels or model.inits[0]), model)


def apply(
    params: Params,
    images: jax.Array,
    *,
    edits: Mapping[str, Edit] | None = None,
    start: str | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Logits and the activations of every site; under jit those that nobody uses cost nothing.

    Products are of float32 precision on every device.

    Args:
      params: weights with their network.
      images: float32 [B, H, W, 3], already normalised; with `start`, that site's activations [B, H, W, C].
      edits: site -> function of that site's activations [B, H, W, C] -> the same shape; what it returns
        takes their place in the forward pass and in the returned activations.
      start: a site to continue from instead of the images (edits at `start` itself still apply).

    Returns:
      logits [B, L] in float32, and a dict site -> [B, H, W, C] from `start` on.

    Raises:
      ValueError: unknown site, an edit at a site before `start`, or a wrong number of channels.
    """
    model, edits = params.model, dict(edits or {})
    for site in [*edits, *([start] if start else [])]:
        model.check_site(site)
    if start:
        early = [site for site in edits if model.sites.index(site) < model.sites.index(start)]
        if early:
            raise ValueError(f"edits at {', '.join(early)} lie before start={start!r} and would never run")
    channels = 3 if start is None else model.channels(start)
    if images.ndim != 4 or images.shape[-1] != channels:
        what = "images" if start is None else f"activations of {start!r}"
        raise ValueError(f"{what} are [B, H, W, {channels}], got {list(images.shape)}")
    with jax.default_matmul_precision("float32"):
        return model(params.variables, images, edits=edits, start=start)
