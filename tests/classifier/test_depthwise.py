"""Every form of the depthwise convolution against XLA's, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.classifier.families.convnext import depthwise
from jsae.runtime import mesh

FORMS = {
    "cpu": (depthwise.depthwise, depthwise._gradients_in_parts),
    "gpu": (depthwise._fused_sum, depthwise._fused_gradients),
    "tpu": (depthwise._by_conv, depthwise._gradients_by_conv),
}


@pytest.mark.parametrize("platform", FORMS)
@pytest.mark.parametrize("shape", [(4, 6, 6, 8), (3, 5, 9, 2), (2, 1, 1, 3), (6, 12, 4, 5)])
def test_every_form_equals_conv(shape, platform):
    keys = jax.random.split(jax.random.key(0), 4)
    x = jax.random.normal(keys[0], shape)
    kernel, bias = jax.random.normal(keys[1], (7, 7, shape[-1])), jax.random.normal(keys[3], shape[-1:])
    cotangent = jax.random.normal(keys[2], shape)
    value, gradients = FORMS[platform]
    slow, slow_vjp = jax.vjp(depthwise.conv, x, kernel)
    # float32 sums of at most 49 (values) or B*H*W (kernel gradient) products in another order
    difference = value(x, kernel, bias) - bias[None, None, None, :] - slow
    np.testing.assert_allclose(difference, 0, rtol=0, atol=2e-6 * np.abs(slow).max())
    expected = (*slow_vjp(cotangent), cotangent.sum((0, 1, 2)))
    for ours, theirs in zip(jax.jit(gradients)(x, kernel, cotangent), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-6 * np.abs(theirs).max())


def test_the_gradient_is_that_of_the_platform():
    x, kernel = jnp.ones((2, 3, 3, 4)), jnp.ones((7, 7, 4))
    grad = jax.grad(lambda *a: depthwise.depthwise(*a).sum(), argnums=(0, 1, 2))
    expected = depthwise._gradients_in_parts(x, kernel, jnp.ones_like(x))
    for ours, form in zip(grad(x, kernel, jnp.zeros(4)), expected, strict=True):
        np.testing.assert_array_equal(ours, form)


def test_gradients_of_a_dealt_batch_add_up_and_gather_nothing():
    dealt = mesh.sharded(mesh.make_mesh(devices=jax.devices()[:8]))
    keys = jax.random.split(jax.random.key(0), 3)
    x, grad = (jax.device_put(jax.random.normal(key, (8, 3, 3, 4)), dealt) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (7, 7, 4))
    gradients = jax.jit(depthwise._fused_gradients).lower(x, kernel, grad).compile()
    text = gradients.as_text()
    assert "all-reduce" in text and "all-gather" not in text and "all-to-all" not in text
    expected = depthwise._gradients_in_parts(*map(np.asarray, (x, kernel, grad)))
    for ours, theirs in zip(gradients(x, kernel, grad), expected, strict=True):
        # float32 sums of 72 products in another order
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=4e-6 * np.abs(theirs).max())


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_a_gpu_needs_no_convolution(platform):
    def loss(x, kernel, bias):
        return depthwise.depthwise(x, kernel, bias).astype(jnp.float32).sum()

    x, kernel, bias = jnp.ones((2, 3, 3, 4), jnp.bfloat16), jnp.ones((7, 7, 4)), jnp.zeros(4)
    traced = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(x, kernel, bias)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("convolution" in text) == (platform == "tpu") and "while" not in text
