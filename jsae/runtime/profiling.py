"""A profile of some steps on demand: `--profile_steps=10..20` of a launch script.

Training loops call `RunContext.profile(stage, step, latest)` between dispatches; while the steps asked for
run, jax.profiler records, and the trace of each stage goes to workdir/profile/<stage>, for TensorBoard or
Perfetto. Only the writer process records. A loop that runs several steps in one dispatch ends one at each of
`bounds`, in every process, so that the trace holds the steps asked for and no others: those after FIRST
steps, up to and with step LAST, counted from 1.
"""

import re

import jax
from etils import epath

from jsae.runtime import logs
from jsae.runtime.paths import PathLike


class Profiler:
    """Records the steps "FIRST..LAST" of every training stage into workdir/profile.

    Raises ValueError unless FIRST and LAST are rising whole numbers.
    """

    def __init__(self, steps: str, workdir: PathLike) -> None:
        match = re.fullmatch(r"(\d+)\.\.(\d+)", steps)
        if not match or int(match[1]) >= int(match[2]):
            raise ValueError(
                f"--profile_steps={steps!r}; expected FIRST..LAST, two rising numbers like 10..20"
            )
        self.bounds = int(match[1]), int(match[2])
        self._folder = epath.Path(workdir) / "profile"
        self._recording: str | None = None  # the stage
        self._done: set[str] = set()

    def at(self, stage: str, step: int, latest: jax.Array | None = None) -> None:
        """`step` steps of a stage were sent to the devices; `latest` is an array of the last one."""
        if stage in self._done or jax.process_index() != 0:
            return
        first, last = self.bounds
        if self._recording is None and first <= step < last:
            jax.block_until_ready(latest)
            jax.profiler.start_trace(str(self._folder / stage))
            self._recording = stage
            logs.get_logger().info("%s: profile begins after step %d", stage, step)
        elif self._recording == stage and step >= last:
            jax.block_until_ready(latest)
            self.end(stage)

    def end(self, stage: str) -> None:
        """Finish the stage's profile, if one is being recorded."""
        if self._recording != stage:
            return
        jax.profiler.stop_trace()
        self._recording = None
        self._done.add(stage)
        logs.get_logger().info("%s: profile written to %s", stage, self._folder / stage)
