"""The table of dictionaries: its scores and its markdown."""

import numpy as np
import pytest

from jsae import metrics
from jsae.analysis import dictionaries
from jsae.experiments import baselines
from jsae.tables import documentation
from tests.ablation.toy import reduce

ROW = {
    "dictionary": "pca",
    "n_features": 256,
    "l0": 12.5,
    "fvu": None,
    "purity16": 0.25,
    "class_selective_share": 0.5,
    "class_auroc": 0.9,
    "part_auroc": float("nan"),
    "effect_minus_control": -0.1234,
    "effect_minus_control_low": -0.2,
    "effect_minus_control_high": -0.05,
    "seconds": 1.0,
}


def test_the_best_feature_of_each_class_counts():
    features = {
        "top_class": [0, 0, 1, None, 1],
        "auroc": [0.7, 0.9, 0.8, None, 0.99],
        "eligible": [True, True, True, False, False],
    }
    assert baselines.class_auroc(features, 3) == pytest.approx((0.9 + 0.8 + 0.5) / 3)


def test_the_markdown_has_a_row_a_dictionary_and_dashes_for_unknown_numbers():
    table = baselines.TABLE.of_rows([ROW])
    assert all(documentation(table).values())
    lines = baselines.markdown(table.to_pylist()).splitlines()
    assert len(lines) == 3 and len({line.count("|") for line in lines}) == 1
    assert lines[2] == ("| pca | 256 | 12.500 | – | 0.250 | 0.500 | 0.900 | – | -0.123 [-0.200, -0.050] |")


def test_rows_of_another_ablation_stage_are_not_kept(tmp_path):
    path = tmp_path / baselines.TABLE.file
    assert baselines._rows_of(path, "abc") == []
    baselines.artifacts.write_table(path, baselines.TABLE.of_rows([ROW]), {"upstream": "abc"})
    assert [row["dictionary"] for row in baselines._rows_of(path, "abc")] == ["pca"]
    assert baselines._rows_of(path, "def") == []


def test_fvu_and_l0_are_those_of_all_vectors():
    acts = np.random.default_rng(0).normal(size=(10, 2, 2, 3)).astype(np.float32)
    half = dictionaries.signed(np.eye(3)[:1], np.zeros(3))
    sums = reduce(baselines.MeasureReconstruction(), half, acts, size=4)
    found = metrics.sae_metrics(sums.sae)
    x = acts.reshape(-1, 3)
    x_hat = x * np.array([1, 0, 0])
    assert found["fvu"] == pytest.approx(
        np.square(x - x_hat).sum() / np.square(x - x.mean(0)).sum(), rel=1e-5
    )
    assert found["l0"] == pytest.approx((x[:, 0] != 0).mean())
