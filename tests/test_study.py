"""The whole study in its small form, run once by `launch.pipeline`: artifacts and the Python API."""

import importlib
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import jsae
from jsae import edits
from jsae.report import formatting
from jsae.runtime import artifacts, stages
from jsae.study import TABLES, Study
from jsae.tables import Table, documentation

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def study(study_dir):
    return jsae.load(study_dir)


def test_the_artifacts_of_the_contract(study_dir):
    written = {  # the other tables are made on demand, or by another study
        name: f"{listed.stage}/{name}.parquet"
        for name, listed in TABLES.items()
        if name not in ("monosemanticity", "baselines", "visaebench", "sweep", "planted", "shortcut", "seeds")
    }
    expected = ["config.json", "summary.json", "report/index.html", *written.values()]
    expected += ["sae/export/cfg.json", "sae/export/sae_weights.safetensors"]
    expected += [f"{stage}/metrics.jsonl" for stage in ("classifier", "sae")]
    expected += [f"activations/{split}/manifest.json" for split in ("train", "val", "test")]
    expected += [f"{stage}/manifest.json" for stage in stages.STAGES]
    missing = [name for name in expected if not (study_dir / name).exists()]
    assert not missing
    assert not list(study_dir.rglob("*.tmp*"))
    for name in expected:
        if name.endswith(".parquet"):
            manifest = json.loads(
                artifacts.read_table(study_dir / name).schema.metadata[artifacts.MANIFEST_KEY]
            )
            assert manifest.keys() >= {"config", "upstream", "versions", "git_revision"}, name


def test_the_summary_agrees_with_what_it_summarises(study, study_dir):
    summary = study.summary
    assert (
        summary["sae"]["n_features"] == study.sae.n_features and summary["classifier"]["site"] == study.site
    )
    features = study.table("features")
    assert summary["analysis"]["n_features_alive"] == sum(features["alive"].to_pylist())
    store = study.activations("test")
    assert summary["classifier"]["test_accuracy"] == pytest.approx(
        (store.predictions == store.labels).mean(),
        abs=2 / store.n_images,  # other batch size, last bits
    )
    assert set(summary["seconds"]) == {"classifier", "activations", "sae", "analysis", "ablation", "report"}
    # l0, fvu again by another route: numpy on all stored test activations
    acts = store.read(0, store.n_images).reshape(-1, store.n_channels).astype(np.float64)
    feats = np.asarray(study.sae.encode(jnp.asarray(acts, jnp.float32)))
    recon = np.asarray(study.sae.decode(jnp.asarray(feats)), np.float64)
    fvu = ((acts - recon) ** 2).sum() / ((acts - acts.mean(0)) ** 2).sum()
    assert summary["sae"]["fvu"] == pytest.approx(fvu, rel=1e-4)
    assert summary["sae"]["l0"] == pytest.approx((feats != 0).sum(1).mean(), rel=1e-4)


def test_show_is_a_card_of_the_feature_for_a_notebook(study):
    row = next(row for row in study.table("top_patches").to_pylist() if row["rank"] == 0)
    html = study.show(row["feature"], n_patches=2)._repr_html_()
    assert f"Feature {row['feature']}" in html and html.count("data:image/jpeg") == 2
    assert f"test image {row['image_id']}, peak in row {row['y'] + 1}, column {row['x'] + 1}" in html
    assert f'<rect x="{row["x"]}" y="{row["y"]}" width="1" height="1" opacity="0.75"/>' in html  # its maximum
    assert study.show(np.int64(row["feature"])).feature == row["feature"]


def test_show_takes_one_feature_and_says_so(study):
    for wrong in ("12", 12.0, [12, 13], True, None, np.float32(12)):
        with pytest.raises(TypeError, match="show takes one feature, a whole number like 12; got "):
            study.show(wrong)
    for wrong in (100_000, -1):
        with pytest.raises(ValueError, match=f"there is no feature {wrong}; the SAE has 0 to "):
            study.show(wrong)
    with pytest.raises(ValueError, match="n_patches=0 must be at least 1"):
        study.show(12, n_patches=0)
    with pytest.raises(TypeError, match="n_patches is a whole number"):
        study.show(12, n_patches="3")


