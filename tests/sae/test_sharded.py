"""The dictionary dealt over devices: local shapes, the numbers of one device, no gather in the program."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import sae
from jsae.runtime import mesh as meshes
from jsae.sae import train
from jsae.sae.batches import resident

C, F, K, N = 16, 1024, 4, 128
COMMON = {"n_steps": 60, "learning_rate": 3e-3, "dead_after_steps": 3}
VARIANTS = {
    "topk": sae.variants.TopK(k=K),
    "batch_topk": sae.variants.BatchTopK(k=K),
    "matryoshka": sae.variants.Matryoshka(k=K, prefix_shares=(100 / F, 300 / F, 1.0)),  # cuts inside shards
    "relu_l1": sae.variants.ReluL1(l1=0.5),
    "jumprelu": sae.variants.JumpReLU(l0=0.02, bandwidth=0.2),
    "gated": sae.variants.Gated(l1=0.5),
}
ROWS = ("w_enc", "w_dec")
PATHS = [(name, False) for name in VARIANTS] + [("topk", True), ("batch_topk", True)]


@functools.cache
def mesh_of(data, model):
    return meshes.make_mesh(data, model, devices=jax.devices()[: data * model])


def recipe_of(variant, **changed):
    return train.Recipe(**COMMON | {"ema_decay": 0.9 if variant == "batch_topk" else 0.0} | changed)


def fresh(variant):
    kind = VARIANTS[variant]
    made = sae.init(jax.random.key(1), n_channels=C, n_features=F, variant=kind, mean=jnp.zeros(C), scale=1.0)
    rng = np.random.default_rng(0)
    biases = {"b_enc": 0.1 * rng.normal(size=F), "b_dec": 0.1 * rng.normal(size=C)}
    made = made.with_params(made.params | {name: jnp.float32(value) for name, value in biases.items()})
    return train.init_state(made, recipe_of(variant))


@functools.cache
def vectors():
    """Vectors of uneven length, in 64 blocks, and their mask: every ninth is padding."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, C)) * np.linspace(0.2, 3, N)[:, None]
    return x.reshape(64, -1, C).astype(np.float32), (np.arange(N) % 9 > 0).astype(np.float32).reshape(64, -1)


def batch_on(mesh):
    """{"x", "mask"} of `vectors`, dealt over `data`."""
    return jax.device_put(dict(zip(("x", "mask"), vectors(), strict=True)), meshes.sharded(mesh))


@functools.cache
def host_state(variant):
    return jax.device_get(jax.jit(lambda: fresh(variant))())


DEAD = np.arange(F) % np.where(np.arange(F) < 256, 16, 64) == 3  # most of them in one shard of four


@functools.cache
def sums_on(variant, sparse, data, model):
    """The compiled (params, x, mask, dead, sparsity) -> (sums, gradients, batch_stats) of a whole batch."""
    mesh, sae_ = mesh_of(data, model), host_state(variant).sae
    params = train.shardings(mesh, host_state(variant)).sae.params
    dealt = {name: jax.device_put(value, params[name]) for name, value in sae_.params.items()}
    sums = jax.jit(train.sums_over_mesh(mesh, sae_, recipe_of(variant), sparse))
    batch = batch_on(mesh)
    arguments = dealt, batch["x"], batch["mask"], DEAD, np.float32(0.5)
    return sums.lower(*arguments).compile(), arguments


@functools.cache
def step_on(data, model):
    """(state, compiled step) of TopK on gathered rows, with AuxK and a mean of the weights."""
    mesh, host = mesh_of(data, model), host_state("topk")
    host = dataclasses.replace(host, ema=host.sae.params, silent_steps=(9 * DEAD).astype(np.int32))
    states = train.shardings(mesh, host)
    step = jax.jit(
        train.make_step(mesh, host.sae, recipe_of("topk", ema_decay=0.9), sparse=True),
        in_shardings=(states, meshes.sharded(mesh)),
        out_shardings=(states, meshes.replicated(mesh)),
    )
    return jax.device_put(host, states), step.lower(host, batch_on(mesh)).compile()


@pytest.mark.parametrize("variant, sparse", PATHS)
def test_sums_and_gradients_are_those_of_one_device(variant, sparse):
    """With features dead, so that AuxK has something to do; gathered rows are held against the dense path."""
    found = {}
    for data, model, path in ((1, 1, False), (2, 4, sparse)):
        program, arguments = sums_on(variant, path, data, model)
        found[model] = jax.device_get(program(*arguments))
    for one, four in zip(found[1], found[4], strict=True):
        for name, value in one.items():
            # Sums in another order: the project's bound for a change of topology
            assert np.abs(four[name] - value).max() <= 1e-5 * np.abs(value).max(), name
    if VARIANTS[variant].aux_alpha:
        assert found[1][0]["aux"] > 0


