"""How one device computes its share of a step: its rows of the batch, its features, its arithmetic.

Under the mesh's axes a device holds N / data vectors and F / model features. What needs all vectors or all
features goes through the methods here, which do nothing where an axis is not dealt. Over `data` travel a
device's F / model rows of the dictionary and their gradients, over `model` a reconstruction [N, C]; the whole
dictionary or a feature matrix [N, F] never does.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from jsae.runtime import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Shard:
    """The place of a device in the mesh, and how it multiplies.

    Attributes:
      data: name of the mesh axis that the batch's rows are dealt over; None: all rows are here.
      model: name of the mesh axis that the features are dealt over; None: all features are here.
      n_model: size of that axis.
      dtype: of the operands of products, "float32" or "bfloat16"; sums and results are float32.
      kernels: the code runs for one device, on its own arrays: kernels that XLA cannot deal over devices may
        be taken (`jsae.sae.variants.selection`).
    """

    data: str | None = None
    model: str | None = None
    n_model: int = 1
    dtype: str = "float32"
    kernels: bool = False

    def over_rows(self, value: Any) -> Any:
        """The sum of a value over the devices that hold the other rows."""
        return lax.psum(value, self.data) if self.data else value

    def gather_rows(self, value: jax.Array) -> jax.Array:
        """A parameter [F, ...] of which each device that holds other vectors has a part; matrices rounded as
        operands of products are."""
        is_short = value.ndim > 1 and self.dtype != "float32"
        sent = value.astype(self.dtype) if is_short else value
        return lax.all_gather(sent, self.data, tiled=True).astype(value.dtype)

    def deal_rows(self, value: jax.Array) -> jax.Array:
        """The sum over those devices of a gradient [F, ...]: to each its part."""
        return meshes.sum_dealt(value, self.data) if self.data else value

    def over_features(self, value: Any) -> Any:
        """The sum of a partial value over the devices that hold the other features.

        The gradient is that of a plain sum whose result is used once: devices get the cotangent as it is.
        """
        return _sum_once(value, self.model) if self.model else value

    def over_all(self, value: Any) -> Any:
        """The sum over the devices that hold the other rows or features."""
        return self.over_features(self.over_rows(value))

    def largest(self, value: jax.Array) -> jax.Array:
        """The largest of a value over the devices that hold the other features."""
        return lax.pmax(value, self.model) if self.model else value

    def candidates(self, values: jax.Array) -> jax.Array:
        """The few candidates of each row of all devices, [N, m] each, side by side [N, n_model * m]."""
        return lax.all_gather(values, self.model, axis=1, tiled=True) if self.model else values

    def index(self) -> jax.Array | int:
        """Which shard of the features this is, from 0."""
        return lax.axis_index(self.model) if self.model else 0

    def short(self, value: jax.Array) -> jax.Array:
        """A matrix [N, F] that is used more than once, rounded as an operand is: then it is kept so, at half
        the bytes. Its gradient passes as it is."""
        return value if self.dtype == "float32" else _short(value, self.dtype)

    def active(self, pre: jax.Array, feats: jax.Array) -> jax.Array:
        """Features [N, F] that are `pre` or 0, kept as by `short`; `pre` has their gradient where not 0."""
        return feats if self.dtype == "float32" else _active(pre, lax.stop_gradient(feats), self.dtype)

    def by_feature(self, value: jax.Array) -> jax.Array:
        """The sum over the rows of this device [F] of a matrix [N, F]."""
        total = value.sum(0)
        return total if self.dtype == "float32" else lax.optimization_barrier(total)

    def fired(self, feats: jax.Array) -> jax.Array:
        """On how many rows of this device each feature is not 0 [F] int32."""
        if self.dtype == "float32":
            return (feats != 0).sum(0, dtype=jnp.int32)
        return self.by_feature(jnp.abs(jnp.sign(feats))).astype(jnp.int32)  # in one pass with other sums

    def product(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """a [N, F] @ b [F, C], differentiable."""
        return a @ b if self.dtype == "float32" else _product(a, b, self.dtype)

    def product_t(self, a: jax.Array, b: jax.Array, short: bool = False) -> jax.Array:
        """a [N, C] times the rows of b [F, C] -> [N, F]; with `short` rounded as `short` does."""
        product = _dot(a, b, 1, 1, self.dtype, self.dtype if short else "float32")
        return self.short(product) if short else product

    def outer_sum(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Sum over rows of a [N, F] times b [N, C] -> [F, C]."""
        return _dot(a, b, 0, 0, self.dtype)


WHOLE = Shard()  # all rows, all features, float32


def of_mesh(mesh: Mesh, *, dtype: str = "float32") -> Shard:
    """The shard of each device of a mesh."""
    return Shard(
        data="data" if mesh.shape["data"] > 1 else None,
        model="model" if mesh.shape["model"] > 1 else None,
        n_model=mesh.shape["model"],
        dtype=dtype,
        kernels=True,
    )


def _dot(a, b, a_axis: int, b_axis: int, dtype: str, result: str = "float32"):
    dimensions = (((a_axis,), (b_axis,)), ((), ()))
    if dtype == "float32":
        return lax.dot_general(a, b, dimensions)
    a, b = a.astype(dtype), b.astype(dtype)
    return lax.dot_general(a, b, dimensions, preferred_element_type=result)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _short(value, dtype):
    # The barrier keeps XLA from computing it once more, in float32, for everyone who reads it
    return lax.optimization_barrier(value.astype(dtype)).astype(jnp.float32)


_short.defvjp(lambda value, dtype: (_short(value, dtype), None), lambda dtype, _, g: (g,))


# The short features say where the gradient goes: `pre`, in float32, need not be read again
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _active(pre, feats, dtype):
    return _short(feats, dtype)


def _active_forward(pre, feats, dtype):
    kept = _short(feats, dtype)
    return kept, kept


def _active_backward(dtype, kept, g):
    return jnp.where(kept == 0, 0.0, g), None


_active.defvjp(_active_forward, _active_backward)


# Written out, because autodiff would multiply float32 cotangents with operands of the short type
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(a, b, dtype):
    return _dot(a, b, 1, 0, dtype)


def _product_forward(a, b, dtype):
    return _product(a, b, dtype), (a, b)


def _product_backward(dtype, operands, g):
    a, b = operands
    return _short(_dot(g, b, 1, 1, dtype, dtype), dtype), _dot(a, g, 0, 0, dtype)


_product.defvjp(_product_forward, _product_backward)


# The transpose of psum inside shard_map is psum: it would count a value once for every device that holds it
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum_once(value, axis):
    return lax.psum(value, axis)


_sum_once.defvjp(lambda value, axis: (lax.psum(value, axis), None), lambda axis, _, g: (g,))
