"""One of two processes is told to stop: both stop at the same step, and the study ends as if neither had.

The real pipeline on loopback, two processes of one device each, in the tiny form of the fault runner.
"""

import os
import socket
import subprocess
import sys

import pytest

from jsae.runtime import checkpoints, failpoints
from launch.faults import compare_runs, runs

pytestmark = pytest.mark.skipif(
    not os.environ.get("JSAE_SLOW_TESTS"), reason="eight whole processes; JSAE_SLOW_TESTS=1 runs it"
)
SETTINGS = [flag for flag in runs.TINY if ".dims=" not in flag]  # given twice, tuples are joined
SETTINGS += ["--config.classifier.depths=(0,0,0,1)", "--config.classifier.dims=(4,4,4,8)"]
PROGRAM = "from launch import start; start.run_stages(['classifier', 'activations', 'sae'])"


def run(workdir, environment, fail="", of=1):
    """Exit code and stderr of both processes; `fail` is the JSAE_FAIL of process `of`."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = []
    for i in range(2):
        joined = {
            "JSAE_COORDINATOR": f"127.0.0.1:{port}",
            "JSAE_NUM_PROCESSES": "2",
            "JSAE_PROCESS_ID": str(i),
            "JAX_NUM_CPU_DEVICES": "1",
            "XLA_FLAGS": "--xla_backend_optimization_level=0",  # compiling is most of the time
            "JSAE_GRACE_S": "300",  # on a busy machine a step may take long
        }
        if i == of:
            joined[failpoints.VARIABLE] = fail
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", PROGRAM, f"--workdir={workdir}", *SETTINGS],
                env=environment | joined,
                cwd=runs.ROOT,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        said = [process.communicate(timeout=540)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


@pytest.fixture(scope="module")
def calm(clean_environment, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("calm")
    codes, said = run(workdir, clean_environment)
    assert codes == [0, 0], said
    return workdir


def test_both_stop_at_the_step_at_which_one_was_told_to(calm, clean_environment, tmp_path):
    for stage, fail, of, step in (
        ("classifier", "term@progress/classifier#7", 1, 7),
        ("sae", "int@progress/sae#3", 0, 16),  # dispatches of four steps, told of while the next one runs
    ):
        codes, said = run(tmp_path, clean_environment, fail, of)
        assert codes == [75, 75], said
        assert ["stopping at the next" in text for text in said] == [i == of for i in range(2)]
        saved = checkpoints.Checkpoints(tmp_path / stage / "checkpoints")
        assert saved.latest_step() == step
        saved.close()
    codes, said = run(tmp_path, clean_environment)
    assert codes == [0, 0], said
    assert compare_runs.compare(calm, tmp_path) == []
