"""Stopping when the machine is taken away.

`install()` runs before jax is imported. SIGTERM, SIGINT, and what schedulers send for the same (SIGUSR1,
SIGUSR2, SIGXCPU) then only set a flag; loops poll it through their `RunContext` at points where their state
is consistent: `requested_by_any()` between dispatches (save, then `check()`), or `check()` alone where the
work is idempotent. The process ends with exit code 75 (EX_TEMPFAIL: start me again). A second SIGTERM or
SIGINT ends it at once with 128 + its number. SIGHUP, which comes when a terminal goes away, is noted and the
run goes on.

Python runs a signal's handler between two of its own instructions, so a long call into compiled code (a
compilation, a collective that waits for another rank) would hold both back. A thread therefore hears of
signals through a pipe: it ends the process at the second one, and with 75 where no consistent point has come
within JSAE_GRACE_S seconds (25) of the first. What is on disk is consistent at every moment, so no more is
lost than a SIGKILL would lose. A save that has begun, before the signal or after it, is no longer under this
timer: it has JSAE_SAVE_S seconds (600) to end whole.

With several processes the scheduler may signal only one of them. The processes tell each other, outside of
all collectives (jsae.runtime.peers), that a stop was asked for, which starts the timer in each of them, and
agree on the call of `requested_by_any()` or `check()` at which all of them stop: only for loops that all
processes go through together. Where each computes for itself `requested_here()` and `check_here()` stop it
alone. When one has left the others can only wait in vain, and end too.
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
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from jsae.runtime.peers import Peers

EXIT_CODE = 75
GRACE_S = 25.0  # less than the 30 s that machines on notice give
SAVE_S = 600.0
LEFT_S = 2.0  # for a process to end by itself once another one has
_NEWS_S = 5.0  # for a process that fails to hear whether another one has left

_AT_ONCE = (signal.SIGTERM, signal.SIGINT)  # of these the second one does not wait
_ON_NOTICE = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


class Preempted(SystemExit):
    """The run was asked to stop and has saved its state; as a SystemExit it carries exit code 75."""

    def __init__(self) -> None:
        super().__init__(EXIT_CODE)


class Deadline:
    """When a process that was asked to stop is ended, whatever it does.

    Args:
      grace_s, save_s: see the module's docstring.
      clock: seconds.
    """

    def __init__(
        self,
        grace_s: float = GRACE_S,
        save_s: float = SAVE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
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
        """Whether the process must end now. A save that has begun holds the time up, while it may take."""
        now = self._clock()
        if is_saving and self._may_save and self._phase != "answered" and now - self._asked_s < self.save_s:
            self._since_s = now
        return self.is_running() and now - self._since_s >= self._limit_s


class Signals:
    """What this process has heard of being stopped, and what it must still finish; made by `install`.

    Signal handlers, the pipe that wakes the thread and the exit code belong to a process and not to a run, so
    there is at most one such object in a process. It is the only mutable state that `jsae.runtime` keeps in a
    module; runs reach it through their `RunContext`, and only what writes files (`saving`, `hold_for`) by
    itself.

    Attributes:
      deadline: when the process is ended.
      peers: the other processes of the run, None without others.
    """

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.peers: Peers | None = None
        self._number: int | None = None  # of the first signal
        self._n_at_once = 0
        self._told = False  # another process was asked to stop
        self._unsaid = threading.Lock()  # taken by who says the first signal
        self._n_saving = 0
        self._savers: weakref.WeakSet = weakref.WeakSet()
        self._exit_code: int | None = None  # of a run, see `ending_together`
        self._pipe: tuple[int, int] | None = None

    def handle(self) -> None:
        """Put the handlers in place, again where other code took theirs.

        A SIGHUP, SIGUSR1, ... that was ignored when the process began (nohup) stays ignored.
        """
        if self._pipe is None:
            atexit.register(self._exit)  # registered first, it runs last
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            threading.Thread(None, self._listen, "jsae-signals", self._pipe[:1], daemon=True).start()
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in _AT_ONCE:
            signal.signal(number, self._on_signal)
        for number in (*_ON_NOTICE, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, _on_hangup if number == signal.SIGHUP else self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in _AT_ONCE:
            self._n_at_once += 1
            if self._n_at_once > 1:
                os._exit(128 + number)
        if self._number is None:
            self._number = number
            self._say_once(number)

    def _say_once(self, number: int) -> None:
        """From the handler or the thread, whichever runs first: the other may be held up for long."""
        if self._unsaid.acquire(blocking=False):
            name = signal.Signals(number).name
            _say(f"{name}: stopping at the next consistent point (again to stop at once)")

    def _listen(self, pipe: int) -> None:
        """The thread: one byte per signal, whatever the main thread does meanwhile; and the time left."""
        count = n_at_once = 0
        while True:
            timeout = 0.05 if self.deadline.is_running() else None
            ready = select.select([pipe], [], [], timeout)[0]
            for number in os.read(pipe, 64) if ready else b"":  # 0: another thread set the deadline
                if number == signal.SIGHUP:
                    logging.getLogger("jsae").info("SIGHUP: the terminal is gone, the run goes on")
                if number not in _AT_ONCE + _ON_NOTICE:
                    continue
                n_at_once += number in _AT_ONCE
                if n_at_once > 1:
                    os._exit(128 + number)
                count += 1
                if count == 1:
                    self._say_once(number)
                    self.deadline.ask()
                    if self.peers is not None:
                        self.peers.tell("asked", signal.Signals(number).name)
            if self.deadline.overdue(self.is_saving()):
                _say(self.deadline.why)
                if self.peers is not None:
                    self.peers.leave(self.deadline.code, self.deadline.why)
                os._exit(self.deadline.code)

    def _wake(self) -> None:
        if self._pipe is not None:
            with contextlib.suppress(OSError):
                os.write(self._pipe[1], b"\0")

    def is_asked(self) -> bool:
        """Whether this process was asked to stop; another one may have been."""
        return self._number is not None

    def is_told(self) -> bool:
        """Whether this process was asked to stop, or has heard that another one was."""
        return self._number is not None or self._told

    def is_stop_due(self) -> bool:
        """Whether the run stops here, at a place to which all processes come equally often."""
        return self.is_asked() if self.peers is None else self.peers.is_stop_due(self.is_asked())

    def join(self, client: Any, index: int, count: int) -> None:
        """From now on hear of the other processes, and let them hear of this one (`Peers`)."""
        if count < 2:
            return
        self.peers = Peers(client, index, count)
        self.peers.start(self._hear)
        if self._number is not None:
            self.peers.tell("asked", signal.Signals(self._number).name)

    def _hear(self, index: int, what: str, text: str) -> None:
        """Another process was asked to stop, or has left with an exit code and perhaps a reason."""
        if what == "asked":
            self._told = True
            self.deadline.ask(f"process {index} was told to stop ({text}); ")
        else:
            code, _, why = text.partition(" ")
            stopped = int(code) == EXIT_CODE
            said = "has stopped" if stopped else f"ended with exit code {code}"
            why = f"process {index} {said}{': ' if why else ''}{why}; this one ends, what was saved stays"
            self.deadline.end(LEFT_S, why, EXIT_CODE if stopped else 1)
        self._wake()

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """While something is written that shall not be cut short: the grace does not run out meanwhile."""
        self._n_saving += 1
        try:
            yield
        finally:
            self._n_saving -= 1

    def hold_for(self, saver: Any) -> None:
        """The same while `saver.is_saving_in_progress()`, for what is written in the background."""
        if hasattr(saver, "is_saving_in_progress"):
            self._savers.add(saver)

    def is_saving(self) -> bool:
        """Whether something is being written that shall not be cut short."""
        return self._n_saving > 0 or any(saver.is_saving_in_progress() for saver in list(self._savers))

    def leave(self, code: int) -> int:
        """With several processes: tell them that this one ends, and see that nothing holds it up.

        An error may be no more than the echo of another process's end: then that one's exit code is returned,
        which is 75 where it was asked to stop. The process still has to exit with it.
        """
        if code == 0 or self.peers is None:
            return code
        if code != EXIT_CODE and self.peers.wait_for_news("left", _NEWS_S):
            _say(self.deadline.why)
            code = self.deadline.code
        # After a failure only threads are left, which wait for the others; jax would abort the process
        limit_s = self.deadline.grace_s if code == EXIT_CODE else LEFT_S + _NEWS_S
        self.deadline.end(limit_s, f"the end took more than {limit_s:g} s", code)
        self._wake()
        self.peers.tell("left", str(code))
        return code

    @contextlib.contextmanager
    def ending_together(self) -> Iterator[None]:
        """Around a whole run: however it ends, the other processes hear of it, and none waits for this one.

        Its exit code is then certain, too: see `_exit`.
        """
        self._exit_code = 1
        try:
            yield
            self._exit_code = 0
        except SystemExit as ended:
            if not isinstance(ended.code, int | None):  # a message, which Python prints
                self.leave(1)
                raise
            self._exit_code = self.leave(ended.code or 0)
            sys.exit(self._exit_code)
        except BaseException:
            traceback.print_exc()
            sys.exit(self.leave(1))

    def _exit(self) -> None:
        """End the process behind all of Python's own ends: threads are joined, and what was registered has
        run.

        What is left are the ends of C++ libraries, whose threads abort a process in one of a hundred runs
        (seen with pyarrow 26.0.1): exit code 134 instead of 75 is a job that is not started again.
        """
        if self._exit_code is not None:
            logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
            os._exit(self._exit_code)


_installed: Signals | None = None  # of this process


def install() -> Signals:
    """Make the signals set the flag. Call it from the main thread, before importing jax.

    Exits with a message if JSAE_GRACE_S or JSAE_SAVE_S is not a number of seconds.
    """
    global _installed
    if _installed is None:
        deadline = Deadline(_seconds("JSAE_GRACE_S", GRACE_S), _seconds("JSAE_SAVE_S", SAVE_S))
        _installed = Signals(deadline)
    _installed.handle()
    return _installed


def installed() -> Signals | None:
    """What `install` has made in this process; None in a notebook or a test, where nothing was installed."""
    return _installed


def saving() -> contextlib.AbstractContextManager[None]:
    """`Signals.saving` of this process; nothing where no handlers are installed."""
    return contextlib.nullcontext() if _installed is None else _installed.saving()


def hold_for(saver: Any) -> None:
    """`Signals.hold_for` of this process; nothing where no handlers are installed."""
    if _installed is not None:
        _installed.hold_for(saver)


def _on_hangup(number: int, frame: FrameType | None) -> None:
    """The thread says it: a handler instead of SIG_IGN, which programs that are started would inherit."""


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"\n{text}\n".encode())


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name) or default
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < float("inf"):
            return float(text)
    sys.exit(f"error: {name}={text!r} is not a number of seconds (default {default:g})")
