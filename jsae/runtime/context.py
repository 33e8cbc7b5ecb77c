"""What a run carries besides its config and workdir, passed to every stage's `run`.

    with context.progress(n, label="analysis of test", unit="image") as bar:
        for batch in batches:
            context.check()      stop here if that was asked for
            bar.update(len(batch))

`launch.start` makes the one of a run: with the process's signal handlers, a profiler, TensorBoard. A notebook
or a test needs none of these: `RunContext()` shows progress, writes no files, and hears of signals only where
the process has installed handlers.
"""

import dataclasses
import logging
from collections.abc import Callable

import jax

from jsae.runtime import compilation, logs, preemption
from jsae.runtime.paths import PathLike
from jsae.runtime.profiling import Profiler


def _nothing(point: str) -> None:
    pass


@dataclasses.dataclass
class RunContext:
    """Log, progress, stop requests and profiler of one run.

    Attributes:
      log: the logger of all rooms.
      signals: the process's handlers, None where none are installed: then nothing asks the run to stop.
      profiler: records steps, where that was asked for.
      tensorboard: tensorboardX's SummaryWriter class, where it was asked for (`logs.tensorboard_writer`).
      notes: what the end of the run says again; collected where it is a filter of the logger.
      compiling: seconds spent on compilation, counted where the run listens to jax.
      failpoint: called with the name of each place that the run comes to, for tests that let it fail there:
        poll (a loop asks whether to stop), progress/LABEL, begin/STAGE, finish/STAGE, save/STEP (a checkpoint
        is handed to the background), saved/STEP (it is on disk).
      n_steps: how often the run has made progress or asked whether to stop (jsae.runtime.watchdog).
      alive: called at each of these; the running stage counts how long it lives.
    """

    log: logging.Logger = dataclasses.field(default_factory=logs.get_logger)
    signals: preemption.Signals | None = dataclasses.field(default_factory=preemption.installed)
    profiler: Profiler | None = None
    tensorboard: type | None = None
    notes: logs.Notes = dataclasses.field(default_factory=logs.Notes)
    compiling: compilation.Seconds | None = None
    failpoint: Callable[[str], None] = _nothing
    n_steps: int = 0
    alive: Callable[[], None] = lambda: None

    def note(self, text: str) -> None:
        """Warn, once, of something that the end of the run shall say again."""
        logs.note(text)

    def progress(self, total: int, *, start: int = 0, label: str = "", unit: str = "step") -> logs.Progress:
        """A counter over `total` units, of which `start` are already done; to be used in a `with`."""
        return logs.Progress(total, start, label, unit, lambda: self._step(f"progress/{label}"))

    def metrics_log(self, path: PathLike) -> logs.MetricsLog:
        """The metrics.jsonl at `path`, and TensorBoard's events beside it where the run has them."""
        return logs.MetricsLog(path, self.tensorboard)

    def requested_by_any(self) -> bool:
        """Whether any process of the run was asked to stop, and all of them stop here.

        No collective, and no message: but all processes must call it the same number of times, for they
        agree on the number of the call.
        """
        self._step("poll")
        return self._answered(self.signals is not None and self.signals.is_stop_due())

    def requested_here(self) -> bool:
        """Whether this process was asked to stop, or has heard that another was; asks nobody, never waits."""
        self._step("poll")
        return self._answered(self.signals is not None and self.signals.is_told())

    def check(self) -> None:
        """Raise `preemption.Preempted` if a stop was asked for; for loops whose state is already on disk.

        All processes must call it the same number of times, as `requested_by_any`.
        """
        if self.requested_by_any():
            raise preemption.Preempted

    def check_here(self) -> None:
        """`check` for work that every process does at its own pace, by `requested_here`.

        What it stops must be idempotent. The others stop at their own next point, or when they hear that this
        process has left.
        """
        if self.requested_here():
            raise preemption.Preempted

    def profile(self, stage: str, step: int, latest: jax.Array | None = None) -> None:
        """`step` steps of a stage were sent to the devices; `latest` is an array of the last one."""
        if self.profiler is not None:
            self.profiler.at(stage, step, latest)

    def end_profile(self, stage: str) -> None:
        """Finish the stage's profile, if one is being recorded: at its last step or the end of its loop."""
        if self.profiler is not None:
            self.profiler.end(stage)

    def profile_bounds(self) -> tuple[int, ...]:
        """After how many steps a profile begins and ends; nothing where nobody asked."""
        return () if self.profiler is None else self.profiler.bounds

    def _step(self, point: str) -> None:
        self.n_steps += 1
        self.alive()
        self.failpoint(point)

    def _answered(self, asked: bool) -> bool:
        if asked and self.signals is not None:
            self.signals.deadline.answer()
        return asked
