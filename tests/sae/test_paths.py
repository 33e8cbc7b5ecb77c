"""Which way a step takes, by F / k and platform; ties, operands and shares of a device."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.runtime import mesh as meshes
from jsae.sae import paths, variants
from jsae.sae.batches import sources


def mesh_on(platform):
    """What `is_sparse` asks of a mesh."""
    return types.SimpleNamespace(devices=np.array([[types.SimpleNamespace(platform=platform)]]))


@pytest.mark.parametrize(
    "platform, variant, ratio, expected",
    [
        ("cpu", "topk", 8, True),
        ("cpu", "topk", 7, False),
        ("cpu", "batch_topk", 8, True),
        ("cpu", "matryoshka", 1000, False),
        ("gpu", "topk", 1000, False),
        ("tpu", "topk", 1000, False),
    ],
)
def test_the_gathered_step_is_taken_where_it_pays(platform, variant, ratio, expected):
    assert paths.is_sparse(mesh_on(platform), variants.make(variant, k=16), 16 * ratio) is expected
    assert not paths.is_sparse(mesh_on(platform), variants.ReluL1(), 6144)


def test_precision_follows_the_platform_and_a_resumed_run_keeps_what_it_began_with(tmp_path):
    for platform, expected in (("cpu", "float32"), ("gpu", "bfloat16"), ("tpu", "bfloat16")):
        assert sources.precision(mesh_on(platform), "auto", tmp_path) == expected
        assert sources.precision(mesh_on(platform), "default", tmp_path) == "default"
    sources.remember(tmp_path, False, "bfloat16")
    assert sources.precision(mesh_on("cpu"), "auto", tmp_path) == "bfloat16"


def test_products_of_short_operands_are_summed_in_float32():
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=size).astype(np.float32) for size in ((64, 300), (300, 8)))
    short = variants.Shard(dtype="bfloat16")
    rounded = [x.astype(jnp.bfloat16).astype(np.float64) for x in (a, b)]

    def half_square(a, b):
        return 0.5 * (short.product(a, b) ** 2).sum()

    found = short.product(a, b)
    assert found.dtype == jnp.float32
    # Operands are exact in float32 after rounding; sums of 300 terms in bfloat16 would be off by percents
    np.testing.assert_allclose(found, rounded[0] @ rounded[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(short.product_t(a, b.T), found, rtol=1e-5, atol=1e-5)
    g = np.asarray(found).astype(jnp.bfloat16).astype(np.float64)
    gradients = jax.grad(half_square, argnums=(0, 1))(a, b)
    assert {x.dtype for x in gradients} == {jnp.dtype("float32")}
    # Of a matrix [N, F], which is kept short: rounded once, after the sum
    np.testing.assert_allclose(gradients[0], g @ rounded[1].T, rtol=2**-8, atol=1e-3)
    np.testing.assert_allclose(gradients[1], rounded[0].T @ g, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "devices_of_processes, model, expected",
    [
        (2, 1, [(0, 2), (1, 2)]),  # 2 processes x 2 devices, data axis 4
        (2, 2, [(0, 2), (1, 2)]),
        (2, 4, [(0, 1), (0, 1)]),  # every process holds a half of all features and reads all rows
        (1, 2, [(0, 2), (0, 2), (1, 2), (1, 2)]),
    ],
)
def test_processes_that_share_rows_read_the_same_share_of_a_batch(
    monkeypatch, devices_of_processes, model, expected
):
    n = devices_of_processes * len(expected)
    devices = np.array([types.SimpleNamespace(process_index=i // devices_of_processes) for i in range(n)])
    mesh = types.SimpleNamespace(devices=devices.reshape(-1, model), shape={"data": n // model})
    for process, share in enumerate(expected):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        assert meshes.process_slice(mesh) == share


def test_an_uneven_share_of_the_rows_is_refused(monkeypatch):
    devices = np.array([types.SimpleNamespace(process_index=i // 3) for i in range(6)]).reshape(3, 2)
    mesh = types.SimpleNamespace(devices=devices, shape={"data": 3})
    with pytest.raises(ValueError, match=r"runtime\.model_axis"):
        meshes.process_slice(mesh)
