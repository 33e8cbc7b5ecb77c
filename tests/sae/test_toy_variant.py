"""A variant from outside the package, one class and one line: the whole study runs on it."""

import dataclasses
import json
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import arrays
from jsae import sae
from jsae.activations import ActivationStore
from jsae.activations import run as extraction
from jsae.analysis import run as analysis
from jsae.experiments import sweep
from jsae.runtime import artifacts, settings, stages
from jsae.sae import export
from jsae.sae import run as training
from jsae.sae.variants import VARIANTS, WHOLE, Shard, base


@dataclasses.dataclass(frozen=True, kw_only=True)
class Margin(base.Variant):
    """relu above a margin that is the same for all features, with an L1 penalty."""

    l1: float = 0.02
    margin: float = 0.1

    name = "margin"
    saelens = base.SaeLens("jumprelu", arrays={"threshold": True}, is_read=False)
    ranges: ClassVar = {"l1": settings.NOT_NEGATIVE, "margin": settings.POSITIVE}
    by_feature = ("threshold",)

    def sparsity(self, step=None):
        return self.l1

    def own(self, n_features: int) -> dict:
        return {"threshold": jnp.full(n_features, self.margin, jnp.float32)}

    def activate(self, pre, arrays: dict, shard: Shard = WHOLE):
        return base.above(pre, arrays["threshold"])

    def objective(self, pre, params: dict, batch: base.Batch) -> tuple:
        feats = batch.mask[:, None] * base.above(pre, jnp.float32(self.margin))
        mse, resid = base.reconstruct(feats, params, batch)
        penalty = batch.shard.over_features(feats.sum()) / batch.x_n.shape[1]
        return mse + batch.sparsity * penalty, base.Parts(feats, resid, penalty)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """(config, workdir) of the file's activations, with a trained SAE of the variant on 4 x 2 devices."""
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 3
    strength = rng.exponential(size=(96, 3, 3, 24)) * (rng.random((96, 3, 3, 24)) < 0.1)
    acts = (strength @ rng.normal(size=(24, 16)) + labels[:, None, None, None]).astype(np.float32)
    np.savez(folder / "acts.npz", activations=acts, labels=labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "margin", Margin)
        config = arrays.get_config()
        config.data.dir = str(folder / "acts.npz")
        config.sae.update(variant="margin", n_features=64, batch_size=64, n_epochs=6.0, learning_rate=5e-3)
        config.sae.margin.margin = 0.05
        config.analysis.n_permutations = 2
        config.runtime.model_axis = 2
        for stage in (extraction, training):
            stage.run(config, folder / "study")
        yield config, folder / "study"


def test_it_is_trained_dealt_over_devices_and_loaded_with_its_settings(study):
    config, workdir = study
    results = stages.results(config, workdir, "sae")
    assert results["variant"] == "margin" and results["k"] is None and results["fvu"] < 0.5
    model = sae.load(workdir / "sae")
    assert model.variant == Margin(l1=0.02, margin=0.05)
    assert stages.section(config, "sae")["sae"]["margin"] == {"l1": 0.02, "margin": 0.05}
    assert "topk" not in stages.section(config, "sae")["sae"]


def test_it_is_exported_and_read_back_as_what_computes_the_same(study):
    _, workdir = study
    settings_of = json.loads((workdir / "sae/export/cfg.json").read_text())
    assert settings_of["architecture"] == "jumprelu" and settings_of["metadata"]["jsae_variant"] == "margin"
    store = ActivationStore.open(workdir / "activations/test")
    x = store.read(0, store.n_images)
    feats = np.asarray(sae.load(workdir / "sae").encode(x))
    back = np.asarray(export.load(workdir / "sae/export").encode(x))
    assert (np.abs(back - feats) > 1e-4 * feats.max()).mean() < 1e-3


def test_its_settings_are_checked_and_swept(study):
    config, workdir = study
    with pytest.raises(ValueError, match=r"sae\.margin\.margin=0\.0 must be above 0"):
        sae.init(jax.random.key(0), n_channels=2, n_features=4, variant="margin", margin=0.0, mean=0, scale=1)
    config = config.copy_and_resolve_references()
    config.sae.n_epochs = 2.0
    config.sweep.l1 = (0.01, 1.0)
    sweep.run(config, workdir)
    rows = artifacts.read_table(workdir / "sweep/table.parquet").to_pylist()
    assert [(row["variant"], row["l1"], row["k"]) for row in rows] == [
        ("margin", 0.01, None),
        ("margin", 1.0, None),
    ]
    assert rows[0]["l0"] > rows[1]["l0"] and json.loads(rows[0]["others"])["margin"] == 0.05


def test_it_is_analysed(study):
    config, workdir = study
    analysis.run(config, workdir)
    table = artifacts.read_table(workdir / "analysis/features.parquet").to_pydict()
    assert len(table["feature"]) == 64 and max(table["density"]) > 0
