"""Failpoints: named places at which a test makes a run fail (`launch.faults` drives them).

JSAE_FAIL="ACTION@POINT#N" arms one: at the N-th visit of a point whose name matches POINT (a shell pattern,
N = 1 where it is left out) the process says so on stderr and does ACTION to itself; "trace@*" says every
visit and does nothing. Unset, a visit costs one comparison.

    installed                         the signal handlers are there, nothing else is
    begin/STAGE finish/STAGE          a stage is opened, a stage is about to be marked complete
    poll                              a loop asks whether it should stop
    progress/LABEL                    some units of a progress bar are done
    save/STEP saved/STEP              a checkpoint is handed to the background, is on disk
    write/FILE rename/FILE            a file (folder/name) is about to be written, lies beside its target
"""

import fnmatch
import os
import resource
import signal

VARIABLE = "JSAE_FAIL"


def _kill():
    os.kill(os.getpid(), signal.SIGKILL)


def _refuse_writes():
    """From now on the kernel refuses every write to a file, whoever asks, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _stop():
    os.kill(os.getpid(), signal.SIGSTOP)


ACTIONS = {
    "kill": _kill,
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda: os.kill(os.getpid(), signal.SIGINT),
    "full": _refuse_writes,
    "stop": _stop,
    "trace": lambda: None,
}


def _armed(text: str | None):
    """[action, pattern, visits left] of a JSAE_FAIL. Raises ValueError that shows the form it should have."""
    if not text:
        return None
    action, at, place = text.partition("@")
    pattern, _, count = place.partition("#")
    if not at or not pattern or action not in ACTIONS or not (count or "1").isdigit():
        raise ValueError(
            f"{VARIABLE}={text!r} is not ACTION@POINT or ACTION@POINT#N; actions: {', '.join(ACTIONS)}"
        )
    return [action, pattern, int(count or 1)]


_wanted = _armed(os.environ.get(VARIABLE))


def visit(point: str) -> None:
    """Say that the run is at `point`; fails there if that was asked for."""
    global _wanted
    if _wanted is None or not fnmatch.fnmatchcase(point, _wanted[1]):
        return
    action = _wanted[0]
    _wanted[2] -= 1
    if _wanted[2] == 0 or action == "trace":
        _wanted = _wanted if action == "trace" else None
        os.write(2, f"\nfailpoint {point}: {action}\n".encode())
        ACTIONS[action]()
