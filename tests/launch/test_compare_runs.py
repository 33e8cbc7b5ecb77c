"""Two workdirs compared: renamed tables, tolerances, what one of them lacks."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from launch.faults import compare_runs


def make(folder, table="all_features", column="mean_delta_low", part="foreground", off=0.0, top=3):
    """A workdir with one of each kind of file."""
    for name in ("ablation", "sae", "report/tables"):
        (folder / name).mkdir(parents=True)
    effects = np.array([1.0, 1.0 + off, -0.5])
    rows = {"part": ["wing", part, None], column: [2.0, None, off], "top_class": [1, None, top], "e": effects}
    pq.write_table(pa.table(rows | {"by_class": [[1.0], [2.0], [off]]}), folder / f"ablation/{table}.parquet")
    lines = [f"part,{column}", "wing,2.0", f"{part},", f",{off!r}"]
    (folder / f"report/tables/{table}.csv").write_text("\n".join(lines))
    metrics = [{"step": 1, "train/loss": 2.0 + off, "images_per_s": off}, {"step": 1, "eval/fvu": 0.5}]
    (folder / "sae/metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    results = {"n": top, part: {"share": [1.0, off]}, "seconds": off}
    manifest = {"config": {table: 1}, "digest": f"{off}", "results": results}
    (folder / "sae/manifest.json").write_text(json.dumps(manifest))
    tensors = {"w_dec": np.array([[1.0, off]], np.float32)}
    safetensors.numpy.save_file(tensors, folder / "sae/sae_weights.safetensors")
    return folder


def test_a_renamed_study_is_the_same(tmp_path):
    old = make(tmp_path / "old", "atlas", "ci95_low", "aircraft")
    (old / "ablation/agreement.parquet").write_bytes(b"dropped")
    (old / "report/index.html").write_text("old page")
    new = make(tmp_path / "new")
    found = compare_runs.Comparison(revisions=True)
    found.run(old, new)
    assert found.differences == [] and found.n_files == 5 and found.n_columns == 5 + 2 + 3 + 2 + 2
    strict = compare_runs.compare(old, new)
    assert [line.split(":")[0] for line in strict] == ["ablation/agreement.parquet", "report/index.html"]


@pytest.mark.parametrize("off, rtol, n_within", [(1e-7, 0.0, 0), (1e-7, 1e-6, 7), (1e-3, 1e-6, 0)])
def test_floats_differ_by_a_share_of_the_largest_of_their_column(tmp_path, off, rtol, n_within):
    found = compare_runs.Comparison(rtol, revisions=True)
    found.run(make(tmp_path / "one"), make(tmp_path / "other", off=off))
    names = {line.rsplit(":", 1)[0] for line in found.within or found.differences}
    assert len(found.within) == n_within and bool(found.differences) == (n_within == 0)
    table, csv = "ablation/all_features.parquet", "report/tables/all_features.csv"
    assert names == {
        f"{table}: e",
        f"{table}: by_class",
        f"{table}: mean_delta_low",
        f"{csv}: mean_delta_low",
        "sae/manifest.json: foreground.share",
        "sae/metrics.jsonl: train/loss",
        "sae/sae_weights.safetensors: w_dec",
    }
    assert any(f"{off / 2:.2g} of the largest" in line for line in found.within + found.differences)


def test_integers_are_equal_and_nothing_is_missing(tmp_path):
    one, other = make(tmp_path / "one"), make(tmp_path / "other", top=4)
    (other / "ablation/input_space.parquet").write_bytes(b"")
    found = compare_runs.compare(one, other, rtol=1.0, revisions=True)
    assert found == [
        f"ablation/input_space.parquet: only in {other}",
        "ablation/all_features.parquet: top_class: 1 of 3 differ",
        "sae/manifest.json: n: 1 of 1 differ",
    ]


def test_a_number_without_a_fraction_is_the_same_number(tmp_path):
    for name, value in (("one", 1), ("other", 1.0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").write_text(json.dumps({"accuracy": value}))
    assert compare_runs.compare(tmp_path / "one", tmp_path / "other") == []
