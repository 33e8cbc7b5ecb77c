"""The stage as a whole on a small untrained classifier: tables, results, nulls, up to date, stopping."""

import dataclasses
import json
import logging

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pyarrow as pa
import pytest

import jsae.ablation.run as stage
from jsae import classifier, sae
from jsae.activations import reducers
from jsae.classifier import head_only
from jsae.classifier.families.convnext.model import ConvNeXt
from jsae.data import augment, cache, identity
from jsae.runtime import artifacts, preemption, stages
from jsae.sae.model import over_mesh
from jsae.study import TABLES
from tests.ablation.toy import StoppedWhen

N, S, L, F = 40, 32, 3, 24


def make_config(model_axis=1, **ablation):
    defaults = {
        "n_features": 4,
        "features": (),
        "max_images": 6,
        "n_blurred_features": 3,
        "n_mapped_images": 0,
        "sigma_px": 3.0,
        "size_cells": 1,
        "batch_size": 16,
        "n_bootstrap": 100,
        "n_joint": 5,
        "n_all_features_images": 12,
        "mediation": {"n_images": 24},
    }
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "data": {"kind": "made_up", "image_size": S},
            "classifier": {"workdir": ""},
            "activations": {"site": "stage4"},
            "sae": {"n_features": F},
            "analysis": {"pixel_maps": {"method": "occlusion"}},
            "ablation": defaults | ablation,
            "runtime": {"data_axis": -1, "model_axis": model_axis},
        }
    )


@pytest.fixture(scope="module")
def parts():
    """Classifier, SAE, split and activations at stage4, an 4x4 grid."""
    arch = classifier.make_model("toy", L, stem_stride=1, depths=(1, 1, 1, 1), dims=(4, 6, 8, 12))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: classifier.init(jax.random.key(0), arch))
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape), jnp.float32), shapes)
    images = rng.integers(0, 256, (N, S, S, 3), np.uint8)
    masks = np.zeros((N, S, S), np.uint16)
    masks[:, 8:24, 4:28] = 1 << 15
    split = cache.Split(
        "test",
        images,
        np.arange(N, dtype=np.int32) % L,
        tuple(f"i{i}" for i in range(N)),
        ("a", "b", "c"),
        (),
        masks,
    )
    logits, acts = jax.jit(classifier.apply)(params, augment.normalise(images))
    x = np.asarray(acts["stage4"])
    mean, scale = x.mean((0, 1, 2)), x.std()
    rows = rng.normal(size=(F, 12)).astype(np.float32)
    rows = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    zeros = [jnp.zeros(F), jnp.zeros(12)]
    model = sae.SAE(
        rows, zeros[0], rows, zeros[1], jnp.asarray(mean), jnp.float32(scale), sae.variants.TopK(k=4)
    )
    return params, model, split, x, np.asarray(logits)


@pytest.fixture
def make_workdir(tmp_path, parts, monkeypatch):
    """A function config, changes of the table, the SAE -> a workdir whose upper stages are complete."""
    params, model, split, x, logits = parts
    monkeypatch.setattr("jsae.classifier.load", lambda folder: params)
    monkeypatch.setattr(identity, "splits_of", lambda *_: {"train": split, "test": split})

    def make(config, model=model, **columns):
        monkeypatch.setattr("jsae.sae.load", lambda folder, mesh: over_mesh(model, mesh))
        for name in stages.STAGES[:4]:
            if name in stages.skipped(config):
                continue
            opened = stages.begin(config, tmp_path, name)
            if not opened.up_to_date:
                opened.finish({})
        for name in ("train", "val", "test"):
            folder = stages.folder(config, tmp_path, "activations") / name
            artifacts.write_array(folder / "shard-00000.npy", x)
            artifacts.write_array(folder / "labels.npy", split.labels)
            artifacts.write_array(folder / "logits.npy", logits)
            artifacts.write_json(folder / "image_ids.json", list(split.ids))
            artifacts.write_json(
                folder / "manifest.json",
                {
                    "site": "stage4",
                    "grid": x.shape[1:3],
                    "n_channels": 12,
                    "n_images": N,
                    "dtype": "float32",
                    "shards": [N],
                    "class_names": list(split.class_names),
                    "mean": x.mean((0, 1, 2)).tolist(),
                    "scale": 1.0,
                },
            )
        n_active = (np.asarray(model.encode(jnp.asarray(x))).max((1, 2)) > 0).sum(0)
        table = {
            "feature": list(range(F)),
            "eligible": (n_active >= 20).tolist(),
            "class_selective": [i % 2 == 0 for i in range(F)],
            "auroc_train": np.linspace(0.5, 1, F).tolist(),
            "mean_active": np.linspace(2, 1, F).tolist(),
            "top_class": [i % L for i in range(F)],
        }
        path = stages.folder(config, tmp_path, "analysis") / "features.parquet"
        artifacts.write_table(path, pa.table(table | columns), {})
        return tmp_path

    return make


