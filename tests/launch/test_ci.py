""".ci/run: it fails where the tests in a browser were skipped, and says nothing where they ran."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RAN = '<testcase classname="tests.report.test_browser" name="test_a" />'
SKIPPED = '<testcase classname="tests.report.test_browser" name="test_a"><skipped message="no" /></testcase>'
NO_MODULE = '<testcase classname="" name="tests.report.test_browser"><skipped message="no" /></testcase>'
OTHER = '<testcase classname="tests.test_study" name="test_b"><skipped message="slow" /></testcase>'


@pytest.mark.parametrize(
    "cases, ci, code",
    [
        (RAN + OTHER, "true", 0),
        (RAN + SKIPPED, "true", 1),
        (NO_MODULE, "true", 1),
        (OTHER, "true", 1),
        (SKIPPED, "", 0),
    ],
)
def test_skipped_browser_tests_fail_in_ci(tmp_path, cases, ci, code):
    for folder in (".ci", "launch", ".venv/bin", "bin"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "results.xml").write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
    programs = {"launch/test.sh": 'cp results.xml "${1#--junitxml=}"', "bin/chromium": "", "bin/apt-get": ""}
    for name, text in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"CI": ci, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        [str(tmp_path / ".ci" / "run")], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    assert ("tests in a browser were skipped" in done.stderr) == (code == 1)


def test_a_commit_is_checked_as_the_tests_begin():
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    for line in (ROOT / "launch" / "test.sh").read_text().splitlines():
        if line.startswith(".venv/bin/python -m"):
            assert f"entry: {line.removesuffix(' .')}" in hooks, line
