"""Stopping when the machine is taken away.

`install()` runs before jax is imported. SIGTERM, SIGINT, and what schedulers send for the same (SIGUSR1,
SIGUSR2, SIGXCPU) then only set a flag; loops poll it at points where their state is consistent: `requested()`
between dispatches (save, then `check()`), or `check()` alone where the work is idempotent. The process ends
with exit code 75 (EX_TEMPFAIL: start me again). A second SIGTERM or SIGINT ends it at once with 128 + its
number. SIGHUP, which comes when a terminal goes away, is noted and the run goes on.

Python runs a signal's handler between two of its own instructions, so a long call into compiled code (a
compilation, a collective that waits for another rank) would hold both back. A thread therefore hears of
signals through a pipe: it ends the process at the second one, and with 75 where no consistent point has come
within JSAE_GRACE_S seconds (25) of the first. What is on disk is consistent at every moment, so no more is
lost than a SIGKILL would lose. A save that has begun, before the signal or after it, is no longer under this
timer: it has JSAE_SAVE_S seconds (600) to end whole.

With several processes the scheduler may signal only one of them; `requested()` and `check()` ask all of them,
so that every process stops at the same step. They are collectives: only for loops that all processes go
through together. Where each computes for itself `check_here()` asks nobody. Beside that the processes tell
each other at once, outside of all collectives (jsae.runtime.peers), that a stop was asked for, which starts
the timer in each of them, and that one has left: then the others can only wait in vain, and end too.
"""

import atexit
import contextlib
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
import weakref

from jsae.runtime import failpoints, heartbeat, peers

EXIT_CODE = 75
GRACE_S = 25.0  # less than the 30 s that machines on notice give
SAVE_S = 600.0
LEFT_S = 2.0  # for a process to end by itself once another one has
_NEWS_S = 2.0  # for a process that fails to hear whether another one has left

_AT_ONCE = (signal.SIGTERM, signal.SIGINT)  # of these the second one does not wait
_ON_NOTICE = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)

_signal_number: int | None = None
_n_handled = 0
_pipe: tuple[int, int] | None = None
_deadline: "Deadline | None" = None
_told = False  # another process was asked to stop
_unsaid = threading.Lock()  # taken by who says the first signal
_n_saving = 0
_exit_code: int | None = None  # of a run, see `ending_together`
_savers: weakref.WeakSet = weakref.WeakSet()


class Preempted(SystemExit):
    """The run was asked to stop and has saved its state; as a SystemExit it carries exit code 75."""

    def __init__(self):
        super().__init__(EXIT_CODE)


class Deadline:
    """When a process that was asked to stop is ended, whatever it does.

    Args:
      grace_s, save_s: see the module's docstring.
      clock: seconds.
    """

    def __init__(self, grace_s: float = GRACE_S, save_s: float = SAVE_S, clock=time.monotonic):
        self.grace_s, self.save_s, self._clock = grace_s, save_s, clock
        self.code, self.why = EXIT_CODE, ""
        self._phase, self._limit_s = "", 0.0  # "", asked, answered, ending
        self._may_save = True
        self._asked_s = self._since_s = 0.0

    def is_running(self) -> bool:
        """Whether a stop was asked for, or another process has left."""
        return bool(self._phase)

    def ask(self, cause: str = "") -> None:
        """A stop was asked for: the grace begins, once."""
        if not self._phase:
            why = f"{cause}no consistent point came within {self.grace_s:g} s; what was saved before stays"
            self._begin("asked", self.grace_s, why)

    def answer(self) -> None:
        """The consistent point has come, perhaps before `ask` was called: the state is saved now."""
        if self._phase in ("", "asked"):
            why = f"the save took more than {self.save_s:g} s; the one before it stays"
            self._begin("answered", self.save_s, why)

    def end(self, limit_s: float, why: str, code: int) -> None:
        """There is nothing left but to end with this code; the first reason is kept.

        After a failure a save that has begun holds nothing up: it waits for a process that is gone.
        """
        if self._phase != "ending":
            self.code, self._may_save = code, code == EXIT_CODE
            self._begin("ending", limit_s, why)

    def _begin(self, phase: str, limit_s: float, why: str) -> None:
        self._since_s, self._limit_s, self.why = self._clock(), limit_s, why
        self._asked_s = self._asked_s if self._phase else self._since_s
        self._phase = phase

    def overdue(self, is_saving: bool) -> bool:
        """Whether the process must end now. A save that has begun holds the time up, within its own."""
        now = self._clock()
        if is_saving and self._may_save and self._phase != "answered" and now - self._asked_s < self.save_s:
            self._since_s = now
        return self.is_running() and now - self._since_s >= self._limit_s


