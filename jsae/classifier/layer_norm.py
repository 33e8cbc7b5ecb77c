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
    return _forward(x, scale, bias, eps)[0]


def _forward(x, scale, bias, eps):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    y = centred * inverse * _lift(scale, x) + _lift(bias, x)
    y = y.astype(x.dtype)
    # without the barrier XLA keeps it in float32 for readers that widen it again
    y = jax.lax.platform_dependent(y, cpu=lambda y: y, default=jax.lax.optimization_barrier)
    return y, (x, mean, inverse, scale)


def _lift(per_channel, x):
    return per_channel.reshape((1,) * (x.ndim - 1) + (-1,))


def _backward(eps, saved, grad):
    accelerated = functools.partial(_gradients_in_two_passes, eps=eps)
    return jax.lax.platform_dependent(*saved, grad, cpu=_gradients, default=accelerated)


def _gradients(x, mean, inverse, scale, grad):
    normal = (x.astype(jnp.float32) - mean) * inverse
    wide = grad.astype(jnp.float32)
    scaled = wide * _lift(scale, grad)
    along = (scaled * normal).mean(-1, keepdims=True)
    grad_x = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    rows = tuple(range(grad.ndim - 1))
    return grad_x.astype(grad.dtype), (wide * normal).sum(rows), wide.sum(rows)


def _gradients_in_two_passes(x, mean, inverse, scale, grad, *, eps):
    """Gradients off the CPU: a pass for the sums of each row, one for all that is made of them.

    The statistics are computed again with those sums, which is free, where keeping them takes two passes
    more. All is relative to the row's first value, at most sqrt(C - 1) standard deviations from its mean: the
    variance loses some C float32 roundings at worst. The barriers keep XLA from writing x in float32.
    """
    del mean, inverse
    n, (x, grad) = x.shape[-1], jax.lax.optimization_barrier((x, grad))
    wide, shifted = grad.astype(jnp.float32), x.astype(jnp.float32) - x[..., :1].astype(jnp.float32)
    scaled = wide * _lift(scale, grad)
    sums = [each.sum(-1, keepdims=True) for each in (shifted, shifted**2, scaled, scaled * shifted)]
    mean, square, level, along = (each / n for each in jax.lax.optimization_barrier(sums))
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + eps)
    normal = (shifted - mean) * inverse
    grad_x = inverse * (scaled - level - normal * (along - mean * level) * inverse)
    cells = tuple(range(1, grad.ndim - 1))
    grad_scale, grad_bias = jnp.stack([(wide * normal).sum(cells), wide.sum(cells)]).sum(1)
    return grad_x.astype(grad.dtype), grad_scale, grad_bias


layer_norm.defvjp(_forward, _backward)
