"""Exact GELU with its backward pass written out.

A custom_vjp forbids forward-mode differentiation (jvp, jacfwd) through it.
"""

import jax
import jax.numpy as jnp
import numpy as np

_SQRT_HALF = 0.5**0.5
_DENSITY_AT_0 = (2 * np.pi) ** -0.5  # of the standard normal distribution


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, in float32 inside."""
    wide = x.astype(jnp.float32)
    return (wide * _phi(wide)).astype(x.dtype)


def _phi(x):
    """The standard normal distribution up to x."""
    return 0.5 + 0.5 * jax.lax.erf(x * _SQRT_HALF)


def _slope(x):
    wide = x.astype(jnp.float32)
    return _phi(wide) + wide * jnp.exp(-0.5 * wide * wide) * _DENSITY_AT_0


def _forward(x):
    """On a CPU the slope is kept, computed where phi is known; elsewhere x, which lies in memory anyway."""

    def with_slope(x):
        return gelu(x), _slope(x).astype(x.dtype)

    return jax.lax.platform_dependent(x, cpu=with_slope, default=lambda x: (gelu(x), x))


def _backward(saved, grad):
    def times_slope(saved, grad):
        return (grad.astype(jnp.float32) * _slope(saved)).astype(grad.dtype)

    return (jax.lax.platform_dependent(saved, grad, cpu=jnp.multiply, default=times_slope),)


gelu.defvjp(_forward, _backward)