def _on_signal(number, frame):
    global _signal_number, _n_handled
    if number in _AT_ONCE:
        _n_handled += 1
        if _n_handled > 1:
            os._exit(128 + number)
    if _signal_number is None:
        _signal_number = number
        _say_once(number)


def _on_hangup(number, frame):
    """The thread says it: a handler instead of SIG_IGN, which programs that are started would inherit."""


def _say_once(number: int) -> None:
    """From the handler or the thread, whichever runs first: the other may be held up, or never come to it."""
    if _unsaid.acquire(blocking=False):
        name = signal.Signals(number).name
        _say(f"{name}: stopping at the next consistent point (again to stop at once)")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"\n{text}\n".encode())


def _listen(fd: int, deadline: Deadline) -> None:
    """The thread: one byte a signal, whatever the main thread does meanwhile; and the time that is left."""
    count = n_at_once = 0
    while True:
        try:
            ready = select.select([fd], [], [], 0.05 if deadline.is_running() else None)[0]
            received = os.read(fd, 64) if ready else b"\0"  # 0: another thread has set the deadline
        except OSError:
            return  # closed by reset()
        if not received:
            return
        for number in received:
            if number == signal.SIGHUP:
                logging.getLogger("jsae").info("SIGHUP: the terminal is gone, the run goes on")
            if number not in _AT_ONCE + _ON_NOTICE:
                continue
            n_at_once += number in _AT_ONCE
            if n_at_once > 1:
                os._exit(128 + number)
            count += 1
            if count == 1:
                _say_once(number)
                deadline.ask()
                peers.tell("asked", signal.Signals(number).name)
        if _pipe is not None and deadline.overdue(_is_saving()):
            _say(deadline.why)
            peers.leave(deadline.code, deadline.why)
            os._exit(deadline.code)


def install() -> None:
    """Make the signals set the flag. Call it from the main thread, before importing jax.

    A SIGHUP, SIGUSR1, ... that was ignored when the process began (nohup) stays ignored.

    Exits with a message if JSAE_GRACE_S or JSAE_SAVE_S is not a number of seconds.
    """
    global _pipe, _deadline
    if _pipe is None:
        atexit.register(_exit)  # registered first, it runs last
        _deadline = Deadline(_seconds("JSAE_GRACE_S", GRACE_S), _seconds("JSAE_SAVE_S", SAVE_S))
        read, write = _pipe = os.pipe()
        os.set_blocking(write, False)
        thread = threading.Thread(target=_listen, args=(read, _deadline), name="jsae-signals", daemon=True)
        thread.start()
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    for number in _AT_ONCE:
        signal.signal(number, _on_signal)
    for number in (*_ON_NOTICE, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _on_hangup if number == signal.SIGHUP else _on_signal)
    failpoints.visit("installed")


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name) or default
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    sys.exit(f"error: {name}={text!r} is not a number of seconds (default {default:g})")


def reinstall() -> None:
    """Put the handlers back where other code took their place; nothing if `install` was not called."""
    if signal.getsignal(signal.SIGTERM) is _on_signal:  # what Python knows of, whatever C code did since
        install()


def join(client, index: int, count: int) -> None:
    """From now on hear of the other processes, and let them hear of this one (`peers.meet`)."""
    peers.meet(client, index, count, _hear)
    if _signal_number is not None:
        peers.tell("asked", signal.Signals(_signal_number).name)


def _hear(index: int, what: str, text: str) -> None:
    """Another process was asked to stop, or has left with an exit code and perhaps a reason."""
    global _told
    if _deadline is None:
        return
    if what == "asked":
        _told = True
        _deadline.ask(f"process {index} was told to stop ({text}); ")
    else:
        code, _, why = text.partition(" ")
        stopped = int(code) == EXIT_CODE
        said = "has stopped" if stopped else f"ended with exit code {code}"
        why = f"process {index} {said}{': ' if why else ''}{why}; this one ends, what was saved stays"
        _deadline.end(LEFT_S, why, EXIT_CODE if stopped else 1)
    _wake()


