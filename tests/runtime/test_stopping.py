"""Signals are heard whatever the main thread does; lost work is counted; the stuck are named."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from jsae.runtime import artifacts, attempts, checkpoints, memory, mesh, peers, preemption, stages, watchdog
from jsae.runtime.context import RunContext
from launch.faults import points

ROOT = pathlib.Path(__file__).parents[2]

WAITS = """
import signal, sys
from jsae.runtime import preemption
preemption.install()
signal.signal(signal.SIGTERM, lambda *_: None)  # as if the main thread never came to run the handler
print("ready", flush=True)
import time
time.sleep(60)
"""


def signalled(program, environment, *signals):
    """(exit code, stderr, seconds from the last signal to the end)."""
    code, _, err, seconds = heard(program, environment, *signals)
    return code, err, seconds


def heard(program, environment, *signals):
    """(exit code, stdout after "ready", stderr, seconds from the last signal to the end)."""
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "ready\n"
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        since = time.monotonic()
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err, time.monotonic() - since


def test_where_no_consistent_point_comes_the_run_ends_with_75_in_time(clean_environment):
    code, err, seconds = signalled(WAITS, clean_environment | {"JSAE_GRACE_S": "0.5"}, signal.SIGTERM)
    assert code == 75 and "no consistent point came within 0.5 s" in err and seconds < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_also_in_a_long_call(clean_environment, number):
    code, _, seconds = signalled(WAITS, clean_environment, signal.SIGTERM, number)
    assert code == 128 + number and seconds < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_sets_the_flag_and_the_second_ends_at_once(number):
    program = (
        "import os\n"
        "from jsae.runtime import preemption\n"
        "signals = preemption.install()\n"
        "assert not signals.is_asked()\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "assert signals.is_asked()\n"
        f"os.kill(os.getpid(), {int(number)})\n"
        "os._exit(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + number and done.stderr.count("stopping at the next") == 1, done.stderr


SAVES = """
import time
from jsae.runtime import preemption
signals = preemption.install()
if "{how}" == "after the point":
    from jsae.runtime.context import RunContext
    context = RunContext()
print("ready", flush=True)
class Background:
    until = time.monotonic() + 4.0
    def is_saving_in_progress(self):
        return time.monotonic() < self.until
how = "{how}"
if how == "after the point":
    while not context.requested_by_any():
        time.sleep(0.01)
    time.sleep(4.0)
elif how == "before the signal":
    with preemption.saving():
        time.sleep(4.0)
else:
    background = Background()
    preemption.hold_for(background)
    time.sleep(4.0)
print("whole", flush=True)
assert signals.is_asked()
if how == "after the point":
    context.check()
