"""The pace of a training loop: when it logs, saves and evaluates, and how many steps a dispatch has.

Rows of metrics and evaluations come after a number of steps. Checkpoints come after a number of steps, after
a time, or both. The time becomes a number of steps, which the writer process derives from its clock, once the
first dispatches are measured and again at every save; all processes take the writer's number, so that they
save at the same step and ask each other nothing in between. The length of a dispatch is chosen in the same
way, once, and kept in the stage's manifest, where a resumed run finds it. What a run computes depends on none
of this.

    pace = Pace.of_stage(stage, config.sae, n_steps, start=step, most_steps=source.most_steps)
    while step < n_steps:
        n = pace.length(step, window.stop)          steps of this dispatch, at most pace.most_steps
        ...                                         send it; step += n
        pace.measured(n, seconds)                   when its results have come, a dispatch later
        if pace.saves(step):
            ...
            pace.saved(step)
"""

import collections
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

from jsae.runtime import circumstances, mesh, settings
from jsae.runtime.stages import Stage

STEPS_PER_DISPATCH = settings.Range("at least 0; 0 chooses", lambda value: value >= 0)
SAVE_EVERY_S = settings.Range("at least 0; 0 is never by time", lambda value: value >= 0)
DISPATCH_S = 0.5  # a signal waits for a dispatch, and its overhead is some milliseconds
MOST_STEPS = 1000  # of a dispatch whose length is chosen
_FIRST_STEPS = 4  # of a dispatch until then
_N_MEASURED = 3  # dispatches behind the first one, in which compiling may be


class Pace:
    """The pace of one run from step `start` on; a number of 0 is never, but for steps_per_dispatch.

    Args:
      n_steps: of the whole run.
      start: steps done before, of which a checkpoint lies there.
      log_every_steps, eval_every_steps, save_every_steps: what comes after how many steps.
      save_every_s: seconds between two checkpoints, about: see the module's docstring.
      steps_per_dispatch: the most steps of a dispatch; 0: as many as take about `DISPATCH_S`.
      most_steps: more never make sense, whatever the setting.
      kept: the length that an earlier attempt chose, None without one.
      keep: called with the length that is chosen.
      of_writer: `mesh.of_writer`.
      clock: seconds, monotonic.
    """

    def __init__(
        self,
        n_steps: int,
        *,
        start: int = 0,
        log_every_steps: int = 0,
        eval_every_steps: int = 0,
        save_every_steps: int = 0,
        save_every_s: float = 0.0,
        steps_per_dispatch: int = 0,
        most_steps: int = MOST_STEPS,
        kept: int | None = None,
        keep: Callable[[int], None] = lambda length: None,
        of_writer: Callable[[Callable[[], Any]], Any] = mesh.of_writer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.n_steps = n_steps
        self._log, self._eval, self._save = log_every_steps, eval_every_steps, save_every_steps
        self._save_s, self._saved_at, self._next_save = save_every_s, start, n_steps
        self.most_steps = min(steps_per_dispatch or MOST_STEPS, most_steps)
        self._length = min(steps_per_dispatch or kept or _FIRST_STEPS, self.most_steps)
        self._chooses = not (steps_per_dispatch or kept)
        self._keep, self._of_writer, self._clock = keep, of_writer, clock
        self._n_measured, self._since_s = 0, clock()
        self._step_s: collections.deque[float] = collections.deque(maxlen=_N_MEASURED)

    @classmethod
    def of_stage(
        cls, stage: Stage, c: Any, n_steps: int, *, start: int, most_steps: int = MOST_STEPS
    ) -> "Pace":
        """The pace of a stage, from its config section; a length found on other devices is chosen again."""
        manifest = stage.manifest
        kept = mesh.of_writer(
            lambda: None if circumstances.changed(manifest) else manifest.get("steps_per_dispatch")
        )
        names = ("log_every_steps", "eval_every_steps", "save_every_steps", "save_every_s")
        return cls(
            n_steps,
            start=start,
            **{name: c[name] for name in (*names, "steps_per_dispatch")},
            most_steps=most_steps,
            kept=kept,
            keep=lambda length: stage.note(steps_per_dispatch=length),
        )

    def logs(self, step: int) -> bool:
        """Whether a row of metrics is due after `step` steps."""
        return _is_due(self._log, step)

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps."""
        return _is_due(self._eval, step)

    def saves(self, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps; the last step has one always."""
        return _is_due(self._save, step) or step >= self._next_save

    def length(self, step: int, *bounds: int) -> int:
        """Steps of the dispatch that begins at `step` and must not run over any of the bounds."""
        ends = [self.n_steps, *(bound for bound in bounds if bound > step)]
        ends += [(step // every + 1) * every for every in (self._save, self._eval) if every > 0]
        return min(self._length, min(ends) - step)

    def measured(self, n: int, seconds: float | None) -> None:
        """A dispatch of n steps took so long; None where something else was done meanwhile.

        With several processes a collective, once in a run: all must call it for the same dispatches.
        """
        self._n_measured += 1
        if seconds is None or self._n_measured == 1 or len(self._step_s) == _N_MEASURED:
            return
        self._step_s.append(seconds / n)
        if len(self._step_s) == _N_MEASURED and (self._chooses or self._save_s):
            self._plan(lambda: statistics.median(self._step_s))

    def saved(self, step: int) -> None:
        """A checkpoint of `step` was sent off: when is the next one due? With several processes a
        collective."""
        now = self._clock()
        taken_s, n = now - self._since_s, step - self._saved_at
        self._since_s, self._saved_at = now, step
        if self._save_s and n > 0 and len(self._step_s) == _N_MEASURED and step < self.n_steps:
            self._plan(lambda: taken_s / n)

    def _plan(self, seconds_per_step: Callable[[], float]) -> None:
        def plan() -> list[int]:
            step_s = max(seconds_per_step(), 1e-9)
            fitting = min(int(DISPATCH_S / step_s), self.most_steps)
            return [max(1, fitting), math.ceil(self._save_s / step_s)]

        length, until_save = self._of_writer(plan)
        if self._chooses:
            self._chooses, self._length = False, length
            self._keep(length)
        if self._save_s:
            self._next_save = min(self._saved_at + until_save, self.n_steps)


def _is_due(every: int, step: int) -> bool:
    return every > 0 and step % every == 0