def _wake() -> None:
    if _pipe is not None:
        with contextlib.suppress(OSError):
            os.write(_pipe[1], b"\0")


@contextlib.contextmanager
def saving():
    """While something is written that shall not be cut short: the grace does not run out meanwhile."""
    global _n_saving
    _n_saving += 1
    try:
        yield
    finally:
        _n_saving -= 1


def hold_for(saver) -> None:
    """The same while `saver.is_saving_in_progress()`, for what is written in the background."""
    if hasattr(saver, "is_saving_in_progress"):
        _savers.add(saver)


def _is_saving() -> bool:
    return _n_saving > 0 or any(saver.is_saving_in_progress() for saver in list(_savers))


def _is_alone() -> bool:
    jax = sys.modules.get("jax")
    return jax is None or not jax.distributed.is_initialized() or jax.process_count() == 1


def requested() -> bool:
    """True if this process, or any process of a multi-process run, was asked to stop.

    With several processes this is a collective: all must call it the same number of times.
    """
    heartbeat.beat()
    failpoints.visit("poll")
    flagged = _signal_number is not None
    if not _is_alone():
        import numpy as np
        from jax.experimental import multihost_utils

        flagged = bool(multihost_utils.process_allgather(np.array(flagged)).any())
    return _answered(flagged)


def _answered(flagged: bool) -> bool:
    if flagged and _deadline is not None:
        _deadline.answer()
    return flagged


def check() -> None:
    """Raise `Preempted` if a stop was asked for; for loops whose state is already on disk.

    With several processes a collective, as `requested`.
    """
    if requested():
        raise Preempted


def requested_here() -> bool:
    """True if this process was asked to stop, or has heard that another one was; asks nobody, never waits."""
    heartbeat.beat()
    failpoints.visit("poll")
    return _answered(_signal_number is not None or _told)


def check_here() -> None:
    """`check` for work that every process does at its own pace, by `requested_here`.

    What it stops must be idempotent. The others stop at their own next point, or when they hear that this
    process has left.
    """
    if requested_here():
        raise Preempted


def leave(code: int) -> int:
    """With several processes: tell them that this one ends, and see that nothing holds it up.

    An error may be no more than the echo of another process's end: then that one's exit code is returned,
    which is 75 where it was asked to stop. The process still has to exit with it.
    """
    if code == 0 or _deadline is None or not peers.are_there():
        return code
    if code != EXIT_CODE and peers.wait_for_news("left", _NEWS_S):
        _say(_deadline.why)
        code = _deadline.code
    # After a failure only threads are left, which wait for the others; jax would abort this process for them
    limit_s = _deadline.grace_s if code == EXIT_CODE else LEFT_S + _NEWS_S
    _deadline.end(limit_s, f"the end took more than {limit_s:g} s", code)
    _wake()
    peers.tell("left", str(code))
    return code


@contextlib.contextmanager
def ending_together():
    """Around a whole run: however it ends, the other processes hear of it, and none waits for this one.

    Its exit code is then certain, too: see `_exit`.
    """
    global _exit_code
    _exit_code = 1
    try:
        yield
        _exit_code = 0
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):  # a message, which Python prints
            leave(1)
            raise
        _exit_code = leave(ended.code or 0)
        sys.exit(_exit_code)
    except BaseException:
        traceback.print_exc()
        sys.exit(leave(1))


def _exit() -> None:
    """End the process behind all of Python's own ends: threads are joined, and what was registered has run.

    What is left are the ends of C++ libraries, whose threads abort a process in one of a hundred runs (seen
    with pyarrow 26.0.1): exit code 134 instead of 75 is a job that is not started again.
    """
    if _exit_code is not None:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(_exit_code)


def reset() -> None:
    """Forget the flag and restore the default handlers (for tests and notebooks)."""
    global _signal_number, _n_handled, _pipe, _deadline, _told, _unsaid
    _signal_number, _n_handled, _deadline, _told, _unsaid = None, 0, None, False, threading.Lock()
    for number in (signal.SIGTERM, *_ON_NOTICE, signal.SIGHUP):
        if signal.getsignal(number) in (_on_signal, _on_hangup):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if _pipe is not None:
        signal.set_wakeup_fd(-1)
        write, _pipe = _pipe[1], None
        os.close(write)  # the thread reads the end and returns; its own end closes with the process