raise preemption.Preempted
"""


@pytest.mark.parametrize("how", ["after the point", "before the signal", "in the background"])
def test_a_save_that_has_begun_ends_whole_however_short_the_grace(clean_environment, how):
    program = SAVES.replace("{how}", how)
    code, out, err, _ = heard(program, clean_environment | {"JSAE_GRACE_S": "3"}, signal.SIGTERM)
    assert code == 75 and out == "whole\n" and "no consistent point" not in err, (code, out, err)


def test_a_save_has_a_deadline_of_its_own():
    clock = Clock()

    def passes(seconds, is_saving=False):
        clock.now += seconds
        return deadline.overdue(is_saving)

    deadline = preemption.Deadline(25, 600, clock)
    assert not passes(1000) and not deadline.is_running()
    deadline.ask()
    assert not passes(24) and passes(1), "no poll came"
    deadline = preemption.Deadline(25, 600, clock)
    deadline.ask()
    assert not passes(300, is_saving=True) and not passes(24) and passes(1), "the save ended, no poll came"
    deadline = preemption.Deadline(25, 600, clock)
    deadline.ask()
    assert passes(600, is_saving=True), "a save that never ends"
    deadline = preemption.Deadline(25, 600, clock)
    deadline.ask()
    deadline.answer()
    assert not passes(599) and passes(1) and deadline.code == 75 and "the save took more than" in deadline.why
    deadline = preemption.Deadline(25, 600, clock)
    deadline.answer()  # the handler was heard first, and the thread comes to it now
    deadline.ask()
    assert not passes(599) and passes(1)
    deadline = preemption.Deadline(25, 600, clock)
    deadline.end(2, "process 1 ended with exit code 1", 1)
    assert passes(2, is_saving=True), "that save waits for a process that is gone"
    deadline = preemption.Deadline(25, 25, clock)  # another process has left: nothing more can come
    deadline.ask()
    deadline.end(2, "process 1 ended with exit code 1", 1)
    deadline.answer()
    deadline.ask()
    deadline.end(9, "the end took long", 75)
    assert not passes(1.9) and passes(0.1) and deadline.code == 1 and deadline.why.startswith("process 1")


@pytest.fixture
def signals(monkeypatch):
    """What `install` would have made, without its handlers."""
    monkeypatch.setattr(preemption, "_installed", preemption.Signals(preemption.Deadline()))
    return preemption.installed()


def test_files_and_checkpoints_hold_the_time_up(tmp_path, signals, monkeypatch):
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *a: seen.append(signals.is_saving()) or replace(*a))
    artifacts.write_bytes(tmp_path / "file", b"x")
    assert seen == [True] and not signals.is_saving()
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
    with monkeypatch.context() as patch:
        patch.setattr(saved._manager, "is_saving_in_progress", lambda: True)  # in the background
        assert signals.is_saving()
    monkeypatch.setattr(saved._manager, "wait_until_finished", lambda: seen.append(signals.is_saving()))
    saved.wait()
    assert seen == [True, True] and not signals.is_saving()


def test_a_context_hears_of_the_signals_of_its_process_and_of_none_without_handlers(signals):
    assert not RunContext(signals=None).requested_here() and not RunContext(signals=None).requested_by_any()
    points = []
    context = RunContext(failpoint=points.append)
    assert context.signals is signals and not context.requested_by_any()
    signals._on_signal(signal.SIGUSR1, None)
    assert context.requested_by_any() and context.requested_here() and signals.deadline._phase == "answered"
    with context.progress(3, label="x") as bar:
        bar.update(2)
    assert points == ["poll", "poll", "poll", "progress/x"] and context.n_steps == 4


def test_another_process_that_was_told_to_stop_is_heard_here_and_agreed_upon(signals):
    context = RunContext()
    signals._hear(1, "asked", "SIGTERM")
    assert context.requested_here() and not context.requested_by_any(), "all stop at the same call"


def test_no_process_tidies_up_before_all_have_looked(tmp_path, monkeypatch):
    """What process 0 removes or writes, and where the others wait meanwhile."""
    order = []
    monkeypatch.setattr(mesh, "wait_for_all", lambda name: order.append("wait"))
    for module, name in ((artifacts, "drop_unfinished"), (checkpoints, "_check_metrics")):
        monkeypatch.setattr(module, name, lambda *_, name=name: order.append(name))
    config = {"seed": 0, "data": {}, "classifier": {}}
    stages.begin(config, tmp_path, "classifier")
    (tmp_path / "classifier" / "something").touch()
    assert order == ["wait", "drop_unfinished"]
    stage = stages.begin(config, tmp_path, "classifier")
    assert order[2:] == ["wait", "drop_unfinished"]
    manager = checkpoints.ocp.CheckpointManager
    monkeypatch.setattr(
        checkpoints.ocp, "CheckpointManager", lambda *a, **k: order.append("list") or manager(*a, **k)
    )
    checkpoints.Checkpoints(tmp_path / "classifier" / "checkpoints").close()
    assert order[4:] == ["_check_metrics", "wait", "list"]
    passes = stage.folder / stages.PASSES
    passes.mkdir()
    write = artifacts.write_json
    monkeypatch.setattr(
        artifacts, "write_json", lambda *a: order.append("write" if passes.exists() else "drop") or write(*a)
    )
    stage.finish({})
    assert order[7:] == ["wait", "drop", "wait"], "complete once all have come to the end"
    stages.restart(config, tmp_path, "classifier")
    assert order[10:] == ["wait"] and not (tmp_path / "classifier").exists()


POLLS = """
import time
from jsae.runtime import preemption
signals = preemption.install()
print("ready", flush=True)
until = time.monotonic() + {lives}
while time.monotonic() < until:
    if signals.is_told():
        raise preemption.Preempted
    time.sleep(0.01)
print("went on", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU])
def test_what_schedulers_send_asks_for_a_stop(clean_environment, number):
    code, _, err, _ = heard(POLLS.replace("{lives}", "60"), clean_environment, number)
    assert code == 75 and f"{number.name}: stopping" in err


def test_a_second_one_of_a_scheduler_does_not_hurry_it(clean_environment):
    number = signal.SIGUSR1
    program = SAVES.replace("{how}", "after the point")
    code, out, _, _ = heard(program, clean_environment, number, number, signal.SIGTERM)  # the time is up now
    assert code == 75 and out == "whole\n"


def test_a_terminal_that_goes_away_does_not_stop_the_run(clean_environment):
    code, out, _, _ = heard(POLLS.replace("{lives}", "1"), clean_environment, signal.SIGHUP, signal.SIGHUP)
    assert code == 0 and out == "went on\n"


