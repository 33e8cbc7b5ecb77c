"""Our SAEs beside other people's: the vectors they get, and the table."""

import json

import numpy as np
import pytest

from configs import demo
from jsae.runtime import artifacts, stages
from launch.benchmark import compare_peers
from launch.benchmark.sae import _make_store


def test_peers_get_normalised_vectors_and_the_settings(tmp_path):
    mean = np.arange(8.0)
    for split, n_images in (("train", 5), ("test", 3)):
        folder = tmp_path / "activations" / split
        _make_store(folder, n_images, (2, 2), 8)
        manifest = artifacts.read_json(folder / "manifest.json") | {"mean": mean.tolist(), "scale": 2.0}
        artifacts.write_json(folder / "manifest.json", manifest)
    artifacts.write_json(tmp_path / "config.json", stages.plain(demo.get_config()))
    compare_peers.write_vectors(tmp_path, tmp_path / "vectors.npz", n_seeds=4)
    written = np.load(tmp_path / "vectors.npz")
    settings = json.loads(str(written["settings"]))
    assert (settings["k"], settings["n_features"], settings["n_seeds"]) == (16, 512, 4)
    assert settings["prefix_shares"][-1] == 1
    assert written["train"].shape == (20, 8) and written["test"].shape == (12, 8)
    drawn = np.random.default_rng(0).standard_normal((3, 2, 2, 8), np.float32).reshape(-1, 8)
    np.testing.assert_allclose(written["test"], (drawn - mean) / 2, rtol=1e-5, atol=1e-6)


def test_the_table_has_the_spread_over_seeds_and_the_best_first():
    row = {"variant": "topk", "peer": "jsae", "fvu": 0.2, "l0": 8.0, "dead_fraction": 0.0}
    rows = [row, row | {"fvu": 0.3}, row | {"peer": "them", "fvu": 0.1, "dead_fraction": 0.125}]
    assert compare_peers.table(rows).splitlines()[2:] == [
        "| topk | them | 1 | 0.1 [0.1, 0.1] | 8 [8, 8] | 0.125 [0.125, 0.125] |",
        "| topk | jsae | 2 | 0.25 [0.2, 0.3] | 8 [8, 8] | 0 [0, 0] |",
    ]


def test_a_workdir_without_a_sweep_is_told_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_peers, "_WORKDIR", type("Flag", (), {"value": str(tmp_path)}))
    monkeypatch.setattr(compare_peers, "_VECTORS", type("Flag", (), {"value": None}))
    with pytest.raises(ValueError, match="no sweep; run"):
        compare_peers.main(["compare_peers"])
