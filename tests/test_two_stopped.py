"""One of two processes is told to stop: both stop at the same step, and the study ends as if neither had.

The real pipeline on loopback, two processes of one device each, in the tiny form of the fault runner.
"""

import os

import pytest

from jsae.runtime import checkpoints
from launch.faults import compare_runs, runs

pytestmark = pytest.mark.skipif(
    not os.environ.get("JSAE_SLOW_TESTS"), reason="eight whole processes; JSAE_SLOW_TESTS=1 runs it"
)


def run(workdir, codes, fail="", of=0):
    """Stderr of both processes, whose exit codes must be these; `fail` is the failpoint of process `of`."""
    ended = runs.run_together(workdir, of=of, fail=fail)
    assert [each.code for each in ended] == codes, [each.lines[-9:] for each in ended]
    return ended


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calm")
    run(workdir, [0, 0])
    return workdir


def test_both_stop_at_the_step_at_which_one_was_told_to(calm, tmp_path):
    for stage, fail, of, step, ahead in (  # how far the other one may be ahead when it hears of it
        ("classifier", "term@progress/classifier#7", 1, 7, 2),
        ("sae", "int@progress/sae#3", 0, 16, 8),  # dispatches of four steps, told of while the next one runs
    ):
        ended = run(tmp_path, [75, 75], fail, of)
        assert [each.says("stopping at the next") for each in ended] == [i == of for i in range(2)]
        saved = checkpoints.Checkpoints(tmp_path / stage / "checkpoints")
        assert step <= saved.latest_step() <= step + ahead
        saved.close()
    run(tmp_path, [0, 0])
    assert compare_runs.compare(calm, tmp_path) == []
