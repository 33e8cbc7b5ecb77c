"""Stopping when the machine is taken away.

`install()` runs before jax is imported. SIGTERM and SIGINT then only set a flag; loops poll it at points
where their state is consistent: `requested()` between dispatches (save, then `check()`), or `check()`
alone where the work is idempotent. The process ends with exit code 75 (EX_TEMPFAIL: start me again).
A second signal ends it at once with 128 + its number.

With several processes the scheduler may signal only one of them; `requested()` therefore asks all of
them, so that every process stops at the same step.
"""

import os
import signal
import sys

EXIT_CODE = 75

_signal_number: int | None = None


class Preempted(SystemExit):
    """The run was asked to stop and has saved its state; as a SystemExit it carries exit code 75."""

    def __init__(self):
        super().__init__(EXIT_CODE)


def _on_signal(number, frame):
    global _signal_number
    if _signal_number is not None:
        os._exit(128 + number)
    _signal_number = number
    name = signal.Signals(number).name
    os.write(2, f"\n{name}: stopping at the next consistent point (again to stop at once)\n".encode())


def install() -> None:
    """Make SIGTERM and SIGINT set the flag. Call it from the main thread, before importing jax."""
    signal.signal(signal.SIGTERM, _on_signal)
    signal.signal(signal.SIGINT, _on_signal)


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
    global _signal_number
    _signal_number = None
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
