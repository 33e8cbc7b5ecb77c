"""The passes over a dealt dictionary: the numbers of one device, and no device holds more than its share."""

import dataclasses

import jax
import numpy as np
import pytest

from jsae import sae as saes
from jsae.activations import reducers, run_pass
from jsae.analysis.nearest import CountTogether
from jsae.analysis.strength import KeepMaps, KeepPooled, MeasureStrength
from jsae.analysis.top_patches import KeepTopPatches
from jsae.runtime import mesh as meshes
from jsae.sae import model
from jsae.sae.evaluate import MeasureReconstruction
from tests.analysis import toy

CHANNELS, BATCH, GRID = 16, 8, (3, 2)
REDUCERS = {
    "strength": MeasureStrength(4),
    "pooled": KeepPooled(),
    "maps": KeepMaps(),
    "top": KeepTopPatches(16),
    "together": CountTogether(np.arange(24)),
    "sums": MeasureReconstruction(),
}


def _sae(n_features, variant="topk"):
    return saes.init(
        jax.random.key(0),
        n_channels=CHANNELS,
        n_features=n_features,
        variant=variant,
        mean=np.zeros(CHANNELS),
        scale=1.0,
        **({"k": 8} if variant == "topk" else {}),
    )


@pytest.mark.parametrize("variant", ["topk", "relu_l1"])
@pytest.mark.parametrize("shape", [(1, 8), (2, 4)])
def test_every_reducer_finds_what_it_finds_on_one_device(variant, shape):
    store, sae, mesh = toy.store(n=29, channels=CHANNELS), _sae(128, variant), meshes.make_mesh(*shape)
    one = run_pass(store, sae, REDUCERS, batch_size=BATCH)
    many = run_pass(store, model.over_mesh(sae, mesh), REDUCERS, batch_size=BATCH, mesh=mesh)
    for name in REDUCERS:
        leaves = [
            dataclasses.asdict(found[name]) if name == "strength" else found[name] for found in (one, many)
        ]
        for a, b in zip(*map(jax.tree.leaves, leaves), strict=True):
            if np.asarray(a).dtype.kind == "f":  # float32 products in another order
                np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
            else:
                np.testing.assert_array_equal(b, a)


@pytest.mark.parametrize("name", REDUCERS)
def test_no_device_holds_the_dictionary_or_the_features_of_a_batch(name):
    n_features, mesh = 4096, meshes.make_mesh(1, 8)
    sae = model.over_mesh(_sae(n_features), mesh)
    sae, kinds = meshes.replicate(mesh, (sae, (REDUCERS[name],)))
    batch = {
        "acts": np.zeros((BATCH, *GRID, CHANNELS), np.float32),
        "labels": np.zeros(BATCH, np.int32),
        "images": np.zeros(BATCH, np.int32),
        "mask": np.ones(BATCH, np.float32),
    }
    carry = reducers._carries(mesh, kinds, sae)
    compiled = reducers._step.lower(kinds, sae, carry, meshes.put_batch(mesh, batch)).compile()
    memory, feats = compiled.memory_analysis(), 4 * BATCH * GRID[0] * GRID[1] * n_features
    dictionary = 8 * n_features * CHANNELS  # both matrices, float32
    carried = sum(leaf.nbytes for leaf in jax.tree.leaves(carry))
    small = sum(array.nbytes for array in batch.values()) + 16 * n_features // 8 + 4096
    assert memory.argument_size_in_bytes <= dictionary / 8 + carried / 8 + small
    # a few arrays of a device's share of the features: pre-activations, kept ones, their reductions
    assert memory.temp_size_in_bytes <= 5 * feats / 8 + carried / 2
