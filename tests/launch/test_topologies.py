"""Studies on several processes: one writer, the numbers of one process, a run that changes its topology."""

import json
import os

import pytest

from launch.faults import topologies


@pytest.fixture
def environment(clean_environment, monkeypatch):
    """That of the subprocesses, which `launch.faults.topologies` takes from this process."""
    for name in set(os.environ) - set(clean_environment):
        monkeypatch.delenv(name)
    for name, value in clean_environment.items():
        monkeypatch.setenv(name, value)


def test_an_sae_stopped_on_two_processes_goes_on_in_one(study_dir, environment, tmp_path, note_case):
    """From 2 processes x 2 devices with the dictionary dealt over two, to one process and its two devices."""
    often = ["--config.sae.save_every_steps=10", "--config.sae.steps_per_dispatch=2"]
    row = topologies.changed(
        tmp_path / "change", study_dir, ((2, 2), (1, 1)), 2, ["--config=configs/demo.py:small", *often]
    )
    expected = json.loads((study_dir / "summary.json").read_text())["sae"]
    assert abs(row["fvu"] / expected["fvu"] - 1) < 0.005
    assert row["l0"] == pytest.approx(expected["l0"], rel=0.005)
    assert topologies.is_written_once(tmp_path / "change")
    assert "going on from step" in (tmp_path / "change" / "log.txt").read_text()
    given = "stopped with 2 processes of 2 devices (model=2), started again with 1 (model=1)"
    note_case("5. runs", given, "goes on from the last checkpoint; fvu and l0 within 0.5%")


@pytest.mark.skipif("JSAE_SLOW_TESTS" not in os.environ, reason="minutes; set JSAE_SLOW_TESTS to run it")
def test_two_processes_make_the_study_that_one_makes(environment, tmp_path):
    short = {
        "data.n_train": 256,
        "data.n_val": 64,
        "data.n_test": 256,
        "classifier.n_epochs": 1.0,
        "sae.n_epochs": 8.0,
        "sae.lr_warmup_steps": 2,
    }
    arguments = ["--config=configs/demo.py:small", *(f"--config.{k}={v}" for k, v in short.items())]
    one, two = (topologies.study(tmp_path / f"processes_{n}", n, 2, arguments) for n in (1, 2))
    assert two["rows of the logs"] == "once each"
    assert abs(two["fvu"] / one["fvu"] - 1) < 0.005
    assert abs(two["accuracy"] - one["accuracy"]) < 0.005
    assert (tmp_path / "processes_2" / "log.txt").read_text().count("report: done") == 1
