"""Which process is stuck, when all of them wait.

With several processes one that hangs holds up all others for ever, in a collective that does not say whom it
waits for. So every process counts its steps (`RunContext.n_steps`), and a thread of each writes the count,
and the place in the code where its main thread is, to workdir/ranks/. Where a process has not moved for a
while, its thread compares the counts and names the processes that are behind. It only speaks: what to do is
the user's choice.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any

import jax
from etils import epath

from jsae.runtime import artifacts, logs
from jsae.runtime.paths import PathLike

FOLDER = "ranks"


class Watchdog:
    """Watches one of `count` processes; `inspect` is called now and then.

    Args:
      folder: a folder that all processes reach.
      index, count: which of how many processes this is.
      stuck_after_s: seconds without a step after which it speaks, once in so many seconds.
      clock: seconds.
    """

    def __init__(
        self,
        folder: PathLike,
        index: int,
        count: int,
        stuck_after_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder, self._index, self._count = epath.Path(folder), index, count
        self._stuck_after_s, self._clock = stuck_after_s, clock
        self._n_steps, self._since_s = -1, clock()

    def inspect(self, n_steps: int, where: str) -> str | None:
        """Note this process's state; the warning if it has been stuck for long enough, else None."""
        now = self._clock()
        if n_steps != self._n_steps:
            self._n_steps, self._since_s = n_steps, now
        if self._count > 1:
            state = json.dumps({"n_steps": n_steps, "where": where})
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / f"{self._index}.json").write_text(state)
        if now - self._since_s < self._stuck_after_s:
            return None
        waited_s, self._since_s = now - self._since_s, now
        if self._count == 1:
            return f"no step for {waited_s:.0f} s; at {where}"
        return f"no step for {waited_s:.0f} s; {self._name_the_stuck()}"

    def _name_the_stuck(self) -> str:
        states: dict[int, dict[str, Any]] = {}
        for index in range(self._count):
            path = self._folder / f"{index}.json"
            states[index] = (
                json.loads(artifacts.content(path)) if path.exists() else {"n_steps": -1, "where": "start"}
            )
        furthest = max(state["n_steps"] for state in states.values())
        behind = [index for index, state in states.items() if state["n_steps"] < furthest]
        named = behind or list(states)
        places = "; ".join(f"process {i} at {states[i]['where']}" for i in named)
        if behind:
            who = ", ".join(map(str, behind))
            return f"stuck: process {who} of {self._count}, behind the others ({places})"
        return f"all {self._count} processes are at the same step ({places})"


def start(workdir: PathLike, stuck_after_s: float, n_steps: Callable[[], int]) -> None:
    """Watch this process from a thread to its end; 0 seconds: do not. `n_steps` counts its steps."""
    if stuck_after_s <= 0:
        return
    folder = epath.Path(workdir) / FOLDER
    dog = Watchdog(folder, jax.process_index(), jax.process_count(), stuck_after_s)
    main = threading.main_thread().ident or 0

    def watch() -> None:
        while True:
            time.sleep(min(30.0, stuck_after_s / 4))
            try:
                said = dog.inspect(n_steps(), _place(sys._current_frames().get(main)))
            except (OSError, ValueError):  # another process writes, or the disk is full: later
                continue
            if said:
                logs.get_logger().warning("watchdog: %s", said)

    threading.Thread(target=watch, name="jsae-watchdog", daemon=True).start()


def _place(frame: FrameType | None) -> str:
    """The innermost line of ours that the main thread is in: file:line function."""
    here = f"{os.sep}jsae{os.sep}"
    ours = [entry for entry in traceback.extract_stack(frame) if here in entry.filename]
    entry = (ours or traceback.extract_stack(frame))[-1]
    return f"{os.path.basename(entry.filename)}:{entry.lineno} {entry.name}"
