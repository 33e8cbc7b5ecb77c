"""The loop of the stage: dispatches of some steps, and what happens between two of them.

The metrics of a dispatch are read while the next one runs, so that the device never waits for the host.
Between two dispatches the loop saves, evaluates on val, and asks whether the run was told to stop. A
checkpoint holds parameters, Adam's moments and all counters, the rows of metrics.jsonl up to its step
are on disk before it is written, and the data's order is a function of (seed, step): a resumed run goes
on as if it had never stopped.
"""

import time

import jax
import numpy as np

from jsae import metrics
from jsae.runtime import checkpoints, logs, preemption, profiling
from jsae.runtime import mesh as meshes
from jsae.sae import train


def fit(
    state,
    step: int,
    source,
    dispatch,
    *,
    recipe: train.Recipe,
    every: dict,
    steps_per_dispatch: int,
    max_bad_steps: int,
    bad_vectors,
    validate,
    saved: checkpoints.Checkpoints,
    log: logs.MetricsLog,
    last_eval: int,
):
    """Train from `step` to the recipe's last step; the state and the vectors per second.

    Args:
      state: the train state at `step`; donated.
      step: steps already done.
      source: of the batches, `resident.Resident` or `streamed.Streamed`.
      dispatch: from `train.make_dispatch`.
      recipe: as for the dispatch.
      every: {"log", "save", "eval"}: after how many steps; 0 means never.
      steps_per_dispatch: the most steps of a dispatch; it stops earlier where a piece of the data ends, or a
        save or an evaluation is due. Results do not depend on it.
      max_bad_steps: refused steps in a row after which the run ends.
      bad_vectors: step, from 0 -> numbers of the batch's vectors that are not finite.
      validate: (sae) -> (SaeSums, Moments) over val, or None if it was told to stop.
      saved: where checkpoints go; one at the end always.
      log: where metrics go; it holds the rows up to `step`.
      last_eval: the step of the last evaluation in it, 0 for none.

    Raises:
      preemption.Preempted: after saving, if the run was asked to stop.
      FloatingPointError: max_bad_steps steps in a row were refused; the message names the step and vectors.
    """
    if steps_per_dispatch < 1 or max_bad_steps < 1:
        raise ValueError(
            f"steps_per_dispatch={steps_per_dispatch} and max_bad_steps={max_bad_steps} must be at least 1"
        )
    bad_in_row = int(state.bad_in_row)
    pending, rates, shape = None, [], source.shape
    steps_per_dispatch = min(steps_per_dispatch, source.most_steps)
    clock = time.monotonic()

    def is_due(what: str) -> bool:
        return every[what] > 0 and step % every[what] == 0

    def explain(bad_step: int) -> str:
        return _reason(bad_vectors(bad_step - 1))

    def save_and_stop():
        profiling.end("sae")
        saved.save(step, state)
        saved.wait()
        preemption.check()

    with logs.progress(recipe.n_steps, start=step, label="sae") as progress:
        while True:
            if step and is_due("eval") and last_eval != step:
                sums = validate(train.trained_sae(state))
                if sums is None:
                    save_and_stop()
                log.write(step, _numbers("eval", sums[0]))
                last_eval, clock = step, None
            if step >= recipe.n_steps:
                break
            piece = source.at(step)
            ends = [piece.stop, recipe.n_steps]
            ends += [(step // every[k] + 1) * every[k] for k in ("save", "eval") if every[k] > 0]
            ends += [bound for bound in profiling.bounds() if bound > step]
            n = min(steps_per_dispatch, min(ends) - step)
            profiling.at("sae", step, state.step)
            state, values = dispatch(state, piece.x, piece.mask, piece.order, piece.first, n)
            first, step = step, step + n
            sending = (first, n, values)
            stop = preemption.requested()
            wait_now = stop or is_due("save") or is_due("eval") or step == recipe.n_steps
            for first, n, values in [p for p in (pending, sending if wait_now else None) if p]:
                values = jax.tree.map(np.asarray, meshes.to_host(values))
                source.done(first + n)
                now = time.monotonic()
                seconds, clock = (now - clock if clock else None), now
                rate = n * shape.n_vectors / shape.steps_per_epoch / seconds if seconds else None
                rates += [rate] if rate and first else []
                bad_in_row = _report(
                    log, every["log"], first, n, values, rate, bad_in_row, max_bad_steps, explain
                )
                progress.update(n, fvu=values["fvu"][n - 1], l0=values["l0"][n - 1])
            pending = None if wait_now else sending
            if stop:
                save_and_stop()
            if is_due("save") or step == recipe.n_steps:
                saved.save(step, state)
                clock = None
    profiling.end("sae")
    saved.wait()
    return state, float(np.median(rates)) if rates else None


def last_eval(path) -> int:
    """The step of the last eval/* row of a metrics.jsonl, 0 for none."""
    rows = logs.read_metrics(path) if path.exists() else []
    return max((row["step"] for row in rows if "eval/l0" in row), default=0)


def _report(log, every, first: int, n: int, values, rate, bad_in_row: int, max_bad: int, explain) -> int:
    """Write the rows of one dispatch; refused steps in a row up to its end. Step s is the s-th, from 1."""
    for i in range(n):
        step = first + i + 1
        bad_in_row = bad_in_row + 1 if values["refused"][i] else 0
        if bad_in_row:
            logs.get_logger().warning("sae: step %d refused: its loss or gradient is not finite", step)
        if every > 0 and step % every == 0:
            row = {f"train/{name}": values[name][i] for name in train.METRICS}
            log.write(step, row | {"train/vectors_per_s": rate})
        if bad_in_row >= max_bad:
            raise FloatingPointError(
                f"SAE training stopped at step {step}: the last {bad_in_row} steps in a row were refused, "
                f"because their loss or gradient was not finite. {explain(step)}. "
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
