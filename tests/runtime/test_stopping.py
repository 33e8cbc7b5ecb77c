"""Signals are heard whatever the main thread does; lost work is counted; the stuck are named."""

import json
import signal
import subprocess
import sys
import time

import pytest

from jsae.runtime import attempts, failpoints, memory, watchdog

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
        _, err = process.communicate(timeout=60)
    return process.returncode, err, time.monotonic() - since


def test_where_no_consistent_point_comes_the_run_ends_with_75_in_time(clean_environment):
    code, err, seconds = signalled(WAITS, clean_environment | {"JSAE_GRACE_S": "0.5"}, signal.SIGTERM)
    assert code == 75 and "no consistent point came within 0.5 s" in err and seconds < 20


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_also_in_a_long_call(clean_environment, number):
    code, _, seconds = signalled(WAITS, clean_environment, signal.SIGTERM, number)
    assert code == 128 + number and seconds < 20


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
    for beats in (1, 2, 3):
        assert [dog.look(beats, "run.py:1 run") for dog in dogs] == [None] * 3
        clock.now += 30
    assert dogs[0].look(4, "mesh.py:9 wait") is None and dogs[2].look(4, "mesh.py:9 wait") is None
    clock.now += 61
    assert dogs[1].look(3, "cache.py:5 open").startswith("no step for 91 s; stuck: process 1 of 3")
    assert dogs[0].look(4, "mesh.py:9 wait") == (
        "no step for 61 s; stuck: process 1 of 3, behind the others (process 1 at cache.py:5 open)"
    )
    assert dogs[0].look(4, "mesh.py:9 wait") is None, "it says so once in a minute"
    clock.now += 61
    dogs[1].look(4, "mesh.py:9 wait")
    assert "all 3 processes are at the same step" in dogs[0].look(4, "mesh.py:9 wait")


def test_the_watchdog_of_one_process_says_where_it_is(tmp_path):
    clock = Clock()
    dog = watchdog.Watchdog(tmp_path, 0, 1, 60, clock)
    assert dog.look(1, "fit.py:3 fit") is None
    clock.now += 61
    assert dog.look(1, "fit.py:3 fit") == "no step for 61 s; at fit.py:3 fit" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("text", ["kill", "kill@", "die@poll", "kill@poll#x"])
def test_a_failpoint_that_means_nothing_is_refused(text):
    with pytest.raises(ValueError, match=r"is not ACTION@POINT or ACTION@POINT#N; actions: kill, term"):
        failpoints._armed(text)


def test_a_failpoint_fires_at_its_visit_and_once(monkeypatch, capfd):
    fired = []
    monkeypatch.setitem(failpoints.ACTIONS, "kill", lambda: fired.append(1))
    monkeypatch.setattr(failpoints, "_wanted", failpoints._armed("kill@save/*#2"))
    for point in ("save/1", "poll", "save/2", "save/3"):
        failpoints.visit(point)
    assert fired == [1] and capfd.readouterr().err == "\nfailpoint save/2: kill\n"


def test_attempts_are_json(tmp_path):
    attempts.Attempts(tmp_path).saved(3)
    assert json.loads((tmp_path / attempts.FILE).read_text())[0]["saves"].keys() == {"3"}
