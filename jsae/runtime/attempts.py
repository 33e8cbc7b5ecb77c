"""How often a stage was started, how long each attempt lived, and how much of that was lost.

`attempts.json` in the stage's folder has one entry per attempt: the seconds it is known to have lived
(written every few seconds), the seconds after which its work lay on disk for good, and when it sent each
checkpoint. Which checkpoint counts is known only when a later attempt goes on from it (`restored`).
The book-keeping never fails a run: what cannot be written is left out. It ends with the stage, which owns it
(jsae.runtime.stages.Stage).
"""

import contextlib
import json
import time
from collections.abc import Callable

from etils import epath

from jsae.runtime import artifacts
from jsae.runtime.paths import PathLike

FILE = "attempts.json"
_WRITE_EVERY_S = 2.0


class Attempts:
    """The attempts at one stage, of which the last one is running."""

    def __init__(self, folder: PathLike, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = epath.Path(folder) / FILE, clock
        self._began_s = self._written_s = clock()
        self.entries = []
        if self.path.exists():
            with contextlib.suppress(ValueError):
                self.entries = json.loads(artifacts.content(self.path))
        self.entries.append({"alive_s": 0.0, "kept_s": 0.0, "saves": {}})
        self._write()

    def alive(self) -> None:
        """This process still works."""
        if self._clock() - self._written_s >= _WRITE_EVERY_S:
            self._write()

    def kept(self) -> None:
        """All work up to now lies on disk."""
        self.entries[-1]["kept_s"] = self._now()
        self._write()

    def saved(self, step: int) -> None:
        """The state after `step` was handed to the background to be written."""
        self.entries[-1]["saves"][str(step)] = self._now()
        self._write()

    def restored(self, step: int) -> None:
        """This attempt goes on from `step`: the latest attempt that saved it has kept that much."""
        for entry in reversed(self.entries[:-1]):
            if str(step) in entry["saves"]:
                entry["kept_s"] = max(entry["kept_s"], entry["saves"][str(step)])
                break
        self._write()

    def totals(self) -> dict[str, float]:
        """seconds, attempts and lost_work_seconds of all attempts; lost is what ended ones did not keep."""
        self._write()
        lost = sum(entry["alive_s"] - entry["kept_s"] for entry in self.entries[:-1])
        return {
            "seconds": round(sum(entry["alive_s"] for entry in self.entries), 3),
            "attempts": len(self.entries),
            "lost_work_seconds": round(max(lost, 0.0), 3),
        }

    def end(self) -> None:
        """The stage is finished and its manifest has the totals: the file goes."""
        artifacts.remove(self.path)

    def _now(self) -> float:
        return round(self._clock() - self._began_s, 3)

    def _write(self) -> None:
        self._written_s = self._clock()
        self.entries[-1]["alive_s"] = self._now()
        with contextlib.suppress(OSError):
            artifacts.write_bytes(self.path, json.dumps(self.entries, indent=1).encode())
