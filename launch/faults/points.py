"""A launch script that fails at a place of its run: `python -m launch.faults.points FAIL launch.pipeline
FLAGS`.

FAIL is ACTION@POINT or ACTION@POINT#N: at the N-th visit of a point whose name matches POINT (a shell
pattern, N = 1 where it is left out) the process says so on stderr and does ACTION to itself; "trace@*" says
every visit and does nothing. The points are those of `RunContext.failpoint`, into which this script puts its
own, and

    installed                         the signal handlers are there, nothing else is
    write/FILE rename/FILE            a file (folder/name) is about to be written, lies beside its target
"""

import fnmatch
import functools
import os
import resource
import runpy
import signal
import sys
from collections.abc import Callable

from jsae.runtime import preemption


def _refuse_writes() -> None:
    """From now on the kernel refuses every write to a file, whoever asks, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


ACTIONS: dict[str, Callable[[], None]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "term": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "int": lambda: os.kill(os.getpid(), signal.SIGINT),
    "full": _refuse_writes,
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "trace": lambda: None,
}


_UNFINISHED = ".unfinished-"  # artifacts.UNFINISHED; that module imports jax, and handlers come before it


class Failpoint:
    """Does its action at a point, once (a trace at each). Raises ValueError that shows the form of FAIL."""

    def __init__(self, fail: str) -> None:
        self._action, at, place = fail.partition("@")
        self._pattern, _, count = place.partition("#")
        if not at or not self._pattern or self._action not in ACTIONS or not (count or "1").isdigit():
            raise ValueError(f"{fail!r} is not ACTION@POINT or ACTION@POINT#N; actions: {', '.join(ACTIONS)}")
        self._n_left = int(count or 1)

    def visit(self, point: str) -> None:
        """The run is at `point`."""
        if self._n_left <= 0 or not fnmatch.fnmatchcase(point, self._pattern):
            return
        self._n_left -= self._action != "trace"
        if self._n_left == 0 or self._action == "trace":
            os.write(2, f"\nfailpoint {point}: {self._action}\n".encode())
            ACTIONS[self._action]()

    def audit(self, event: str, args: tuple) -> None:
        """Hook of sys.addaudithook: visits write/FILE and rename/FILE of jsae.runtime.artifacts."""
        point = {"open": "write", "os.rename": "rename"}.get(event)
        if point is not None and isinstance(args[0], str | os.PathLike):
            folder, name = os.path.split(os.fspath(args[0]))
            if name.startswith(_UNFINISHED):
                process = os.environ.get("JSAE_PROCESS_ID", "0")
                name = name.removeprefix(_UNFINISHED).removeprefix("" if process == "0" else process)
                self.visit(f"{point}/{os.path.basename(folder)}/{name}")


def main() -> None:
    """Run the module that the command line names, with its failpoint."""
    fail, module, *flags = sys.argv[1:]
    failpoint = Failpoint(fail)
    preemption.install()
    failpoint.visit("installed")
    sys.addaudithook(failpoint.audit)
    from launch import start

    start.RunContext = functools.partial(start.RunContext, failpoint=failpoint.visit)
    sys.argv = [module, *flags]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