def test_a_feature_that_was_not_chosen_has_the_effect_of_the_table_of_all(study):
    chosen = set(study.table("feature_space")["feature"].to_pylist())
    rows = study.table("all_features").to_pylist()
    row = next(r for r in rows if r["feature"] not in chosen and r["own_class_margin"] is not None)
    html = study.show(row["feature"]).html
    assert formatting.number(row["own_class_margin"]) in html
    assert "not among the features that were ablated beside a control" in html


def test_what_a_study_lacks_is_said_with_the_reason(study):
    with pytest.raises(ValueError, match="no split 'tset'; the splits are train, val, test"):
        study.activations("tset")
    for name, words in [
        ("baselines", "launch.baselines writes it"),
        ("visaebench", "launch.visaebench writes it"),
        ("sweep", "launch.sweep writes it"),
        ("monosemanticity", "config.analysis.embedding_workdir"),
    ]:
        with pytest.raises(stages.StageMissing, match=f"no table '{name}': .*{words}"):
            study.table(name)


def test_a_study_of_bare_activations_is_not_told_to_set_what_it_has_set(tmp_path):
    """Nothing there may advise activations.site=arrays or another data.dir: that is what it was made with."""
    study = Study(tmp_path, {"activations": {"site": "arrays"}, "data": {"dir": "x.npz", "kind": "arrays"}})
    lacks = {
        "it has no classifier": lambda: study.classifier,
        "it has no images; study.activations": lambda: study.data,
        "it has no images to prepare": lambda: study.preprocess("plane.png"),
        "has no stage 'ablation'": lambda: study.table("all_features"),
    }
    for words, ask in lacks.items():
        with pytest.raises(stages.StageMissing, match=words) as raised:
            ask()
        assert "config.activations.site" not in str(raised.value)


def test_top_patches_are_the_encoded_activations(study):
    patches = study.table("top_patches").slice(0, 40).to_pylist()
    store = study.activations("test")
    for row in patches:
        acts = jnp.asarray(store.read(row["image"], row["image"] + 1))
        feats = np.asarray(study.sae.encode(acts))[0, :, :, row["feature"]]
        assert feats.max() == pytest.approx(row["value"], rel=1e-4)
        assert feats[row["y"], row["x"]] == feats.max()
        assert store.image_ids[row["image"]] == row["image_id"] == study.data["test"].ids[row["image"]]
        assert store.labels[row["image"]] == row["label"]


EMPTY_EDITS = """
import sys
import jsae
import numpy as np

study = jsae.load(sys.argv[1])
images = study.data["test"].images[:8]
clean, acts = study.classifier(images)
kept = study.keep(np.ones(study.sae.n_features))
for empty in (study.suppress([]), kept, study.steer([3], 0.0), study.set_to([], 1.0)):
    edited, _ = study.classifier(images, edits={study.site: empty})
    np.testing.assert_array_equal(np.asarray(clean), np.asarray(edited))
feature = int(np.asarray(study.sae.encode(acts[study.site])).max((0, 1, 2)).argmax())
ablated, _ = study.classifier(images, edits={study.site: study.suppress([feature])})
assert np.abs(np.asarray(ablated - clean)).max() > 1e-3
print("identical")
"""


def test_the_empty_edit_is_bit_identical(study_dir, users_environment):
    """In a process of its own: how a sum is rounded depends on what the compiler fuses it with."""
    command = [sys.executable, "-c", EMPTY_EDITS, str(study_dir)]
    done = subprocess.run(
        command, env=users_environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "identical\n", done.stderr[-2000:]


def test_functions_that_are_no_pytrees_are_edits_too(study):
    images = study.data["test"].images[:4]
    suppress = study.suppress([5, 6])
    ours, _ = study.classifier(images, edits={study.site: suppress})
    plain, _ = study.classifier(images, edits={study.site: lambda acts: suppress(acts)})
    # outside jit: the same numbers in another order
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5 * np.abs(np.asarray(plain)).max())


