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
from jsae.sae import evaluate, train

C, F, K, N = 16, 1024, 4, 128
COMMON = {"n_steps": 60, "learning_rate": 3e-3, "dead_after_steps": 3}
TERMS = {
    "topk": {"aux_alpha": 1 / 32},
    "batch_topk": {"aux_alpha": 1 / 32, "ema_decay": 0.9},
    "matryoshka": {"aux_alpha": 1 / 32, "prefixes": (100, 300, F)},  # cuts inside shards, none at their ends
    "relu_l1": {"l1": 0.5},
    "jumprelu": {"l0": 0.02, "bandwidth": 0.2},
    "gated": {"l1": 0.5},
}
PATHS = [(name, False) for name in TERMS] + [("topk", True), ("batch_topk", True)]


@functools.cache
def mesh_of(data, model):
    return meshes.make_mesh(data, model, devices=jax.devices()[: data * model])


def recipe_of(variant, **changed):
    return train.Recipe(**COMMON | TERMS[variant] | changed)


def fresh(variant):
    k = K if sae.VARIANTS[variant].has_k else None
    made = sae.init(
        jax.random.key(1), n_channels=C, n_features=F, variant=variant, k=k, mean=jnp.zeros(C), scale=1.0
    )
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


def compiled_step(variant, sparse, data, model, **changed):
    """(state, compiled step) on a mesh; the state is donated."""
    mesh, recipe = mesh_of(data, model), recipe_of(variant, **changed)
    abstract = jax.eval_shape(lambda: fresh(variant))
    states = train.shardings(mesh, abstract)
    rows = meshes.sharded(mesh)
    step = jax.jit(
        train.make_step(mesh, abstract.sae, recipe, sparse),
        in_shardings=(states, rows),
        out_shardings=(states, meshes.replicated(mesh)),
    )
    batch = {
        "x": jax.ShapeDtypeStruct((64, N // 64, C), jnp.float32, sharding=rows),
        "mask": jax.ShapeDtypeStruct((64, N // 64), jnp.float32, sharding=rows),
    }
    return jax.jit(lambda: fresh(variant), out_shardings=states)(), step.lower(abstract, batch).compile()


@pytest.fixture(scope="module")
def steps():
    return functools.cache(compiled_step)


@pytest.mark.parametrize("variant, sparse", PATHS)
def test_features_and_moments_are_dealt_and_the_step_equals_that_of_one_device(variant, sparse, steps):
    x, mask = vectors()
    after = {}
    for data, model in ((1, 1), (2, 4)):
        state, step = steps(variant, sparse, data, model)
        rows = meshes.sharded(mesh_of(data, model))
        batch = {"x": jax.device_put(x, rows), "mask": jax.device_put(mask, rows)}
        # Some features have been silent for long, most of them in one shard: AuxK has something to do
        silent = jnp.where(jnp.arange(F) % jnp.where(jnp.arange(F) < 256, 16, 64) == 3, 9, 0).astype(
            jnp.int32
        )
        silent = jax.device_put(silent, state.silent_steps.sharding)
        state = dataclasses.replace(state, silent_steps=silent)
        state, metrics = step(state, batch)
        adam = state.adam[0]
        for array in (state.sae.w_dec, state.sae.w_enc, adam.mu["w_dec"], adam.nu["w_dec"], adam.mu["w_enc"]):
            assert array.addressable_shards[0].data.shape == (F // model, C)
        for array in (state.sae.b_enc, state.silent_steps, adam.nu["b_enc"]):
            assert array.addressable_shards[0].data.shape == (F // model,)
        after[model] = jax.device_get((adam.mu, metrics, state.silent_steps))
    (gradients, metrics, silent), (expected, expected_metrics, expected_silent) = after[4], after[1]
    for name, value in expected.items():  # Adam's first moment after one step is a tenth of the gradient
        assert np.abs(gradients[name] - value).max() <= 1e-5 * np.abs(value).max(), name
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    np.testing.assert_array_equal(silent, expected_silent)


COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-to-all|collective-permute)(?:-start)?\(")


def gathered_sizes(text):
    """(kind, elements) of what each collective of a compiled program brings to a device that it lacked."""
    found = []
    for line in text.splitlines():
        match = COLLECTIVE.search(line)
        if match:
            shapes = re.findall(r"[a-z0-9]+\[([\d,]*)\]", match[1])
            found += [(match[2], np.prod([int(n) for n in s.split(",") if n] or [1])) for s in shapes]
    return found


@pytest.mark.parametrize("variant, sparse", PATHS)
def test_no_device_is_sent_the_dictionary_or_the_features(variant, sparse, steps):
    """Candidates of a top_k may travel, [N / 2, 4 C / 2] in AuxK; a shard of the dictionary is twice that."""
    _, step = steps(variant, sparse, 2, 4)
    forbidden = min(F // 4 * C, N // 2 * F // 4)
    sizes = gathered_sizes(step.as_text())
    assert all(elements < forbidden for _, elements in sizes), (forbidden, sizes)


@pytest.mark.parametrize("variant", ["topk", "batch_topk"])
def test_evaluation_over_dealt_features_gives_the_sums_of_one_device(variant):
    made, (x, mask) = fresh(variant).sae, vectors()
    made = dataclasses.replace(made, own={name: jnp.float32(0.4) for name in made.own})
    found = {}
    for data, model in ((1, 1), (2, 4)):
        mesh = mesh_of(data, model)
        dealt = jax.device_put(made, train.shardings(mesh, train.empty_state(made, has_ema=False)).sae)
        sums = evaluate.make_sums(mesh)
        batch = meshes.put_batch(mesh, {"x": x.reshape(-1, C), "mask": mask.reshape(-1)})
        program = sums.lower(dealt, batch["x"], batch["mask"]).compile()
        assert all(n < F // 4 * C for _, n in gathered_sizes(program.as_text()))
        found[model] = jax.device_get(sums(dealt, batch["x"], batch["mask"]))
    for one, four in zip(jax.tree.leaves(found[1]), jax.tree.leaves(found[4]), strict=True):
        np.testing.assert_allclose(four, one, rtol=1e-5, atol=1e-5 * np.abs(one).max())
    np.testing.assert_array_equal(found[4][0].fires, found[1][0].fires)


def test_bfloat16_products_leave_a_float32_state(steps):
    """Every product of the step has bfloat16 operands; what is kept and summed is float32."""
    x, mask = vectors()
    batch = {"x": jnp.asarray(x), "mask": jnp.asarray(mask)}
    mesh, recipe = mesh_of(1, 1), recipe_of("relu_l1", precision="bfloat16")
    state = jax.jit(lambda: fresh("relu_l1"))()
    lowered = jax.jit(train.make_step(mesh, state.sae, recipe)).lower(state, batch)
    products = [line for line in lowered.as_text().splitlines() if "dot_general" in line]
    short = [line for line in products if line.count("xbf16>") == 2 and "xf32>" in line]
    assert len(short) == 5  # encode, decode, and the gradients of features and of both matrices
    assert len(products) == 6  # and one row of sums times w_enc, for b_dec
    after, metrics = lowered.compile()(state, batch)
    assert {leaf.dtype for leaf in jax.tree.leaves((after, metrics))} <= {
        jnp.dtype("float32"),
        jnp.dtype("int32"),
    }
    _, exact = steps("relu_l1", False, 1, 1)
    expected = exact(jax.jit(lambda: fresh("relu_l1"))(), batch)[1]
    np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=0.02)  # eight bits of every operand
    assert metrics["loss"] != expected["loss"]
