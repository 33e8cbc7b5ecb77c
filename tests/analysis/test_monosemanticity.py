"""How alike a feature's images are, judged by the classifier of another study."""

import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from jsae import classifier, metrics
from jsae.analysis import images, monosemanticity
from jsae.data import augment
from jsae.runtime import stages
from jsae.tables import documentation
from tests.analysis import toy


@pytest.fixture
def setting(tmp_path, monkeypatch):
    """(config, workdir, store of 20 images, split, params of the other study's classifier)."""
    config = ConfigDict({"seed": 0, "classifier": {"workdir": ""}})
    config.analysis = {"batch_size": 8, "embedding_workdir": str(tmp_path / "other")}
    arch = classifier.make_model("toy", 2, stem_stride=2, depths=(0, 0, 0, 1), dims=(2, 3, 4, 6))
    params = jax.jit(lambda key: classifier.init(key, arch, kernels="fan_in"))(jax.random.key(1))
    stages.begin(config, tmp_path / "own", "classifier").finish({})
    config.seed = 1
    stages.begin(config, tmp_path / "other", "classifier").finish({})
    config.seed = 0
    folder = tmp_path / "other" / "classifier"
    loaded = {str(folder): params, str(tmp_path / "own" / "classifier"): params}
    monkeypatch.setattr("jsae.classifier.load", lambda where: loaded[str(where)])
    pixels = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    store = toy.store(0, n=20)
    store.site = "stage4"
    return config, tmp_path / "own", store, types.SimpleNamespace(images=pixels), params


def test_the_table_has_a_row_per_feature_from_the_other_studys_embeddings(setting):
    config, _, store, split, params = setting
    study = types.SimpleNamespace(mesh=None, data={"test": split})
    pooled = np.asarray(toy.sae().encode(store.acts)).mean((1, 2))
    embeddings = images._embeddings(study, images.embedding_folder(config), {"batch_size": 8})
    acts = jax.jit(lambda x: classifier.apply(params, augment.normalise(x))[1]["stage4"])(split.images)
    # float32 at batches of 8, the last one padded, against all 20 at once
    np.testing.assert_allclose(embeddings, acts.mean((1, 2)), atol=1e-5)
    table = monosemanticity.table(pooled, embeddings, 30, 0)
    expected = metrics.monosemanticity(pooled, acts.mean((1, 2)))
    assert table["feature"].to_pylist() == list(range(8)) and table["monosemanticity"][0].as_py() is None
    found = np.array(table["monosemanticity"].to_pylist(), np.float64)  # NaN for null
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.isfinite(found).sum() >= 4
    null, spread = metrics.monosemanticity_null(pooled, acts.mean((1, 2)), 30, 0)
    z = np.array(table["monosemanticity_z"].to_pylist(), np.float64)
    np.testing.assert_allclose(z, (expected - null) / spread, rtol=1e-2, atol=1e-2)  # float32 embeddings
    assert all(documentation(table).values())


def test_the_studys_own_classifier_is_refused(setting):
    config, workdir, *_ = setting
    images.check_embeddings(config, workdir)
    config.analysis.embedding_workdir = str(workdir)
    with pytest.raises(ValueError, match="is this study's own classifier"):
        images.check_embeddings(config, workdir)
