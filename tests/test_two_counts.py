"""Two processes of which one would do more than the other: they go on together, and end together.

Each process computes much for itself, and where their numbers differ in the last bit one may have more
iterations, pairs or passes. Process 1 is made to differ on purpose.
"""

import sys

import pytest

from tests.together import together

START = """
import os, pathlib, signal, sys, time, types
from jsae.runtime import preemption
signals = preemption.install()
import jax, numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jsae.classifier import run as classifier_run
from jsae.data import cache
from jsae.runtime import mesh, passes, stages
from jsae.runtime.context import RunContext
mesh.initialize(signals)
context = RunContext()
here, folder = jax.process_index(), pathlib.Path(sys.argv[1])
told = here == int(sys.argv[2])
"""
END = """
with signals.ending_together():
    end()
"""
PROGRAM = """
rng = np.random.default_rng(here)  # other pixels: another number of iterations, and another accuracy
def split(name):
    images = rng.integers(0, 256, (24, 8, 8, 3), np.uint8)
    labels, ids = np.arange(24, dtype=np.int32) % 3, tuple(f"{name}{i}" for i in range(24))
    return cache.Split(name, images, labels, ids, ("a", "b", "c"))
iterations = []
check = lambda: iterations.append(1) or context.check_here()
splits = {n: split(n) for n in ("train", "val", "test")}
made = types.SimpleNamespace  # what the stage hands over
this = made(splits=splits, config=made(seed=0), stage=made(context=made(check_here=check)))
accuracy = classifier_run._pixel_baseline(this)
assert bool(iterations) == mesh.is_writer(), len(iterations)

stage = stages.Stage("ablation", epath.Path(folder) / f"host{here}", {}, False)
own = passes.Passes(stage, ())  # two disks of which only one shows the file
kept = own("effects", lambda: [float(here), accuracy])()
for _ in range(3 + 4 * here):  # pairs that a process has by its own numbers
    check()
assert mesh.of_writer(lambda: {"rows": [here]}) == {"rows": [0]}
again = passes.Passes(stage, ())
found = again("effects", lambda: sys.exit("process %d computes it again" % here))()
assert kept == found and kept[0] == 0.0, (kept, found)

made_here = []
parts = mesh.shared(5, lambda i: made_here.append(i) or np.array([i, 1 / 3]))  # in float64, none twice
assert [part.tolist() for part in parts] == [[i, 1 / 3] for i in range(5)]
assert made_here == list(range(here, 5, 2)), made_here

stage = epath.Path(folder) / "study" / "report"
if here == 0:
    stage.mkdir(parents=True)
    kind, rmtree = type(stage), type(stage).rmtree
    kind.rmtree = lambda *arguments, **named: (time.sleep(0.5), rmtree(*arguments, **named))  # a slow disk
mesh.wait_for_all("made")
stages.restart({}, folder / "study", "report")
assert not stage.exists(), "process %d reads what is being dropped" % here
print("done", accuracy, flush=True)
mesh.wait_for_all("end")
waits = []
for name in ("process_allgather", "broadcast_one_to_all", "sync_global_devices"):
    wait = getattr(multihost_utils, name)
    setattr(multihost_utils, name, lambda *a, wait=wait, **named: waits.append(wait) or wait(*a, **named))
def end():
    step = 1
    while not context.requested_by_any():
        step += 1
        if told and step == 120:
            os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(0.002 * (1 + here))  # one is ahead of the other
    print("stopped at", step, len(waits), flush=True)
    if told:  # in work of its own, while the other waits for it
        context.check_here()
    mesh.wait_for_all("never")
"""
STUCK = """
mesh.wait_for_all("both are here")
def end():
    if told:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(100)  # as in a long compilation
    mesh.wait_for_all("never")
"""
FAILS = """
mesh.wait_for_all("both are here")
def end():
    if told:
        raise OSError("the disk of this process is full")
    mesh.wait_for_all("never")
"""


def run(program, folder, which, environment, grace_s=120):  # a busy machine may be slow to come to a poll
    """[(exit code, stdout, stderr)] of both processes; `which` is the one that is told."""
    command = [sys.executable, "-c", START + program + END, str(folder), str(which)]
    return together(command, environment | {"JSAE_GRACE_S": str(grace_s)})


def test_where_one_would_take_more_iterations_both_go_on_and_stop_at_the_same_step(
    clean_environment, tmp_path
):
    ended = run(PROGRAM, tmp_path, 1, clean_environment)
    assert [code for code, *_ in ended] == [75, 75], ended
    words = ("done ", "stopped at ")
    said = [[line for line in out.splitlines() if line.startswith(words)] for _, out, _ in ended]
    assert said[0] == said[1] and len(said[0]) == 2, ended
    step, n_waits = map(int, said[0][1].split()[2:])
    assert step >= 120 and n_waits == 0, ended
    assert "SIGUSR1: stopping" in ended[1][2] and "process 1 has stopped" in ended[0][2], ended


@pytest.mark.parametrize(
    "program, code, why",
    [(STUCK, 75, "process 0 was told to stop (SIGTERM); no"), (FAILS, 1, "process 0 ended with exit code 1")],
)
def test_the_end_of_one_is_the_end_of_both(clean_environment, tmp_path, program, code, why):
    ended = run(program, tmp_path, 0, clean_environment, grace_s=3)
    assert [code for code, *_ in ended] == [code, code], ended
    assert why in ended[1][2] or "process 0 has stopped: no consistent point" in ended[1][2], ended
