"""The 7x7 depthwise convolution of ConvNeXt, in a form for each platform.

On a CPU, XLA's grouped convolution is several times slower than shifted multiply-adds, and autodiff of those
is again half as fast as it could be: the sum runs over a few parts of the batch, and the gradient of the
kernel is a scan over a few images that accumulates [K, K, W, C] products row by row, which vectorises over W
and C and stays in cache, and sums over W once at the end. On a GPU the sum is one fused loop in float32, and
the gradients of kernel and bias are one loop over x and the gradient: neither needs cuDNN, which may have no
algorithm in bfloat16 and does not know the last stage's filter gradient. A TPU takes XLA's grouped
convolution, which moves a seventh of the bytes that its shifted sums do.

The gradient of the input is the same sum with the kernel flipped. A custom_vjp forbids forward-mode
differentiation (jvp, jacfwd) through it: use `conv` for that.
"""

import jax
import jax.numpy as jnp


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """Depthwise cross-correlation with 'same' zero padding, plus a bias.

    Args:
      x: [B, H, W, C], of the dtype of the computation.
      kernel: [K, K, C] with K odd, float32.
      bias: [C], float32.

    Returns:
      [B, H, W, C], of x's dtype.
    """

    def in_parts(x, kernel, bias):
        return _sum_in_parts(x, kernel) + bias.astype(x.dtype)[None, None, None, :]

    def fused(x, kernel, bias):  # the barrier makes it one loop, whoever reads it
        return jax.lax.optimization_barrier(_fused_sum(x, kernel, bias))

    return jax.lax.platform_dependent(x, kernel, bias, cpu=in_parts, tpu=_by_conv, default=fused)


def form(platform: str) -> str:
    """How `depthwise` computes on a platform, in words."""
    forms = {"cpu": "shifted sums over parts of the batch", "tpu": "grouped convolution"}
    return forms.get(platform, "one fused shifted sum")


def conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`depthwise` without its bias by XLA's grouped convolution; the plain path and the oracle."""
    return jax.lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )


def _forward(x, kernel, bias):
    return depthwise(x, kernel, bias), (x, kernel)


def _backward(saved, grad):
    return jax.lax.platform_dependent(
        *saved, grad, cpu=_gradients_in_parts, tpu=_gradients_by_conv, default=_fused_gradients
    )


depthwise.defvjp(_forward, _backward)


def _by_conv(x, kernel, bias):
    return (conv(x, kernel.astype(x.dtype)).astype(jnp.float32) + bias[None, None, None, :]).astype(x.dtype)


def _gradients_by_conv(x, kernel, grad):
    _, gradients = jax.vjp(conv, x, kernel.astype(x.dtype))
    grad_x, grad_kernel = gradients(grad)
    return grad_x, grad_kernel.astype(jnp.float32), grad.astype(jnp.float32).sum((0, 1, 2))


def _sum_in_parts(x, kernel):
    """The sum on a CPU, in a loop over a few parts of the batch.

    What enters and leaves a loop lies in memory. Without it XLA:CPU fuses the sum into every reader and
    computes it again for each (three times for a layer norm), and computes x again for each of its shifts.
    """
    n_parts = next((n for n in (2, 3, 5, 7) if x.shape[0] % n == 0), 1)
    parts, kernel = x.reshape(n_parts, -1, *x.shape[1:]), kernel.astype(x.dtype)
    return jax.lax.map(lambda part: _shifted_sum(part, kernel), parts).reshape(x.shape)


def _fused_sum(x, kernel, bias):
    return (_shifted_sum(x, kernel, jnp.float32) + bias[None, None, None, :]).astype(x.dtype)


def _shifted_sum(x, kernel, dtype=None):
    """Sum over (i, j) of x shifted by them, times kernel[i, j], in `dtype` (None: x's)."""
    total = jnp.zeros_like(x, dtype)
    for (i, j), shifted in _shifts(x, kernel.shape[0]):
        total += shifted.astype(total.dtype) * kernel[i, j][None, None, None, :]
    return total


def _shifts(x, size):
    """((i, j), the part of the padded x [B, H, W, C] that meets kernel[i, j]) for all K * K of them."""
    padded = _pad(x, size)
    height, width = x.shape[1:3]
    for i in range(size):
        for j in range(size):
            yield (i, j), padded[:, i : i + height, j : j + width]


def _pad(x, size):
    half = size // 2
    return jnp.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))


def _gradients_in_parts(x, kernel, grad):
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
    return _sum_in_parts(grad, kernel[::-1, ::-1]), grad_kernel, grad.astype(jnp.float32).sum((0, 1, 2))


def _fused_gradients(x, kernel, grad):
    """Gradients on a GPU: those of kernel and bias in one pass that sums over each image.

    One reduction has an operand for each column of the kernel and one for the bias, so that it is one loop
    over x and grad; its rows are a gather, which is read in the loop (a stack would be written first).
    """
    x, grad = jax.lax.optimization_barrier((x, grad))
    size, width, n = kernel.shape[0], x.shape[2], kernel.shape[0] + 1
    by_row = _pad(x, size).swapaxes(0, 1)  # [H + K - 1, B, W + K - 1, C]
    rows = jnp.arange(size)[:, None] + jnp.arange(x.shape[1])[None, :]
    wide = grad.astype(jnp.float32).swapaxes(0, 1)[None]  # [1, H, B, W, C]
    products = [by_row[:, :, j : j + width][rows].astype(jnp.float32) * wide for j in range(size)]
    products.append(jnp.broadcast_to(wide, products[0].shape))
    zeros = [jnp.float32(0)] * n

    def add(total, more):
        return [*map(jnp.add, total, more)]

    of_images = jax.lax.optimization_barrier(jax.lax.reduce(products, zeros, add, (1, 3)))  # each [K, B, C]
    # not by another reduction of many operands: over a dealt batch it would be gathered
    flat = [part.swapaxes(0, 1).reshape(len(x), -1) for part in of_images]
    sums = jnp.concatenate(flat, 1).sum(0).reshape(n, size, -1)  # [K + 1, K, C]
    grad_x = _fused_sum(grad, kernel[::-1, ::-1], jnp.zeros(x.shape[-1:]))
    return grad_x, sums[:size].swapaxes(0, 1), sums[size, 0]
