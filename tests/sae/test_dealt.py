"""A dictionary dealt over a mesh: what is chosen of it is exact, and no device ever holds all of it."""

import re

import jax
import numpy as np
import pytest

from jsae import classifier
from jsae import sae as saes
from jsae.ablation.all_features.reducer import MeasureAllFeatures
from jsae.ablation.feature_space import pairs
from jsae.ablation.splice import MeasureSplice
from jsae.activations import reducers
from jsae.activations.store import make_batches
from jsae.classifier.forward import LogitsFromActs
from jsae.runtime import mesh as meshes
from jsae.sae import dealt
from jsae.sae.model import over_mesh
from tests.ablation.toy import Store

C, B, GRID = 16, 16, (4, 4)
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def mesh():
    return meshes.make_mesh(2, 4)


def make_sae(n_features):
    constants = {"mean": np.zeros(C, np.float32), "scale": 1.0}
    return saes.init(jax.random.key(1), n_channels=C, n_features=n_features, variant="topk", k=8, **constants)


def test_what_is_chosen_is_the_same_as_on_one_device(mesh):
    sae = make_sae(32)
    on_mesh = over_mesh(sae, mesh)
    feats = RNG.normal(size=(B, *GRID, 32)).astype(np.float32)
    of_images = RNG.integers(0, 32, B).astype(np.int32)
    some = np.array([31, 0, 7, 8, 7], np.int32)
    scores = RNG.integers(0, 4, (B, 3, 32)).astype(np.float32)  # many are equal
    amounts = feats[:, 0, 0]
    for function, arguments in (
        (dealt.decoder_rows, (of_images,)),
        (dealt.decoder_rows, (some,)),
        (dealt.feature_maps, (feats, some)),
        (dealt.map_per_image, (feats, of_images)),
        (lambda sae, *arrays: dealt.largest(sae, *arrays, k=5), (scores, amounts)),
        (lambda sae, *arrays: dealt.largest(sae, *arrays, k=32), (scores, amounts)),
    ):
        alone, together = (jax.jit(function)(each, *arguments) for each in (sae, on_mesh))
        jax.tree.map(np.testing.assert_array_equal, alone, together)


def test_no_device_holds_the_whole_dictionary_or_all_features_of_its_images(mesh):
    n_features = 2**15
    model = classifier.make_model("toy", 5, stem_stride=1, depths=(0, 0, 0, 0), dims=(2, 2, 2, C))
    params = jax.jit(lambda key: classifier.init(key, model))(jax.random.key(0))
    rest = LogitsFromActs(meshes.replicate(mesh, meshes.to_host(params)), "stage4")
    sae = over_mesh(make_sae(n_features), mesh)
    head = model.linear_head(params.variables)
    everything = MeasureAllFeatures(head, np.zeros(n_features, np.int32), jax.random.key(0), 4, 64)
    kinds = (MeasureSplice(rest, np.zeros(C, np.float32)), pairs.FindPairs(np.arange(6, dtype=np.int32)))
    acts = RNG.normal(size=(B, *GRID, C)).astype(np.float32)
    batch = next(make_batches(Store(acts, np.arange(B) % 5), B))
    kinds, batch = meshes.replicate(mesh, (*kinds, everything)), meshes.put_batch(mesh, batch._asdict())
    of_images = reducers._step.lower(kinds, sae, ((), (), ()), batch).compile()
    numbers = ("feature", "image", *(f"j_{scope}" for scope in pairs.SCOPES), "label", "top_class")
    maps = ("size", *(f"size_{scope}" for scope in pairs.SCOPES))
    of_pairs = {name: np.zeros(B, np.int32) for name in numbers} | {"acts": acts}
    of_pairs |= {name: np.zeros((B, *GRID), np.float32) for name in maps}
    of_pairs["auroc"] = np.zeros((B, C), np.float32)
    mean, root = np.zeros(C, np.float32), np.eye(C, dtype=np.float32)
    fixed = meshes.replicate(mesh, (rest, sae, mean, root, jax.random.key(0)))
    removing = pairs._remove.lower(*fixed, meshes.put_batch(mesh, of_pairs)).compile()
    all_features = 4 * acts.size // C * n_features  # bytes of [B, H, W, F]
    for program in (of_images, removing):
        assert not re.findall(rf"f32\[(?:\d+,)*{n_features}(?:,\d+)*\]", program.as_text())
        assert program.memory_analysis().temp_size_in_bytes < all_features