def read(workdir, name):
    return artifacts.read_table(workdir / "ablation" / f"{name}.parquet")


def test_writes_its_tables_and_headlines_and_is_then_up_to_date(make_workdir, caplog):
    config = make_config(n_mapped_images=2)
    workdir = make_workdir(config)
    stage.run(config, workdir)
    results = stages.results(config, workdir, "ablation")
    json.dumps(results, allow_nan=False)
    numbers = results["feature_space"]
    assert numbers["n_features"] == 4 and numbers["n_images"] > 0
    low, high = numbers["mean_delta_margin_ci95"]
    assert low <= numbers["mean_delta_margin"] <= high
    numbers = results["input_space"]
    assert numbers["n_features"] == 3 and results["n_pairs"]["input_space"] == 18
    assert numbers["fall_median"] is not None and 0 <= numbers["qualified_share"] <= 1
    assert set(numbers["placements"]) == {"peak", "active", "mask", "pixel_map"}
    assert results["mediation"]["m"] == [1, 4, 16]
    for name in ("blurred", "masked"):
        numbers = results["mediation"][name]
        assert (numbers["area"], numbers["n_images"]) == ("mask", 24)
        rows = [row for row in read(workdir, "mediation").to_pylist() if row["input"] == name]
        assert [row["m"] for row in rows] == [1, 4, 16, F]
        assert [row["mediated_share"] for row in rows[:3]] == numbers["mediated_share"]
    assert set(results["splice"]["clean"]) == {
        "accuracy",
        "mean_per_class_accuracy",
        "cross_entropy",
        "margin",
    }
    assert set(results["all_features"]["mean_margin"]) == {"clean", "all_removed"}
    rows = read(workdir, "feature_space").to_pylist()
    assert len(rows) == 4 * 2 * 4 * 4 and len(read(workdir, "input_space")) == 3 * 8 * 3 * 4
    margin = [r for r in rows if (r["scope"], r["target"], r["measure"]) == ("map", "label", "margin")]
    mean = np.mean([row["mean_delta"] for row in margin])
    assert results["feature_space"]["mean_delta_margin"] == pytest.approx(mean)
    blurred = read(workdir, "input_space").to_pylist()
    counted = {(row["placement"] == "pixel_map", row["n_pairs"]) for row in blurred}
    assert counted == {(False, 6), (True, 2)}  # max_images, n_mapped_images
    everything = read(workdir, "all_features").to_pylist()
    assert len(everything) == F and results["all_features"]["n_pairs"] == N * F
    for row in margin:  # the closed form beside the patched forward pass
        of_feature = everything[row["feature"]]
        assert of_feature["map_label_margin"] == pytest.approx(row["mean_delta"], abs=1e-4)  # float32
        assert of_feature["n_active"] == row["n_active"]
    assert -1 <= results["all_features"]["attribution"]["spearman"] <= 1
    assert read(workdir, "all_features_by_class").num_rows > F
    assert read(workdir, "cumulative").num_rows == 3 * 6
    schema = read(workdir, "feature_space").schema
    assert all(field.metadata[b"doc"] for field in schema)
    assert json.loads(schema.metadata[artifacts.MANIFEST_KEY])["stage"] == "ablation"
    stamp = (workdir / "ablation" / "feature_space.parquet").stat().st_mtime_ns
    with caplog.at_level(logging.INFO, "jsae"):
        stage.run(config, workdir)
    assert "ablation: up to date" in caplog.text
    assert (workdir / "ablation" / "feature_space.parquet").stat().st_mtime_ns == stamp


