"""The fast depthwise convolution against XLA's, values and gradients."""

import jax
import numpy as np
import pytest

from jsae.classifier.families.convnext import depthwise


@pytest.mark.parametrize("shape", [(4, 6, 6, 8), (3, 5, 9, 2), (2, 1, 1, 3), (6, 12, 4, 5)])
def test_shifts_equal_conv(shape):
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], shape)
    kernel = jax.random.normal(keys[1], (7, 7, shape[-1]))
    cotangent = jax.random.normal(keys[2], shape)
    fast, fast_vjp = jax.vjp(depthwise.shifts, x, kernel)
    slow, slow_vjp = jax.vjp(depthwise.conv, x, kernel)
    # float32 sums of at most 49 (values) or B*H*W (kernel gradient) products in another order
    np.testing.assert_allclose(fast, slow, rtol=0, atol=2e-6 * np.abs(slow).max())
    for ours, theirs in zip(fast_vjp(cotangent), slow_vjp(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-6 * np.abs(theirs).max())
