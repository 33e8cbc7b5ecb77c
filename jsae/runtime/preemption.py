"""Stopping when the machine is taken away.

`install()` runs before jax is imported. SIGTERM and SIGINT then only set a flag; loops poll it at points
where their state is consistent: `requested()` between dispatches (save, then `check()`), or `check()`
alone where the work is idempotent. The process ends with exit code 75 (EX_TEMPFAIL: start me again).
A second signal ends it at once with 128 + its number.

Python runs a signal's handler between two of its own instructions, so a long call into compiled code (a
compilation, a collective that waits for another rank) would hold both back. A thread therefore hears of
signals through a pipe: it ends the process at the second one, and with 75 where no poll has come within
JSAE_GRACE_S seconds (25) of the first. What is on disk is consistent at every moment, so no more is lost
than a SIGKILL would lose.

With several processes the scheduler may signal only one of them; `requested()` therefore asks all of
them, so that every process stops at the same step.
"""

import contextlib
import os
import signal
import sys
import threading

from jsae.runtime import failpoints, heartbeat

EXIT_CODE = 75
GRACE_S = 25.0  # less than the 30 s that machines on notice give

_signal_number: int | None = None
_n_handled = 0
_pipe: tuple[int, int] | None = None


class Preempted(SystemExit):
    """The run was asked to stop and has saved its state; as a SystemExit it carries exit code 75."""

    def __init__(self):
        super().__init__(EXIT_CODE)


def _on_signal(number, frame):
    global _signal_number, _n_handled
    _n_handled += 1
    if _n_handled > 1:
        os._exit(128 + number)
    if _signal_number is None:
        _signal_number = number
        _say(f"{signal.Signals(number).name}: stopping at the next consistent point (again to stop at once)")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        os.write(2, f"\n{text}\n".encode())


def _listen(fd: int) -> None:
    """The thread: one byte a signal, whatever the main thread does meanwhile."""
    wanted = (signal.SIGTERM, signal.SIGINT)
    count, grace_s = 0, float(os.environ.get("JSAE_GRACE_S") or GRACE_S)
    while True:
        try:
            received = os.read(fd, 64)
        except OSError:
            return  # closed by reset()
        for number in received:
            if number not in wanted:
                continue
            count += 1
            if count > 1:
                os._exit(128 + number)
            timer = threading.Timer(grace_s, _give_up, [grace_s])
            timer.daemon = True
            timer.start()
        if not received:
            return


def _give_up(grace_s: float) -> None:
    if _pipe is not None:
        _say(f"no consistent point came within {grace_s:g} s; what was saved before stays")
        os._exit(EXIT_CODE)


def install() -> None:
    """Make SIGTERM and SIGINT set the flag. Call it from the main thread, before importing jax."""
    global _pipe
    if _pipe is None:
        read, write = _pipe = os.pipe()
        os.set_blocking(write, False)
        threading.Thread(target=_listen, args=(read,), name="jsae-signals", daemon=True).start()
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)
    failpoints.visit("installed")


def reinstall() -> None:
    """Put the handlers back where other code took their place; nothing if `install` was not called."""
    if signal.getsignal(signal.SIGTERM) is _on_signal:  # what Python knows of, whatever C code did since
        install()


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
    if _is_alone():
        return flagged
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(multihost_utils.process_allgather(np.array(flagged)).any())


def check() -> None:
    """Raise `Preempted` if a stop was asked for; for loops whose state is already on disk."""
    if requested():
        raise Preempted


def check_if_alone() -> None:
    """`check` for work that every process does at its own pace; does nothing with several processes."""
    if _is_alone():
        check()


def reset() -> None:
    """Forget the flag and restore the default handlers (for tests and notebooks)."""
    global _signal_number, _n_handled, _pipe
    _signal_number, _n_handled = None, 0
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if _pipe is not None:
        signal.set_wakeup_fd(-1)
        write, _pipe = _pipe[1], None
        os.close(write)  # the thread reads the end and returns; its own end closes with the process
