"""The report of a made-up study, built once for all tests of the report."""

import pathlib

import pytest

from tests.report import fake_study


@pytest.fixture(scope="session")
def made_up_study(tmp_path_factory):
    """The workdir of a made-up study; do not write to it."""
    return fake_study.make_workdir(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def report(made_up_study, tmp_path_factory):
    """The folder of its report, with pages of 12 of its 64 features."""
    out = tmp_path_factory.mktemp("report")
    assert fake_study.make_report(made_up_study, out) == 12
    return pathlib.Path(out)
