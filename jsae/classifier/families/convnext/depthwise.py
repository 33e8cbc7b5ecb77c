"""The 7x7 depthwise convolution, the first bottleneck of ConvNeXt on a CPU.

XLA's grouped convolution is several times slower there than 49 shifted multiply-adds, and autodiff of
those is again half as fast as it could be. `shifts` therefore has its backward pass written out: the gradient
of the input is the same sum with the kernel flipped; the gradient of the kernel is a scan over a few
images at a time that accumulates [K, K, W, C] products row by row, which vectorises over W and C and
stays in cache, and sums over W once at the end. `depthwise` chooses per platform, in this one place.

A custom_vjp forbids forward-mode differentiation (jvp, jacfwd) through it: use `conv` for that.
"""

import jax
import jax.numpy as jnp


def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Depthwise cross-correlation with 'same' zero padding.

    Args:
      x: [B, H, W, C].
      kernel: [K, K, C] with K odd.

    Returns:
      [B, H, W, C].
    """
    return jax.lax.platform_dependent(x, kernel, cpu=shifts, default=conv)


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise` by XLA's grouped convolution; the plain path and the oracle."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


@jax.custom_vjp
def shifts(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise` as a sum of shifted products."""
    return _shifted_sum(x, kernel)


def _shifted_sum(x, kernel):
    """The sum, in a loop over a few parts of the batch.

    What enters and leaves a loop lies in memory. Without it XLA:CPU fuses the sum into every reader and
    computes it again for each (three times for a layer norm), and computes x again for each of its shifts.
    """
    n_parts = next((n for n in (2, 3, 5, 7) if x.shape[0] % n == 0), 1)
    parts = x.reshape(n_parts, -1, *x.shape[1:])
    return jax.lax.map(lambda part: _plain_shifted_sum(part, kernel), parts).reshape(x.shape)


def _plain_shifted_sum(x, kernel):
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    padded = _pad(x, size)
    total = jnp.zeros_like(x)
    for i in range(size):
        for j in range(size):
            total += padded[:, i : i + height, j : j + width] * kernel[i, j][None, None, None, :]
    return total


def _pad(x, size):
    half = size // 2
    return jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))


def _forward(x, kernel):
    return _shifted_sum(x, kernel), (x, kernel)


def _backward(saved, grad):
    x, kernel = saved
    size = kernel.shape[0]
    height, width = x.shape[1:3]

    at_once = next(n for n in (4, 2, 1) if x.shape[0] % n == 0)

    def add_images(total, images):
        padded, grad = images  # [n, H+K-1, W+K-1, C], [n, H, W, C]
        columns = jnp.stack([padded[:, :, j : j + width] for j in range(size)], 1)  # [n, K, H+K-1, W, C]
        for h in range(height):
            total += columns[:, :, h : h + size] * grad[:, None, None, h]
        return total, None

    def split(images):
        return images.reshape(-1, at_once, *images.shape[1:])

    zero = jnp.zeros((at_once, size, size, width, x.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(add_images, zero, (split(_pad(x, size)), split(grad)))
    grad_kernel = total.sum((0, 3)).transpose(1, 0, 2)  # [K, K, C]
    return _shifted_sum(grad, kernel[::-1, ::-1]), grad_kernel.astype(kernel.dtype)


shifts.defvjp(_forward, _backward)