def test_what_was_ignored_before_stays_ignored(clean_environment):
    """As nohup and a scheduler's `trap "" USR1` leave it."""
    ignore = "import signal\nfor n in (signal.SIGHUP, signal.SIGUSR1): signal.signal(n, signal.SIG_IGN)\n"
    look = "assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN\nprint("
    program = ignore + POLLS.replace("print(", look, 1).replace("{lives}", "1")
    code, out, err, _ = heard(program, clean_environment, signal.SIGUSR1)
    assert code == 0 and out == "went on\n", err


@pytest.mark.parametrize("name", ["JSAE_GRACE_S", "JSAE_SAVE_S"])
@pytest.mark.parametrize("text", ["2m", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit, match=f"{name}='{text}' is not a number of seconds"):
        preemption._seconds(name, 25.0)


class Store:
    """The store that jax's processes share, as far as it is used."""

    def __init__(self):
        self.words = {}

    def key_value_set(self, key, text):
        assert key not in self.words
        self.words[key] = text

    def key_value_dir_get(self, folder):
        return [(key, text) for key, text in self.words.items() if key.startswith(folder)]


def test_processes_hear_of_each_other_once_and_not_of_themselves():
    store, heard_of = Store(), []
    others = peers.Peers(store, 1, 3)
    for _ in range(2):
        others.tell("asked", "SIGTERM")  # the second one is not written
    store.words |= {"jsae/0/asked": "SIGUSR1", "jsae/2/left": "75 why"}
    for _ in range(2):
        others.read(lambda *word: heard_of.append(word))
    assert sorted(heard_of) == [(0, "asked", "SIGUSR1"), (2, "left", "75 why")]
    assert store.words["jsae/1/asked"] == "SIGTERM"
    assert others.wait_for_news("left", 0) and not others.wait_for_news("other", 0)
    lost = ValueError("UNKNOWN: Gloo AllGather failed: [pair.cc:547] Connection closed by peer [::1]:7\nmore")
    said = others.explain(lost)
    assert "another process of this run has ended" in said and "more" not in said
    assert others.explain(ValueError("config.sae.k=0")) is None


@pytest.mark.parametrize("running, stop_at", [((0, 1, 2), 8), ((0, 2), 7)])
def test_all_stop_at_the_first_poll_that_none_has_behind_it(running, stop_at):
    store, n_polls = Store(), (5, 7, 6)
    all_of_them = [peers.Peers(store, index, 3) for index in range(3)]
    for each, n in zip(all_of_them, n_polls, strict=True):
        assert not any(each.is_stop_due(False) for _ in range(n))
    if 1 not in running:
        all_of_them[1].tell("done", "0")  # its run has ended; it hears of nothing
    all_of_them[0].tell("asked", "SIGTERM")
    for index in (*running, *running):
        all_of_them[index].read(lambda *_: None)
        assert all_of_them[index]._written["polls"].wait(60)
    for index in running:
        assert not all_of_them[index]._halts
        polls = [all_of_them[index].is_stop_due(False) for _ in range(stop_at - n_polls[index])]
        assert polls == [False] * (len(polls) - 1) + [True] and all_of_them[index].is_stop_due(True)


def test_a_process_that_was_asked_makes_no_poll_before_the_others_have_answered():
    store = Store()
    here, there = (peers.Peers(store, index, 2) for index in range(2))
    polling = threading.Thread(target=lambda: found.append(here.is_stop_due(True)), daemon=True)
    found = []
    polling.start()
    since = time.monotonic()
    while "jsae/0/polls" not in store.words and time.monotonic() - since < 60:
        time.sleep(0.01)
    assert "jsae/0/polls" in store.words and not found
    for each in (there, here):  # its main thread is in a collective meanwhile
        each.read(lambda *_: None)
        assert each._written["polls"].wait(60)
    polling.join(60)
    assert found == [True] and there.is_stop_due(False)


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_attempts_count_what_was_lost(tmp_path):
    clock = Clock()

    def live(seconds):
        clock.now += seconds
        current.alive()

    current = attempts.Attempts(tmp_path, clock)
    live(10)
    current.saved(20)
    live(10)
    current.saved(40)  # sent, and killed before it was on disk
    live(5)
    current = attempts.Attempts(tmp_path, clock)
    current.restored(20)  # the first attempt kept 10 of its 25 seconds
    live(7)  # and the second nothing
    current = attempts.Attempts(tmp_path, clock)
    current.restored(20)
    live(3)
    current.kept()
    live(4)
    assert current.totals() == {"seconds": 39.0, "attempts": 3, "lost_work_seconds": 22.0}
    current = attempts.Attempts(tmp_path, clock)
    assert current.totals() == {"seconds": 39.0, "attempts": 4, "lost_work_seconds": 26.0}


def test_attempts_never_fail_a_run(tmp_path, monkeypatch):
    (tmp_path / attempts.FILE).write_text("[{")
    monkeypatch.setattr(
        attempts.artifacts, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
    )
    assert attempts.Attempts(tmp_path).totals()["attempts"] == 1


def test_peak_memory_is_that_since_it_was_reset():
    memory.reset_peak()
    before = memory.peak_mib()
    block = b"x" * (64 << 20)
    assert memory.peak_mib() >= before + 60 and len(block)
    del block


def test_the_watchdog_names_the_process_that_is_behind(tmp_path):
    clock = Clock()
    dogs = [watchdog.Watchdog(tmp_path, i, 3, 60, clock) for i in range(3)]
    for n_steps in (1, 2, 3):
        assert [dog.inspect(n_steps, "run.py:1 run") for dog in dogs] == [None] * 3
        clock.now += 30
    assert dogs[0].inspect(4, "mesh.py:9 wait") is None and dogs[2].inspect(4, "mesh.py:9 wait") is None
    clock.now += 61
    assert dogs[1].inspect(3, "cache.py:5 open").startswith("no step for 91 s; stuck: process 1 of 3")
    assert dogs[0].inspect(4, "mesh.py:9 wait") == (
        "no step for 61 s; stuck: process 1 of 3, behind the others (process 1 at cache.py:5 open)"
    )
    assert dogs[0].inspect(4, "mesh.py:9 wait") is None, "it says so once in a minute"
    clock.now += 61
    dogs[1].inspect(4, "mesh.py:9 wait")
    assert "all 3 processes are at the same step" in dogs[0].inspect(4, "mesh.py:9 wait")


def test_the_watchdog_of_one_process_says_where_it_is(tmp_path):
    clock = Clock()
    dog = watchdog.Watchdog(tmp_path, 0, 1, 60, clock)
    assert dog.inspect(1, "fit.py:3 fit") is None
    clock.now += 61
    assert dog.inspect(1, "fit.py:3 fit") == "no step for 61 s; at fit.py:3 fit" and not list(
        tmp_path.iterdir()
    )


@pytest.mark.parametrize("text", ["kill", "kill@", "die@poll", "kill@poll#x"])
def test_a_failpoint_that_means_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"is not ACTION@POINT or ACTION@POINT#N; actions: kill, term"):
        points.Failpoint(text)


