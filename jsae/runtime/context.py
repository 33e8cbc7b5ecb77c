"""What a run carries besides its config and workdir, passed to every stage's `run`.

    context.progress(n, label="analysis of test", unit="image")   a bar on a terminal, lines elsewhere
    context.check()                                                stop here if that was asked for

A notebook or a test needs none: `RunContext()` shows progress and hears of no signals.
"""

import contextlib
import dataclasses
import logging

from jsae.runtime import logs, preemption, profiling


@dataclasses.dataclass
class RunContext:
    """Log, progress, stop requests and profiler of one run.

    Attributes:
      log: the logger of all rooms.
    """

    log: logging.Logger = dataclasses.field(default_factory=logs.get_logger)

    def note(self, text: str) -> None:
        """Warn, once, of something that the end of the run shall say again."""
        logs.note(text)

    def progress(
        self, total: int, *, start: int = 0, label: str = "", unit: str = "step"
    ) -> contextlib.AbstractContextManager[logs.Progress]:
        """A counter over `total` units, of which `start` are already done."""
        return logs.progress(total, start=start, label=label, unit=unit)

    def requested(self) -> bool:
        """Whether any process of the run was asked to stop; a collective."""
        return preemption.requested()

    def check(self) -> None:
        """Raise `preemption.Preempted` if a stop was asked for; a collective."""
        preemption.check()

    def check_here(self) -> None:
        """The same for work that every process does at its own pace; asks nobody."""
        preemption.check_here()

    def profile(self, stage: str, step: int, latest=None) -> None:
        """Tell that `step` steps of a stage were sent off; `latest` is an array of the last one."""
        profiling.at(stage, step, latest)

    def end_profile(self, stage: str) -> None:
        """Finish the stage's profile, if one is being recorded."""
        profiling.end(stage)

    def profile_bounds(self) -> tuple[int, ...]:
        """After how many steps a profile begins and ends; nothing where nobody asked."""
        return profiling.bounds()