def test_dictionary_moments_and_mean_are_dealt_and_the_step_equals_that_of_one_device():
    after = {}
    for data, model in ((1, 1), (2, 4)):
        state, step = step_on(data, model)
        state, metrics = step(state, batch_on(mesh_of(data, model)))
        adam = state.adam[0]
        matrices = [tree[name] for tree in (state.sae.params, adam.mu, adam.nu, state.ema) for name in ROWS]
        for array in matrices:
            assert array.addressable_shards[0].data.shape == (F // (data * model), C)
        for array in (state.sae.b_enc, state.silent_steps, adam.nu["b_enc"]):
            assert array.addressable_shards[0].data.shape == (F // (data * model),)
        after[model] = jax.device_get((adam.mu, metrics, state.silent_steps))
    (moments, metrics, silent), (expected, expected_metrics, expected_silent) = after[4], after[1]
    for name, value in expected.items():  # Adam's first moment after one step is a tenth of the gradient
        assert np.abs(moments[name] - value).max() <= 1e-5 * np.abs(value).max(), name
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(silent, expected_silent)


COLLECTIVE = re.compile(
    r"= (.*?) (all-gather|all-to-all|collective-permute|all-reduce|reduce-scatter)(?:-start)?\("
)
SHARD = F // 4 * C  # elements of one device's part of the dictionary, with model=4


def largest_sent(program):
    """(gathered, reduced): elements of the largest result of a program's collectives, by their kind.

    A gather may also be written as an all-reduce of an array that is zero elsewhere.
    """
    found = {"gathered": [0], "reduced": [0]}
    for line in program.as_text().splitlines():
        match = COLLECTIVE.search(line)
        if match:
            shapes = re.findall(r"[a-z0-9]+\[([\d,]*)\]", match[1])
            sizes = [int(np.prod([int(n) for n in s.split(",") if n] or [1])) for s in shapes]
            found["reduced" if "reduce" in match[2] else "gathered"] += sizes
    return max(found["gathered"]), max(found["reduced"])


@pytest.mark.parametrize("variant, sparse", [*PATHS, ("topk", None)])
def test_no_device_is_sent_the_dictionary_its_moments_or_the_features(variant, sparse):
    """A device is sent the matrices of its features, and candidates of a top_k, half as large in AuxK.

    Summed over `data` are gradients of them and never more; features [N / 2, F / 4] are four times that.
    The last case is the whole step, with Adam.
    """
    gathered, reduced = largest_sent(
        step_on(2, 4)[1] if sparse is None else sums_on(variant, sparse, 2, 4)[0]
    )
    assert gathered <= SHARD and reduced <= SHARD < N // 2 * F // 4


def test_no_device_is_sent_the_vectors_of_others():
    """The whole dispatch with resident vectors: each device takes its rows of a batch from its own memory."""
    mesh, recipe, n = mesh_of(2, 4), recipe_of("relu_l1"), 8 * N
    shape = resident.shape_of(4 * n, C, n)
    abstract = jax.eval_shape(lambda: fresh("relu_l1"))
    dispatch = train.make_dispatch(mesh, abstract.sae, recipe, shape, 2)
    blocks = [
        jax.ShapeDtypeStruct((64, shape.length, *rest), kind)
        for rest, kind in (((C,), jnp.float32), ((), jnp.float32), ((), jnp.int32))
    ]
    gathered, reduced = largest_sent(dispatch.lower(abstract, *blocks, 0, 1).compile())
    assert gathered == SHARD < reduced == n // 2 * C  # parameters, reconstructions


def test_the_export_never_brings_the_dictionary_to_one_device(monkeypatch):
    """Mean weights are made where their shards lie, and go to the hosts in parts."""
    mesh, abstract = mesh_of(2, 4), jax.eval_shape(lambda: fresh("batch_topk"))
    assert abstract.ema
    states = train.shardings(mesh, abstract)
    states_ = jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, states)
    assert largest_sent(train.make_trained(mesh, abstract.sae).lower(states_).compile()) == (SHARD, 0)

    rows = np.arange(F * C, dtype=np.float32).reshape(F, C)
    dealt = jax.device_put(rows, states.sae.w_dec)
    monkeypatch.setattr(meshes, "_COLLECT_BYTES", 100 * C * 4)  # parts begin and end inside shards
    np.testing.assert_array_equal(meshes._collect_in_parts(dealt), rows)
    part = meshes.rows_on_all_devices(mesh, 200, 300).lower(dealt).compile()
    assert max(largest_sent(part)) < SHARD


def test_bfloat16_products_leave_a_float32_state():
    """Every product of the step has bfloat16 operands; what is kept and summed is float32."""
    mesh, state = mesh_of(1, 1), host_state("relu_l1")
    batch, recipe = batch_on(mesh), recipe_of("relu_l1", precision="bfloat16")
    lowered = jax.jit(train.make_step(mesh, state.sae, recipe)).lower(state, batch)
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    short = [line for line in products if re.search(r": \(tensor<\w+xbf16>, tensor<\w+xbf16>\)", line)]
    assert len(short) == 5  # encode, decode, and the gradients of features and of both matrices
    assert sum("xf32>" in line for line in short) == 3  # the two with a result [N, F] keep it short
    assert len(products) == 6  # and one row of sums times w_enc, for b_dec
    after, metrics = lowered.compile()(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((after, metrics))} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    program, arguments = sums_on("relu_l1", False, 1, 1)
    sums = program(*arguments)[0]
    expected = sums["loss"] / sums["n"]
    np.testing.assert_allclose(metrics["loss"], expected, rtol=0.02)  # eight bits of every operand
    assert metrics["loss"] != expected
    np.testing.assert_allclose(metrics["l0"], sums["l0"] / sums["n"], rtol=0.02)
    np.testing.assert_array_equal(after.silent_steps == 0, sums["fired"] > 0)
