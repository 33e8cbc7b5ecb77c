"""A profile of some steps on demand: `--profile_steps=10..20` of a launch script.

Training loops call `at(stage, step, latest)` between dispatches; while the steps asked for run, jax.profiler
records, and the trace of each stage goes to workdir/profile/<stage>, for TensorBoard or Perfetto. Only the
writer process records. A loop that runs several steps in one dispatch ends one at each of `bounds()`, in
every process, so that the trace holds the steps asked for and no others: those after FIRST steps, up to and
with step LAST, counted from 1.
"""

import re

import jax
from etils import epath

from jsae.runtime import logs

_wanted = None  # (first, last, folder)
_recording = None  # the stage
_done: set[str] = set()


def request(steps: str, workdir) -> None:
    """Record the steps "FIRST..LAST" of every training stage into workdir/profile.

    Raises ValueError unless FIRST and LAST are rising whole numbers.
    """
    global _wanted
    match = re.fullmatch(r"(\d+)\.\.(\d+)", steps)
    if not match or int(match[1]) >= int(match[2]):
        raise ValueError(f"--profile_steps={steps!r}; expected FIRST..LAST, two rising numbers like 10..20")
    _wanted = int(match[1]), int(match[2]), epath.Path(workdir) / "profile"


def bounds() -> tuple[int, ...]:
    """After how many steps a profile begins and ends; nothing where nobody asked."""
    return _wanted[:2] if _wanted else ()


def at(stage: str, step: int, latest=None) -> None:
    """Tell that `step` steps of a stage were sent to the devices; `latest` is an array of the last one."""
    global _recording
    if _wanted is None or stage in _done or jax.process_index() != 0:
        return
    first, last, folder = _wanted
    if _recording is None and first <= step < last:
        jax.block_until_ready(latest)
        jax.profiler.start_trace(str(folder / stage))
        _recording = stage
        logs.get_logger().info("%s: profile begins after step %d", stage, step)
    elif _recording == stage and step >= last:
        jax.block_until_ready(latest)
        end(stage)


def end(stage: str) -> None:
    """Finish the stage's profile, if one is being recorded: at its last step, or at the end of its loop."""
    global _recording
    if _recording != stage:
        return
    jax.profiler.stop_trace()
    _recording = None
    _done.add(stage)
    logs.get_logger().info("%s: profile written to %s", stage, _wanted[2] / stage)