def test_a_failpoint_fires_at_its_visit_and_once(monkeypatch, capfd):
    fired = []
    monkeypatch.setitem(points.ACTIONS, "kill", lambda: fired.append(1))
    failpoint = points.Failpoint("kill@save/*#2")
    for point in ("save/1", "poll", "save/2", "save/3"):
        failpoint.visit(point)
    assert fired == [1] and capfd.readouterr().err == "\nfailpoint save/2: kill\n"


@pytest.mark.parametrize("process", ["0", "1"])
def test_failpoints_of_files_are_heard_without_a_hook_in_what_writes_them(tmp_path, monkeypatch, process):
    program = (
        "import sys, jax; from jsae.runtime import artifacts; from launch.faults import points\n"
        f"jax.process_index = lambda: {process}; f = points.Failpoint('trace@*')\n"
        "sys.addaudithook(f.audit); artifacts.write_bytes('sae/1.bin', b'x', checked=True, by_any=True)"
    )
    monkeypatch.setenv("JSAE_PROCESS_ID", process)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    files = ("checksums.json", "1.bin")
    wanted = [f"failpoint {at}/sae/{file}: trace" for file in files for at in ("write", "rename")]
    assert done.returncode == 0 and done.stderr.split("\n")[1::2] == wanted, done.stderr


def test_only_the_signal_handlers_are_state_of_a_module():
    files = [path.name for path in ROOT.glob("jsae/**/*.py") if re.search(r"\n +global ", path.read_text())]
    assert files == ["preemption.py"]


def test_a_plain_launch_script_has_no_failpoint(tmp_path):
    named = "|".join(["JSAE_FAIL", "faults.points", "faults.runs"])
    files = [*ROOT.glob("jsae/**/*.py"), *ROOT.glob("launch/start.py"), *ROOT.glob("launch/pipeline.py")]
    assert [str(path) for path in files if re.search(named, path.read_text())] == []


def test_attempts_are_json(tmp_path):
    attempts.Attempts(tmp_path).saved(3)
    assert json.loads((tmp_path / attempts.FILE).read_text())[0]["saves"].keys() == {"3"}
