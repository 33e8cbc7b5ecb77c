"""The scaling plan and the memory estimate against a compiled step on 2 x 2 devices; refusals."""

import re

import jax
import jax.numpy as jnp
import pytest

from jsae import sae
from jsae.runtime import mesh as meshes
from jsae.sae import memory, train
from launch.benchmark import hlo
from launch.benchmark import scaling_plan as plan

C, F, K, N = 128, 4096, 8, 1024
MESH = dict(data=2, model=2)


@pytest.fixture(scope="module")
def compiled():
    """A compiled TopK step, dense, on 2 x 2 devices."""
    mesh = meshes.make_mesh(*MESH.values(), devices=jax.devices()[:4])
    recipe = train.Recipe(n_steps=9, learning_rate=1e-3)
    fresh = jax.eval_shape(
        lambda: train.init_state(
            sae.init(
                jax.random.key(0),
                n_channels=C,
                n_features=F,
                variant="topk",
                k=K,
                aux_alpha=0.0,
                mean=jnp.zeros(C),
                scale=1.0,
            ),
            recipe,
        )
    )
    states, rows = train.shardings(mesh, fresh), meshes.sharded(mesh)
    batch = {
        "x": jax.ShapeDtypeStruct((64, N // 64, C), jnp.float32),
        "mask": jax.ShapeDtypeStruct((64, N // 64), jnp.float32),
    }
    step = jax.jit(
        train.make_step(mesh, fresh.sae, recipe, sparse=False),
        in_shardings=(states, rows),
        out_shardings=(states, meshes.replicated(mesh)),
        donate_argnums=0,
    )
    return step.lower(fresh, batch).compile()


def planned():
    return plan.plan(n_channels=C, n_features=F, batch_size=N, sparse=False, k=K, **MESH)


def test_memory_is_that_of_the_compiled_step(compiled):
    found, needed = compiled.memory_analysis(), planned().needed
    batch = N // 2 * (C + 1) * 4
    # Biases, counters and alignment come to a few percent at this size
    assert found.argument_size_in_bytes == pytest.approx(needed.state + batch, rel=0.03)
    temporary = needed.gradients + needed.activations
    # The compiler reuses some of it, and sorts the candidates of TopK in more
    assert 0.5 * temporary < found.temp_size_in_bytes < 1.5 * temporary


def test_traffic_is_that_of_the_compiled_step(compiled):
    sent, expected = hlo.count(compiled.as_text()).collectives, planned()
    recon = N // 2 * C * 4
    # Besides: sums by feature, biases, scalars
    assert sent["all-reduce"][1] == pytest.approx(recon, rel=0.05)
    of_both = expected.over_data + expected.over_model - recon
    assert sent["all-gather"][1] + sent["reduce-scatter"][1] == pytest.approx(of_both, rel=0.05)
    assert sent["reduce-scatter"][1] == pytest.approx(expected.over_data / (1 + MESH["data"]), rel=0.05)


def test_the_matrix_is_dealt_over_the_model_axis_in_the_plan():
    settings = dict(n_channels=1536, n_features=2**20, batch_size=16384, sparse=False, k=64)
    plans = plan.topologies(64, **settings)
    assert [(p.data, p.model) for p in plans][:3] == [(64, 1), (32, 2), (16, 4)]
    assert {p.needed.state for p in plans} == {6 * 2**20 * 1536 * 4 // 64}
    assert plans[-1].needed.gradients < plans[0].needed.gradients // 32
    assert {p.needed.activations for p in plans} == {plans[0].needed.activations}
    assert plans[0].sent > 10 * plans[4].sent  # gradients of the dictionary bound a mesh without model axis
    row = plan.row(plans[0], "h200", 1536, 2**20, 16384)
    assert (
        row["sending ms"] == pytest.approx(1e3 * plans[0].sent / 450e9)
        and row["sending ms"] > row["products ms"]
    )


@pytest.mark.parametrize(
    "changes, advice",
    [
        ({"vector_bytes": 1e12}, "set sae.store='streamed'"),
        ({"batch_size": 2**20}, "lower sae.batch_size"),
        ({"n_features": 2**22, "batch_size": 64}, "lower sae.n_features or raise runtime.model_axis"),
    ],
)
def test_a_run_that_does_not_fit_is_refused_with_what_to_lower(changes, advice):
    settings = dict(n_channels=768, n_features=6144, batch_size=4096, sparse=False, vector_bytes=0)
    mesh = meshes.make_mesh(devices=jax.devices()[:1])
    small = memory.estimate(**settings, data=1, model=1)
    memory.check(small, 8 * memory.GIB, mesh, streamed=False)
    memory.check(small, None, mesh, streamed=False)  # nobody knows
    needed = memory.estimate(**settings | changes, data=1, model=1)
    with pytest.raises(ValueError, match=re.escape(advice)):
        memory.check(needed, 8 * memory.GIB, mesh, streamed=False)
    with pytest.raises(ValueError, match=r"needs about .* GiB per device .* has 8.00 GiB"):
        memory.check(needed, 8 * memory.GIB, mesh, streamed=False)


def test_a_cpu_says_how_much_memory_a_run_may_take():
    mesh = meshes.make_mesh(devices=jax.devices()[:2])
    available = memory.of_device(mesh)
    assert available is None or available > 2**20
