"""The loop of the stage: dispatches of some steps, and what happens between two of them.

The metrics of a dispatch are read while the next one runs, so that the device never waits for the host.
Between two dispatches the loop saves, evaluates on val, and asks whether the run was told to stop. A
checkpoint holds parameters, Adam's moments and all counters, the rows of metrics.jsonl up to its step
are on disk before it is written, and the data's order is a function of (seed, step): a resumed run goes
on as if it had never stopped.
"""

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
from jsae.runtime.pace import Pace
from jsae.sae import evaluate, train


def run_steps(
    state: train.TrainState,
    step: int,
    source: Any,
    dispatch: Callable,
    *,
    pace: Pace,
    max_bad_steps: int,
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
      max_bad_steps: refused steps in a row after which the run ends.
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
    pending = None
    with context.progress(pace.n_steps, start=step, label="sae") as progress:
        reader = _Reader(source, log, pace, progress, max_bad_steps, bad_vectors, int(state.bad_in_row))
        while True:
            if step and pace.evaluates(step) and last_eval != step:
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
            saves = pace.saves(step)
            wait_now = stop or saves or pace.evaluates(step)
            if pending:
                reader.read(*pending)
            if wait_now:
                reader.read(*sent)
            pending = None if wait_now else sent
            if stop:
                _save_and_stop(saved, step, state, context)
            if saves:
                saved.save(step, state)
                pace.saved(step)
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

    def __init__(self, source, log, pace: Pace, progress, max_bad_steps, bad_vectors, bad_in_row: int):
        self._source, self._log, self._pace, self._progress = source, log, pace, progress
        self._max_bad_steps, self._bad_vectors, self._bad_in_row = max_bad_steps, bad_vectors, bad_in_row
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
        self._pace.measured(n, seconds)
        self._report(first, n, values, rate)
        self._progress.update(n, fvu=values["fvu"][n - 1], l0=values["l0"][n - 1])

    def _report(self, first: int, n: int, values: dict, rate: float | None) -> None:
        """Write the rows of one dispatch and count refused steps. Step s is the s-th, from 1."""
        for i in range(n):
            step = first + i + 1
            self._bad_in_row = self._bad_in_row + 1 if values["refused"][i] else 0
            if self._bad_in_row:
                logs.get_logger().warning("sae: step %d refused: its loss or gradient is not finite", step)
            if self._pace.logs(step):
                row = {f"train/{name}": values[name][i] for name in train.METRICS}
                self._log.write(step, row | {"train/vectors_per_s": rate})
            if self._bad_in_row >= self._max_bad_steps:
                raise FloatingPointError(
                    f"SAE training stopped at step {step}: the last {self._bad_in_row} steps in a row were "
                    "refused, because their loss or gradient was not finite. "
                    f"{_reason(self._bad_vectors(step - 1))}. The last checkpoint is from before"
                )

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
