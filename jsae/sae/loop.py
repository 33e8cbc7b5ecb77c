"""The loop of the stage: dispatches of some steps, and what happens between two of them.

The metrics of a dispatch are read while the next one runs, so that the device never waits for the host.
Between two dispatches the loop saves, evaluates on val, and asks whether the run was told to stop. A
checkpoint holds parameters, Adam's moments and all counters, the rows of metrics.jsonl up to its step
are on disk before it is written, and the data's order is a function of (seed, step): a resumed run goes
on as if it had never stopped.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from jsae import metrics
from jsae.runtime import checkpoints, logs, preemption
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.sae import evaluate, train


@dataclasses.dataclass(frozen=True)
class Pace:
    """How long a run is, and after how many steps what happens; 0 means never.

    Attributes:
      n_steps: of the whole run.
      log, save, eval: rows of metrics.jsonl, checkpoints, evaluations on val.
      steps_per_dispatch: the most steps of a dispatch; it stops earlier where a window of the data ends, or a
        save or an evaluation is due. Results do not depend on it.
      max_bad_steps: refused steps in a row after which the run ends.

    Raises ValueError unless the last two are at least 1.
    """

    n_steps: int
    log: int
    save: int
    eval: int
    steps_per_dispatch: int
    max_bad_steps: int

    def __post_init__(self):
        if self.steps_per_dispatch < 1 or self.max_bad_steps < 1:
            raise ValueError(
                f"steps_per_dispatch={self.steps_per_dispatch} and max_bad_steps={self.max_bad_steps} must "
                "be at least 1"
            )

    def is_due(self, every: int, step: int) -> bool:
        """Whether something happens after `step` steps, every so many."""
        return every > 0 and step % every == 0

    def length(self, step: int, *bounds: int) -> int:
        """Steps of the dispatch that begins at `step` and must not run over any of the bounds."""
        ends = [self.n_steps, *(bound for bound in bounds if bound > step)]
        ends += [(step // every + 1) * every for every in (self.save, self.eval) if every > 0]
        return min(self.steps_per_dispatch, min(ends) - step)


def run_steps(
    state: train.TrainState,
    step: int,
    source: Any,
    dispatch: Callable,
    *,
    pace: Pace,
    bad_vectors: Callable[[int], list[int]],
    validate: Callable[[train.TrainState], evaluate.Sums],
    saved: checkpoints.Checkpoints,
    log: logs.MetricsLog,
    last_eval: int,
    context: RunContext,
) -> tuple[train.TrainState, float | None]:
    """Train from `step` to the last one; the state and the vectors per second.

    Args:
      state: the train state at `step`; donated.
      step: steps already done.
      source: of the batches, `batches.resident.Resident` or `batches.streamed.Streamed`.
      dispatch: from `train.make_dispatch`.
      pace: when what happens.
      bad_vectors: step, from 0 -> numbers of the batch's vectors that are not finite.
      validate: the sums over val; raises Preempted if the run was asked to stop.
      saved: where checkpoints go; one at the end always.
      log: where metrics go; it holds the rows up to `step`.
      last_eval: the step of the last evaluation in it, 0 for none.
      context: progress, stop requests, profiler.

    Raises:
      preemption.Preempted: after saving, if the run was asked to stop.
      FloatingPointError: max_bad_steps steps in a row were refused; the message names the step and vectors.
    """
    pace = dataclasses.replace(pace, steps_per_dispatch=min(pace.steps_per_dispatch, source.most_steps))
    pending = None
    with context.progress(pace.n_steps, start=step, label="sae") as progress:
        reader = _Reader(source, log, pace, progress, bad_vectors, int(state.bad_in_row))
        while True:
            if step and pace.is_due(pace.eval, step) and last_eval != step:
                try:
                    sums = validate(state)
                except preemption.Preempted:
                    _save_and_stop(saved, step, state, context)
                log.write(step, _numbers("eval", sums.sae))
                last_eval = step
                reader.stop_clock()
            if step >= pace.n_steps:
                break
            window = source.at(step)
            n = pace.length(step, window.stop, *context.profile_bounds())
            context.profile("sae", step, state.step)
            state, values = dispatch(state, window.x, window.mask, window.order, window.first, n)
            sent, step = (step, n, values), step + n
            stop = context.requested_by_any()
            saves = pace.is_due(pace.save, step) or step == pace.n_steps
            wait_now = stop or saves or pace.is_due(pace.eval, step)
            if pending:
                reader.read(*pending)
            if wait_now:
                reader.read(*sent)
            pending = None if wait_now else sent
            if stop:
                _save_and_stop(saved, step, state, context)
            if saves:
                saved.save(step, state)
                reader.stop_clock()
    context.end_profile("sae")
    saved.wait()
    return state, reader.rate()


def _save_and_stop(saved: checkpoints.Checkpoints, step: int, state, context: RunContext) -> None:
    context.end_profile("sae")
    saved.save(step, state)
    saved.wait()
    context.check()


class _Reader:
    """Reads the metrics of dispatches, writes their rows, and measures the time between them."""

    def __init__(self, source, log, pace: Pace, progress, bad_vectors, bad_in_row: int):
        self._source, self._log, self._pace, self._progress = source, log, pace, progress
        self._bad_vectors, self._bad_in_row = bad_vectors, bad_in_row
        self._rates: list[float] = []
        self._clock: float | None = time.monotonic()

    def read(self, first: int, n: int, values: dict) -> None:
        """The metrics of the n steps after `first`; waits until the devices have them."""
        values = jax.tree.map(np.asarray, meshes.to_host(values))
        self._source.done(first + n)
        now, shape = time.monotonic(), self._source.shape
        seconds = now - self._clock if self._clock else None
        self._clock = now
        rate = n * shape.n_vectors / shape.steps_per_epoch / seconds if seconds else None
        if rate and first:
            self._rates.append(rate)
        self._bad_in_row = _report(
            self._log, self._pace, first, n, values, rate, self._bad_in_row, self._bad_vectors
        )
        self._progress.update(n, fvu=values["fvu"][n - 1], l0=values["l0"][n - 1])

    def stop_clock(self) -> None:
        """What comes now is no training: the next dispatch has no rate."""
        self._clock = None

    def rate(self) -> float | None:
        """Vectors per second, the median over dispatches."""
        return float(np.median(self._rates)) if self._rates else None


def last_eval(path: epath.Path) -> int:
    """The step of the last eval/* row of a metrics.jsonl, 0 for none."""
    rows = logs.read_metrics(path) if path.exists() else []
    return max((row["step"] for row in rows if "eval/l0" in row), default=0)


def _report(log, pace: Pace, first: int, n: int, values, rate, bad_in_row: int, bad_vectors) -> int:
    """Write the rows of one dispatch; refused steps in a row up to its end. Step s is the s-th, from 1."""
    for i in range(n):
        step = first + i + 1
        bad_in_row = bad_in_row + 1 if values["refused"][i] else 0
        if bad_in_row:
            logs.get_logger().warning("sae: step %d refused: its loss or gradient is not finite", step)
        if pace.is_due(pace.log, step):
            row = {f"train/{name}": values[name][i] for name in train.METRICS}
            log.write(step, row | {"train/vectors_per_s": rate})
        if bad_in_row >= pace.max_bad_steps:
            raise FloatingPointError(
                f"SAE training stopped at step {step}: the last {bad_in_row} steps in a row were refused, "
                f"because their loss or gradient was not finite. {_reason(bad_vectors(step - 1))}. "
                "The last checkpoint is from before"
            )
    return bad_in_row


def _reason(bad: list[int]) -> str:
    if not bad:
        return "All vectors of the last batch are finite: lower sae.learning_rate"
    named = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
    return (
        f"{len(bad)} activation vector(s) of the last batch hold NaN or infinity: {named} of the train split "
        "(vector = image x cells of the grid + row x width + column)"
    )


def _numbers(prefix: str, sums) -> dict:
    if sums is None:
        return {f"{prefix}/{name}": None for name in ("l0", "fvu", "dead_fraction")}
    found = metrics.sae_metrics(sums)
    return {f"{prefix}/{name}": found[name] for name in ("l0", "fvu", "dead_fraction")}
