"""BatchTopK: the cut by counting against a sort, values and gradients, the threshold, devices."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.runtime import mesh as meshes
from jsae.sae import train, variants
from jsae.sae.variants import backward, selection
from tests.sae.oracle import RELATIVE, check_gradients, compute, in_float64, preactivations, problem


def oracle(params, x_n, mask, k):
    """(summed squared error / C, features [N, F], cut) by sorting all pre-activations of the real rows."""
    real = x_n[mask > 0]
    pre = np.stack([preactivations(params, x) for x in real])
    cut = np.sort(pre.ravel())[::-1][k * len(real) - 1]
    feats = np.where(pre >= cut, np.maximum(pre, 0), 0)
    resid = real - (feats @ params["w_dec"] + params["b_dec"][None, :])
    return (resid**2).sum() / x_n.shape[1], feats, cut


@pytest.mark.parametrize("sparse", [False, True])
def test_sums_and_gradients_equal_the_oracle(sparse, examples):
    model, x_n, mask, _ = problem(examples, "batch_topk")
    sums, grads, stats = compute(model, x_n, mask, sparse=sparse)
    params, rows = in_float64(model), x_n.astype(np.float64)
    total, feats, cut = oracle(params, rows, mask, model.k)
    np.testing.assert_allclose(sums["loss"], total, rtol=RELATIVE)
    np.testing.assert_allclose(stats["cut"], cut, rtol=1e-5)
    assert sums["l0"] == model.k * mask.sum() == (feats > 0).sum()
    np.testing.assert_array_equal(sums["fired"], (feats > 0).sum(0))
    assert len(set((feats > 0).sum(1))) > 3  # shared by the batch, not k each
    check_gradients(grads, lambda p: oracle(p, rows, mask, model.k)[0], params)


@pytest.mark.parametrize("size, falls_back", [(1.0, False), (30.0, True)])
def test_the_sparse_path_equals_the_dense_one_also_where_a_vector_keeps_all_its_candidates(
    size, falls_back, examples
):
    """A vector 30 times as long keeps more than the 4 k = 12 values that the sparse path looks at."""
    model, x_n, mask, dead = problem(examples, "batch_topk", 3, k=3)
    x_n[4] *= size
    pre = np.stack([preactivations(in_float64(model), x) for x in x_n[mask > 0].astype(np.float64)])
    cut = np.sort(pre.ravel())[::-1][3 * len(pre) - 1]
    assert ((pre >= cut).sum(1).max() >= 12) == falls_back
    dense, sparse = (compute(model, x_n, mask, dead, sparse=s, aux_alpha=0.5) for s in (False, True))
    for name, value in dense[0].items():
        np.testing.assert_allclose(sparse[0][name], value, rtol=RELATIVE, err_msg=name)
    for name, gradient in dense[1].items():
        assert np.abs(sparse[1][name] - gradient).max() <= RELATIVE * np.abs(gradient).max(), name
    assert sparse[2] == dense[2]


@pytest.mark.parametrize("n_more, falls_back", [(0, False), (2, False), (3, True)])
def test_values_that_tie_at_the_cut_have_room_in_the_list(n_more, falls_back):
    """Of 128 vectors in two chunks: up to two more than k each stay on the sparse path, and count."""
    (n, f, c), k = (128, 16, 8), 3
    rng = np.random.default_rng(0)
    feats = rng.exponential(size=(n, f)).astype(np.float32)
    feats[np.arange(n)[:, None], np.argsort(feats, axis=1)[:, : f - k]] = 0.0
    feats[:n_more, :] += 0.5 * (np.arange(f) == feats[:n_more].argmin(1)[:, None])  # k + 1 of these
    shapes = {"w_enc": (f, c), "w_dec": (f, c), "b_enc": (f,), "b_dec": (c,)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    batch = variants.Batch(jnp.asarray(rng.normal(size=(n, c)), jnp.float32), jnp.ones(n), jnp.zeros(()))
    feats, indices = jnp.asarray(feats), jnp.broadcast_to(jnp.arange(f), (n, f))

    def objective(pre, rest):
        mse, resid = variants.base.reconstruct(jnp.where(pre > 0, pre, 0), rest, batch)
        return mse, variants.Parts(jnp.where(pre > 0, pre, 0), resid)

    @jax.jit
    def run(also_missed):
        entries, missed = backward.listed(feats, indices, feats > 0, k, f)
        return backward.sparse_or_dense(
            params, batch, batch.x_n, feats, entries, missed | also_missed, objective
        )

    few, dense = run(False), run(True)
    assert few[0]["l0"] == n * k + n_more == dense[0]["l0"]
    assert few[4] == falls_back and dense[4]
    for name, gradient in dense[1].items():
        assert np.abs(few[1][name] - gradient).max() <= RELATIVE * np.abs(gradient).max(), name


@pytest.mark.parametrize("n_keep", [1, 7, 500, 4096])
def test_the_cut_is_the_value_a_sort_finds(n_keep):
    values = np.random.default_rng(n_keep).normal(size=(64, 128)).astype(np.float32) ** 3
    expected = np.sort(values.ravel())[::-1][n_keep - 1]
    if expected <= 0:
        expected = values[values > 0].min()
    assert jax.jit(selection.cut_of_all)(np.maximum(values, 0), n_keep) == expected


def test_the_cut_of_few_equal_or_no_values():
    cut = jax.jit(selection.cut_of_all)
    values = np.array([[0.0, 3.0, 1e-40, 2.0, 3.0]], np.float32)
    assert cut(values, 2) == 3.0
    assert cut(values, 3) == 2.0
    np.testing.assert_array_equal(cut(values[:, :1], 4), np.inf)
    assert cut(values, 100) == np.float32(1e-40)  # bits, not arithmetic that flushes small numbers to 0


def test_the_threshold_is_a_running_mean_of_the_cuts_in_float32():
    variant = variants.BatchTopK(threshold_decay=0.9)
    own = variant.own(8)
    assert own["threshold"].dtype == jnp.float32
    expected = 0.0
    for t, cut in enumerate([2.0, 4.0, 1.0, np.inf, 3.0] + [3.0] * 200):
        own = variant.follow(own, {"cut": jnp.float32(cut)}, jnp.int32(t))
        decay = 0.0 if t == 0 else min(0.9, (1 + t) / (10 + t))
        expected = expected if np.isinf(cut) else decay * expected + (1 - decay) * cut
        np.testing.assert_allclose(own["threshold"], expected, rtol=1e-5)
    assert own["threshold"].dtype == jnp.float32
    np.testing.assert_allclose(own["threshold"], 3.0, rtol=1e-5)


@functools.cache
def sums_on(n_devices, model_axis, k, sparse=False):
    mesh = meshes.make_mesh(-1, model_axis, devices=jax.devices()[:n_devices])

    def sums(params, x, mask):
        one = types.SimpleNamespace(variant=variants.BatchTopK(k=k, aux_alpha=1.0), n_features=40)
        recipe = train.Recipe(n_steps=1, learning_rate=1.0)
        return train.sums_over_mesh(mesh, one, recipe, sparse=sparse)(
            params, x, mask, jnp.arange(40) < 3, 0.0
        )

    return jax.jit(sums)


def test_the_count_is_global_over_the_real_rows_of_all_devices(examples):
    """Rows are uneven: a count for each device by itself would keep other features."""
    model, x_n, mask, _ = problem(examples, "batch_topk")
    x_n = x_n * np.linspace(0.2, 3, 128)[:, None].astype(np.float32)
    x, m = x_n.reshape(64, 2, -1), mask.reshape(64, 2)
    expected = oracle(in_float64(model), x_n.astype(np.float64), mask, model.k)
    params = jax.device_get(model.params)
    one = sums_on(1, 1, model.k)(params, x, m)
    for n_devices, axis, sparse in ((8, 1, False), (8, 1, True), (8, 2, False)):
        sums, grads, stats = sums_on(n_devices, axis, model.k, sparse)(params, x, m)
        np.testing.assert_allclose(stats["cut"], expected[2], rtol=1e-5)
        assert sums["l0"] == model.k * mask.sum()
        np.testing.assert_array_equal(sums["fired"], one[0]["fired"])
        for name, gradient in jax.device_get(one[1]).items():
            assert np.abs(grads[name] - gradient).max() <= 1e-5 * np.abs(gradient).max(), name