def test_it_writes_the_tables_that_a_study_lists_and_no_others(make_workdir):
    config = make_config()
    workdir = make_workdir(config)
    stage.run(config, workdir)
    elsewhere = {"baselines", "counterfactual", "counterfactual_response"}  # the data are not drawn
    listed = {name for name, table in TABLES.items() if table.stage == "ablation"} - elsewhere
    assert stages.results(config, workdir, "ablation")["ground_truth"] is None
    assert {path.stem for path in (workdir / "ablation").glob("*.parquet")} == listed


@pytest.mark.parametrize("closed_form", [True, False])
def test_a_dictionary_dealt_over_devices_gives_the_same_tables(make_workdir, monkeypatch, closed_form):
    if not closed_form:
        monkeypatch.setattr(ConvNeXt, "linear_head", lambda *_: None)
    found = []
    for model_axis in (1, 4):
        config = make_config(model_axis)
        workdir = make_workdir(config)
        stage.run(config, workdir)
        found.append(
            {path.stem: read(workdir, path.stem) for path in (workdir / "ablation").glob("*.parquet")}
        )
        (workdir / "ablation").rename(workdir / f"on {model_axis}")
    alone, dealt = found
    assert alone.keys() == dealt.keys()
    for name, table in alone.items():
        for column in table.column_names:
            a, b = (each[column].to_pylist() for each in (table, dealt[name]))
            if isinstance(next((x for x in a if x is not None), 0), float):
                a, b = (np.array(x, np.float64) for x in (a, b))
                # float32 sums in another order; p and q fall steeply with them, and the resampled shares of
                # mediation divide by sums of effects of either sign, which nearly cancel in this toy
                atol = 2e-5 * max(1, np.nanmax(np.abs(a))) * (10 if name == "mediation" else 1)
                np.testing.assert_allclose(a, b, atol=atol, err_msg=column)
            else:
                assert a == b, column


def test_without_an_eligible_feature_the_numbers_are_null(make_workdir, parts, caplog):
    config = make_config()
    dead = dataclasses.replace(parts[1], b_enc=parts[1].b_enc - 1e6)
    workdir = make_workdir(config, model=dead)
    with caplog.at_level(logging.WARNING, "jsae"):
        stage.run(config, workdir)
    assert "no feature fires on 20" in caplog.text and "effects on their own class are null" in caplog.text
    results = stages.results(config, workdir, "ablation")
    assert (
        results["feature_space"]["n_features"] == 0 and results["feature_space"]["mean_delta_logit"] is None
    )
    assert results["all_features"]["attribution"] == {"spearman": None, "spearman_ci95": None}
    assert read(workdir, "feature_space").num_rows == read(workdir, "input_space").num_rows == 0


def test_a_given_dead_feature_has_rows_of_nulls(make_workdir, parts):
    dead = dataclasses.replace(parts[1], b_enc=parts[1].b_enc.at[3].set(-1e6))
    config = make_config(features=(3, 0))
    workdir = make_workdir(config, model=dead)
    stage.run(config, workdir)
    rows = [row for row in read(workdir, "feature_space").to_pylist() if row["feature"] == 3]
    assert len(rows) == 32 and all(r["n_active"] == 0 and r["mean_delta"] is None for r in rows)
    rows = read(workdir, "input_space").to_pylist()
    assert [row["n_pairs"] for row in rows] == [0] * 72 + [6] * 72


def test_an_unknown_feature_and_other_images_are_named(make_workdir, parts, monkeypatch):
    config = make_config(features=(0, 24))
    workdir = make_workdir(config)
    with pytest.raises(ValueError, match=r"there is no feature 24; features are 0 \.\. 23"):
        stage.run(config, workdir)
    config = make_config()
    workdir = make_workdir(config)
    other = dataclasses.replace(parts[2], ids=("x",) * N)
    monkeypatch.setattr(identity, "splits_of", lambda *_: {"test": other})
    with pytest.raises(ValueError, match="--restart=activations"):
        stage.run(config, workdir)


