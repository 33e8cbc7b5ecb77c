"""summary.json: the documented keys, null where unknown, never NaN."""

import json

import pytest

from jsae.report import summarise, write_summary
from jsae.runtime import artifacts, stages
from tests.report import fake_results, fake_study

OF_THE_ABLATED = {
    *(f"mean_delta_{measure}" for measure in ("logit", "margin", "confidence")),
    "ablated_own_class_margin",
    *(f"control_{kind}_mean_delta_margin" for kind in ("direction", "auroc", "feature")),
    *(f"own_class_minus_{kind}_margin" for kind in ("direction", "auroc", "feature")),
}
FEATURE_SPACE = {
    *("n_own_class", "own_class_margin_mean", "own_class_margin_median", "label_margin_mean"),
    *("label_margin_median", "n_features", "n_images"),
    *OF_THE_ABLATED,
    *(f"{mean}_ci95" for mean in OF_THE_ABLATED),
}
INPUT_SPACE = {"n_features", "n_images", "fall_median", "qualified_share", "control_fall_median"}
SAE_KEYS = {"variant", "n_channels", "n_features", "l0", "fvu", "pca_fvu", "dead_fraction"}
COSTS = (
    "seconds",
    "compile_seconds",
    "attempts",
    "lost_work_seconds",
    "peak_memory_mib",
    "peak_device_memory_mib",
)
STAGES = {"classifier", "activations", "sae", "analysis", "ablation", "report"}


def check_keys(summary):
    rooms = {"classifier", "sae", "analysis", "pixel_maps", "ablation", "ground_truth", "device"}
    assert set(summary) == rooms | set(COSTS)
    areas = {"insertion_auc", "deletion_auc"}
    assert set(summary["pixel_maps"]) == areas | {f"activation_map_{area}" for area in areas}
    assert set(summary["classifier"]) == {"arch", "site", "test_accuracy", "test_mean_per_class_accuracy"}
    assert set(summary["sae"]) == SAE_KEYS | {"accuracy_recovered", "ce_recovered"}
    assert set(summary["analysis"]) == {"n_features_alive", "n_class_selective", "n_excluded_by_q"}
    assert set(summary["ablation"]) == {"feature_space", "input_space"}
    assert set(summary["ablation"]["feature_space"]) == FEATURE_SPACE
    assert set(summary["ablation"]["input_space"]) == INPUT_SPACE
    assert set(summary["device"]) == {"kind", "count"}
    assert all(set(summary[cost]) == STAGES for cost in COSTS)


def leaves(tree):
    for value in tree.values():
        if isinstance(value, dict):
            yield from leaves(value)
        else:
            yield value


def test_keys_and_values_of_a_finished_study(tmp_path):
    workdir = fake_study.make_workdir(tmp_path)
    written = write_summary(fake_study.CONFIG, workdir)
    check_keys(written)
    assert written == json.loads((workdir / "summary.json").read_text())
    assert written["classifier"]["site"] == "stage4"
    assert written["classifier"]["arch"] == "atto"
    assert written["sae"]["accuracy_recovered"] == 0.967
    assert written["ablation"]["feature_space"]["mean_delta_margin_ci95"] == pytest.approx([-0.933, -0.803])
    assert written["seconds"]["sae"] == pytest.approx(3 * 12.345)
    assert written["seconds"]["report"] is None


def test_ground_truth_has_every_dictionary_and_the_experiments_that_were_run(tmp_path):
    workdir = fake_study.make_workdir(tmp_path)
    truth = summarise(fake_study.CONFIG, workdir)["ground_truth"]
    names = {"supervised", "sae", "frozen_decoder", "rotation", "channels", "pca", "random_matched"}
    others = {"n_pairs", "twin_accuracy", "m", "input_space", "planted", "seeds"}
    assert set(truth) == names | others
    for name in names:
        assert set(truth[name]) == {"share", "leak", "tracking", "isolated", "faithfulness"}
        assert set(truth[name]["faithfulness"]) == {"zero", "mean", "set_to"}
    assert truth["m"] == [1, 4, 16, 32] and truth["n_pairs"] == 8
    assert truth["sae"]["share"] == [0.2, 0.4, 0.6, 0.8] and truth["supervised"]["share"] == [0.2]
    assert truth["pca"]["share"] is None  # not measured
    assert set(truth["input_space"]) == {"fall_median", "qualified_share", "control_fall_median"}
    assert truth["planted"] is None and truth["seeds"] is None
    planted = {"topk": {"dose": [0.01], "share": [0.65], "leak": [0.0]}}
    artifacts.write_json(workdir / "planted" / "results.json", planted)
    assert summarise(fake_study.CONFIG, workdir)["ground_truth"]["planted"] == planted


def test_all_null_where_nothing_has_run(tmp_path):
    summary = summarise(fake_study.CONFIG, tmp_path)
    check_keys(summary)
    assert set(leaves(summary)) == {None}


@pytest.mark.parametrize("name", sorted(STAGES - {"report"}))
def test_a_missing_stage_leaves_nulls_and_the_rest(tmp_path, name):
    summary = summarise(fake_study.CONFIG, fake_study.make_workdir(tmp_path, without={name}))
    check_keys(summary)
    assert summary["seconds"][name] is None
    assert sum(value is not None for value in summary["seconds"].values()) == 4


def test_a_stage_that_is_not_finished_counts_as_missing(tmp_path):
    workdir = fake_study.make_workdir(tmp_path)
    path = workdir / "sae" / "manifest.json"
    artifacts.write_json(path, artifacts.read_json(path) | {"status": "started"})
    assert summarise(fake_study.CONFIG, workdir)["sae"]["fvu"] is None


def test_nan_becomes_null_and_a_half_known_pair_is_unknown(tmp_path, monkeypatch):
    workdir = fake_study.make_workdir(tmp_path)
    results = fake_results.results()
    results["sae"]["fvu"] = float("nan")
    results["ablation"]["feature_space"]["mean_delta_margin_ci95"] = [float("-inf"), 0.5]
    monkeypatch.setattr(
        stages,
        "read_manifest",
        lambda config, workdir, name: {"status": "complete", "results": results.get(name, {})},
    )
    summary = write_summary(fake_study.CONFIG, workdir)
    assert summary["sae"]["fvu"] is None
    assert summary["ablation"]["feature_space"]["mean_delta_margin_ci95"] is None
