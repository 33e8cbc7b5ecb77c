"""Layer norm with its backward pass written out.

A custom_vjp forbids forward-mode differentiation (jvp, jacfwd) through it.
"""

import functools

import jax
import jax.numpy as jnp


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
