"""launch.sweep on a finished extraction: killed, started again, looked at."""

import os
import pathlib
import shutil
import subprocess
import sys

from etils import epath

from jsae import sae
from jsae.runtime import artifacts
from jsae.study import Study

ROOT = pathlib.Path(__file__).parents[2]
COMMAND = [
    sys.executable,
    "-m",
    "launch.sweep",
    "--config=configs/demo.py:small",
    "--config.sae.n_epochs=4.0",
    "--config.sae.n_features=256",
]


def sweep(workdir, environment, k):
    command = [*COMMAND, f"--workdir={workdir}", f"--config.sweep.k={k}"]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_a_sweep_trains_what_is_missing_and_writes_one_table(study_dir, clean_environment, tmp_path):
    for name in ("classifier", "activations"):
        shutil.copytree(study_dir / name, tmp_path / name)
    done = sweep(tmp_path, clean_environment, "(4, 8)")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "sweep"
    rows = artifacts.read_table(folder / "table.parquet").to_pylist()
    assert [(row["k"], row["variant"], row["n_features"]) for row in rows] == [
        (4, "topk", 256),
        (8, "topk", 256),
    ]
    assert rows[0]["fvu"] > rows[1]["fvu"] and [row["l0"] for row in rows] == [4.0, 8.0]
    assert all(0 < row["accuracy_recovered"] <= 1.2 for row in rows)
    assert {path.name for path in folder.glob("*.svg")} == {"fvu.svg", "accuracy_recovered.svg"}
    assert sae.load(folder / rows[1]["digest"]).k == 8
    assert not (tmp_path / "config.json").exists()  # the study's own config is not touched

    assert (
        done.stdout.startswith("| variant | n_features | k |") and done.stdout.count("\n| topk | 256 |") == 2
    )
    # other values: the rows that are there stay as they are
    times = {row["digest"]: os.stat(folder / row["digest"] / "manifest.json").st_mtime_ns for row in rows}
    again = sweep(tmp_path, clean_environment, "(8, 16)")
    assert again.returncode == 0 and again.stderr.count("up to date") == 1, again.stderr[-3000:]
    found = Study(epath.Path(tmp_path), artifacts.read_json(study_dir / "config.json")).table("sweep")
    assert found["k"].to_pylist() == [4, 8, 16] and found.to_pylist()[:2] == rows
    assert again.stdout.count("\n| topk | 256 |") == 3
    for digest, time in times.items():
        assert os.stat(folder / digest / "manifest.json").st_mtime_ns == time


def test_an_empty_sweep_says_what_can_be_varied(study_dir, clean_environment, tmp_path):
    done = sweep(tmp_path, clean_environment, "()")
    assert done.returncode == 1 and "give a list for one of variant" in done.stderr
