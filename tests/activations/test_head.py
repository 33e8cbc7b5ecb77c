"""Bare activations with their head: logits, a classifier to edit, and the ablation stage without images."""

import jax
import numpy as np
import pytest
from etils import epath

import jsae
from jsae import classifier
from jsae.ablation import run as ablation
from jsae.activations import ActivationStore
from jsae.activations import run as extraction
from jsae.analysis import run as analysis
from jsae.classifier import head_only
from jsae.runtime import stages, workdirs
from jsae.sae import run as sae
from tests.activations.test_imported import make_config, resnet_like

C, L = 16, 3
CLASSES = ("a", "b", "c")


def make_head(norm: bool) -> dict:
    rng = np.random.default_rng(1)
    head = {"pool": "mean", "kernel": rng.normal(size=(C, L)), "offset": rng.normal(size=L)}
    if norm:
        head |= {"norm_scale": rng.uniform(0.5, 2, C), "norm_bias": rng.normal(size=C), "norm_eps": 1e-3}
    return head


def naive_logits(head: dict, acts: np.ndarray) -> np.ndarray:
    pooled = acts.astype(np.float64).mean((1, 2))
    if "norm_eps" in head:
        centred = pooled - pooled.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + head["norm_eps"])
        pooled = centred / deviation * head["norm_scale"] + head["norm_bias"]
    return pooled @ head["kernel"] + head["offset"]


@pytest.fixture(scope="module", params=[False, True], ids=["linear", "norm"])
def study(request, tmp_path_factory):
    """(config, workdir, head as it lies in the file)."""
    folder, head = tmp_path_factory.mktemp("head"), make_head(request.param)
    x, labels = resnet_like(channels=C)
    np.savez(folder / "set.npz", activations=x, labels=labels, class_names=np.array(CLASSES))
    np.savez(folder / "head.npz", **head)
    config, workdir = make_config(folder / "set.npz"), epath.Path(folder) / "study"
    config.activations.head = str(folder / "head.npz")
    config.sae.n_features = 32
    config.ablation.update(features=(0, 1, 2), n_bootstrap=20)
    workdirs.write_config(config, workdir)
    for stage in (extraction, sae, analysis, ablation):
        stage.run(config, workdir)
    (folder / "head.npz").unlink()  # a study holds its copy
    return config, workdir, head


def test_the_stored_logits_are_those_of_the_head(study):
    _, workdir, head = study
    for split in ("train", "val", "test"):
        store = ActivationStore.open(workdir / "activations" / split)
        expected = naive_logits(head, store.read(0, store.n_images))
        np.testing.assert_allclose(store.logits, expected, atol=1e-5 * np.abs(expected).max())  # float32


def test_the_study_has_a_classifier_that_starts_at_the_arrays(study):
    _, workdir, head = study
    loaded = jsae.load(workdir)
    acts = loaded.activations("test").read(0, 4)
    logits, found = loaded.classifier(acts, start="arrays")
    np.testing.assert_array_equal(found["arrays"], acts)
    expected = naive_logits(head, acts)
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    same, _ = loaded.classifier(acts, start="arrays", edits={"arrays": loaded.suppress([])})
    np.testing.assert_array_equal(same, logits)
    other, found = loaded.classifier(acts, start="arrays", edits={"arrays": loaded.suppress(np.arange(32))})
    assert np.abs(other - logits).max() > 1e-3
    np.testing.assert_allclose(other, naive_logits(head, np.asarray(found["arrays"])), atol=1e-4)
    assert loaded.model.sites == ("arrays",) and loaded.site == "arrays"
    with pytest.raises(ValueError, match="no image is known: give activations and start='arrays'"):
        loaded.classifier(np.zeros((1, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="no site 'stage4'; bare activations have the one site 'arrays'"):
        loaded.classifier(acts, start="stage4")
    with pytest.raises(ValueError, match=r"activations of 'arrays' are \[B, H, W, 16\], got \[4, 7, 7, 8\]"):
        loaded.classifier(acts[..., :8], start="arrays")
    with pytest.raises(stages.StageMissing, match="it has no images"):
        _ = loaded.data


def test_the_ablation_stage_runs_but_for_what_needs_images(study):
    config, workdir, _ = study
    assert stages.skipped(config) == ("classifier",) and stages.above(config, "ablation") == "analysis"
    loaded = jsae.load(workdir)
    assert loaded.has_closed_form
    for name in ("feature_space", "all_features", "all_features_by_class", "cumulative"):
        assert loaded.table(name).num_rows > 0, name
    with pytest.raises(stages.StageMissing, match="input_space"):
        loaded.table("input_space")


def read(tmp_path, **changes) -> classifier.Head:
    head = make_head(norm=True) | changes
    np.savez(tmp_path / "head.npz", **{key: value for key, value in head.items() if value is not None})
    return head_only.parse((tmp_path / "head.npz").read_bytes(), "head.npz", C, CLASSES)


def test_a_head_is_read_as_float32(tmp_path):
    head = read(tmp_path)
    assert {leaf.dtype for leaf in jax.tree.leaves(head)} == {np.dtype("float32")}
    assert head.norm.eps == pytest.approx(1e-3)
    assert read(tmp_path, norm_scale=None, norm_bias=None, norm_eps=None).norm is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": None}, r"head\.npz: missing keys kernel; a head has pool, kernel, offset"),
        ({"norm_eps": None}, "missing keys norm_eps"),
        ({"weight": np.zeros(3)}, "unknown keys weight"),
        ({"pool": "max"}, "pool is 'max', expected 'mean'"),
        ({"kernel": np.zeros((L, C))}, r"kernel has shape \[3, 16\].*expected numbers \[16, 3\], with C=16"),
        ({"offset": np.array(["x"] * L)}, r"offset has shape \[3\] and dtype <U1"),
        ({"norm_scale": np.full(C, np.nan)}, "norm_scale holds a number that is not finite"),
        ({"offset": np.array([None] * L)}, "no .npz file of plain arrays"),
    ],
)
def test_a_wrong_head_is_named_by_key_and_shape(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, **changes)


def test_a_head_that_is_gone_or_has_no_labels_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", resnet_like(channels=C)[0])
    config = make_config(tmp_path / "x.npy")
    config.activations.head = str(tmp_path / "head.npz")
    with pytest.raises(ValueError, match="has no labels: effects on a class need the key labels"):
        extraction.run(config, epath.Path(tmp_path) / "a")
    x, labels = resnet_like(channels=C)
    np.savez(tmp_path / "x.npz", activations=x, labels=labels)
    config.data.dir = str(tmp_path / "x.npz")
    with pytest.raises(FileNotFoundError, match=r"head\.npz' does not exist; expected an \.npz file"):
        extraction.run(config, epath.Path(tmp_path) / "b")
