"""The whole study on two processes with two devices each: one writer, and the numbers of one process."""

import os

import pytest

from launch import topologies

SHORT = {
    "data.n_train": 256,
    "data.n_val": 64,
    "data.n_test": 256,
    "classifier.n_epochs": 1.0,
    "sae.n_epochs": 8.0,
    "sae.lr_warmup_steps": 2,
    "sae.save_every_steps": 4,
}


@pytest.fixture
def environment(clean_environment, monkeypatch):
    """That of the subprocesses, which `launch.topologies` takes from this process."""
    for name in set(os.environ) - set(clean_environment):
        monkeypatch.delenv(name)
    for name, value in clean_environment.items():
        monkeypatch.setenv(name, value)


def test_two_processes_make_the_study_that_one_makes_and_one_goes_on_where_two_stopped(environment, tmp_path):
    arguments = ["--config=configs/demo.py:small", *(f"--config.{k}={v}" for k, v in SHORT.items())]
    rows = [topologies.study(tmp_path / f"processes_{n}", n, 2, arguments) for n in (1, 2)]
    one, two = rows
    assert two["rows of the logs"] == "once each"
    assert abs(two["fvu"] / one["fvu"] - 1) < 0.005
    assert abs(two["accuracy"] - one["accuracy"]) < 0.005
    log = (tmp_path / "processes_2" / "log.txt").read_text()
    assert log.count("report: done") == 1

    change = ((2, 2), (1, 1))  # processes and model axis before and after the stop
    row = topologies.changed(tmp_path / "change", tmp_path / "processes_1", change, 2, arguments)
    assert abs(row["fvu"] / one["fvu"] - 1) < 0.005