def test_a_batch_that_the_devices_cannot_share_is_refused():
    with pytest.raises(
        ValueError, match=r"config\.ablation\.batch_size=12 must be a positive multiple of .* 8"
    ):
        stage.check_config(make_config(batch_size=12))


def test_without_a_linear_head_all_features_take_forward_passes(make_workdir, monkeypatch, caplog):
    config = make_config()
    workdir = make_workdir(config)
    monkeypatch.setattr(ConvNeXt, "linear_head", lambda *_: None)
    with caplog.at_level(logging.INFO, "jsae"):
        stage.run(config, workdir)
    assert "no closed form at stage4" in caplog.text
    found = stages.results(config, workdir, "ablation")["all_features"]
    assert found["n_pairs"] == 12 * F and found["n_guarded"] == 0
    assert len(read(workdir, "all_features")) == F
    assert not (workdir / "ablation" / "cumulative.parquet").exists()


def test_bare_activations_with_a_head_have_all_but_the_input_space(make_workdir, parts, monkeypatch, caplog):
    rng = np.random.default_rng(7)
    head = classifier.Head(*(jnp.asarray(rng.normal(size=size), jnp.float32) for size in ((12, L), L)))
    params = classifier.Params(head, head_only.HeadOnly(12, L))
    monkeypatch.setattr("jsae.classifier.load_head", lambda folder: params)
    config = make_config()
    config.activations = {"site": "arrays", "head": "head.npz"}
    workdir = make_workdir(config)
    with caplog.at_level(logging.INFO, "jsae"):
        stage.run(config, workdir)
    assert "no input space, since bare activations have no images" in caplog.text
    results = stages.results(config, workdir, "ablation")
    json.dumps(results, allow_nan=False)
    assert results["input_space"] is None and results["n_pairs"]["input_space"] == 0
    assert results["mediation"] is None and not (workdir / "ablation" / "mediation.parquet").exists()
    assert results["all_features"]["n_guarded"] == 0 and results["splice"]["ce_recovered"] is not None
    everything = read(workdir, "all_features").to_pylist()
    assert not (workdir / "ablation" / "input_space.parquet").exists()
    for row in read(workdir, "feature_space").to_pylist():
        if (row["scope"], row["target"]) == ("map", "label"):
            of_all = everything[row["feature"]][f"map_label_{row['measure']}"]
            assert of_all == pytest.approx(row["mean_delta"], abs=1e-5)  # float32


def test_a_stop_leaves_the_stage_unfinished(make_workdir):
    config = make_config()
    workdir = make_workdir(config)
    with pytest.raises(preemption.Preempted):
        stage.run(config, workdir, StoppedWhen(lambda: True))
    assert stages.read_manifest(config, workdir, "ablation")["status"] == "started"
    assert not (workdir / "ablation" / "feature_space.parquet").exists()


def test_a_stopped_stage_repeats_no_pass_that_was_finished(make_workdir, monkeypatch):
    config = make_config()
    workdir = make_workdir(config)
    folder = workdir / "ablation"
    feature_space = folder / "passes" / "feature_space.npz"
    with pytest.raises(preemption.Preempted):
        stage.run(config, workdir, StoppedWhen(feature_space.exists))  # in input space
    assert {path.stem for path in (folder / "passes").glob("*.npz")} == {
        "ablation-of-test",
        "covariance",
        "directions",
        "feature_space",
    }
    with monkeypatch.context() as patched:
        for module, name in (
            (reducers, "_step"),
            (stage.pairs, "_remove"),
            (stage.controls, "covariance_root"),
        ):
            patched.setattr(module, name, lambda *_, name=name, **__: pytest.fail(f"{name} was repeated"))
        stage.run(config, workdir)
    assert not (folder / "passes").exists()
    resumed = {path.name: artifacts.read_table(path) for path in folder.glob("*.parquet")}
    assert {"all_features.parquet", "cumulative.parquet", "input_space.parquet"} <= resumed.keys()
    folder.rename(workdir / "stopped")
    stage.run(config, workdir)
    for name, table in resumed.items():
        assert table.equals(artifacts.read_table(folder / name)), name