def test_one_trace_serves_every_mask(study):
    images = study.data["test"].images[:2]
    from jsae.data import augment

    x = augment.normalise(jnp.asarray(images))
    traces = []

    @jax.jit
    def run(keep):
        traces.append(None)
        from jsae.classifier import apply

        return apply(study.classifier.params, x, edits={study.site: edits.keep(study.sae, keep)})[0]

    rng = np.random.default_rng(0)
    for _ in range(100):
        run(rng.integers(0, 2, study.sae.n_features).astype(np.float32))
    assert len(traces) == 1


def test_the_export_encodes_like_the_sae(study, study_dir):
    weights = load_file(study_dir / "sae/export/sae_weights.safetensors")
    settings = json.loads((study_dir / "sae/export/cfg.json").read_text())
    acts = study.activations("test").read(0, 2).reshape(-1, study.sae.n_channels)
    pre = np.maximum((acts - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"], 0)
    kept = np.sort(pre, 1)[:, -settings["k"]][:, None]
    feats = np.where(pre >= kept, pre, 0)
    ours = np.asarray(study.sae.encode(jnp.asarray(acts)))
    # float32 products in another order, relative to the largest feature
    np.testing.assert_allclose(ours, feats, rtol=0, atol=1e-5 * np.abs(feats).max())


def test_files_become_the_classifiers_input(study, tmp_path):
    from PIL import Image

    image = study.data["test"].images[3]
    Image.fromarray(image).save(tmp_path / "plane.png")
    np.testing.assert_array_equal(study.preprocess([tmp_path / "plane.png"])[0], image)
    size = len(image)
    wide = np.concatenate([np.full_like(image, 7), image], 1)
    Image.fromarray(wide).save(tmp_path / "wide.png")
    boxed = study.preprocess([tmp_path / "wide.png"], boxes=[(size + 1, 1, 2 * size, size)])
    np.testing.assert_array_equal(boxed[0], image)
    with pytest.raises(ValueError, match="2 boxes for 1 files"):
        study.preprocess(tmp_path / "wide.png", boxes=[(1, 1, 2, 2)] * 2)
    with pytest.raises(ValueError, match=r"\[1, 4\]; got 1 boxes for 1 files, of shape \[1, 3\]"):
        study.preprocess(tmp_path / "wide.png", boxes=[(1, 1, 2)])
    with pytest.raises(ValueError, match="got no files"):
        study.preprocess([])
    for wrong in (image[None], 3, b"plane.png"):
        with pytest.raises(TypeError, match="reads files: give their names, not "):
            study.preprocess(wrong)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        study.preprocess([tmp_path / "broken.jpg"])


def test_a_finished_study_is_up_to_date(study_dir, clean_environment):
    command = [
        sys.executable,
        "-m",
        "launch.pipeline",
        "--config=configs/demo.py:small",
        f"--workdir={study_dir}",
    ]
    done = subprocess.run(
        command, env=clean_environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for stage in ("classifier", "activations", "sae", "analysis", "ablation"):
        assert f"{stage}: up to date" in done.stderr


@pytest.mark.parametrize("name", ["cumulative"])
def test_a_table_of_the_last_site_is_missed_by_name_elsewhere(name, tmp_path, monkeypatch):
    monkeypatch.setattr(Study, "has_closed_form", False)
    study = Study(tmp_path, {"activations": {"site": "stage3"}})
    with pytest.raises(
        stages.StageMissing, match=f"study of stage3 has no table '{name}': it exists at a classifier's last"
    ):
        study.table(name)


def test_loading_what_is_no_study_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no study"):
        jsae.load(tmp_path)


def test_every_table_is_declared_once_and_documents_its_columns(study):
    for name, listed in TABLES.items():
        declared = next(
            value
            for value in vars(importlib.import_module(listed.module)).values()
            if isinstance(value, Table) and value.name in (name, "table")  # sweep/table.parquet
        )
        assert all(len(doc) > 3 for doc in documentation(declared.schema).values())
        if study.has_table(name):
            assert study.table(name).schema.equals(declared.schema)
            assert documentation(study.table(name)) == documentation(declared.schema)
