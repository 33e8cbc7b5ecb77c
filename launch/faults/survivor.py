"""One workdir that faults hit one after the other, and what every run of it must end with."""

import collections
import pathlib
import shutil
import signal
import sys

from jsae.runtime import stages
from launch.faults import plan, runs

EXIT_CODES = {"kill": -9, "term": 75, "int": 75, "full": 1}
OF_OTHERS = {"kill": (1, -6), "full": (1, -6), "term": (75,), "int": (75,)}  # -6: a thread of jax was first
ENDS_S = 60.0  # for a process to end by itself once another one has


def run(workdir, processes: int = 1, of: int | None = 0, **how) -> list[runs.Outcome]:
    """The outcome of each process; the fault is in process `of`."""
    if processes == 1:
        return [runs.run(workdir, **how)]
    how.pop("whole", None)
    return runs.run_together(workdir, n=processes, of=of, **how)


class Survivor:
    """One workdir that faults hit; failures and counts are collected."""

    def __init__(self, workdir: pathlib.Path, processes: int = 1):
        shutil.rmtree(workdir, ignore_errors=True)
        self.workdir, self.processes, self.failures, self.runs = workdir, processes, [], 0
        self.counts: collections.Counter = collections.Counter()  # (kind, stage)
        self._heard: list[tuple[str, tuple]] = []  # (what was damaged, words the next run must say)

    def suffer(self, fault: plan.Fault) -> None:
        """Run until the fault, see that the run ends as it must, and damage what the fault names."""
        how = {"of": fault.process, "fail": f"{fault.action}@{fault.point}"}
        outcomes = self._run(**how)
        if outcomes[fault.process].struck_s is None and outcomes[fault.process].code == 0:
            # the faults before it had left nothing of this place to do: from the stage on, again
            for stage in stages.STAGES[stages.STAGES.index(fault.stage) :]:
                shutil.rmtree(self.workdir / stage, ignore_errors=True)
            outcomes = self._run(**how)
        what = f"{fault.kind} at {fault.point}" + (f" of process {fault.process}" if fault.process else "")
        self.counts[fault.kind, fault.stage] += 1
        self._judge(what, outcomes, fault.process, fault.action, [EXIT_CODES[fault.action]])
        if fault.kind == "full" and not (
            _say(outcomes, "error:", "Nothing that was finished is lost")
            or _say(outcomes, "error:", "checkpoints before it are intact")
        ):
            self._fail(f"{what}: the disk is not named", outcomes)
        if fault.target:
            try:
                path = plan.damage(self.workdir, fault)
            except FileNotFoundError as error:  # after a fault that was missed
                self._fail(f"{what}: {error}", outcomes)
            else:
                self._heard.append((f"{fault.kind} of {path.relative_to(self.workdir)}", fault.heard))

    def strike(self, kind: str, after_s: float, of: int = 0) -> None:
        """A signal at a moment that has nothing to do with what the run does.

        With several processes from the moment on at which they have met.
        """
        number = signal.Signals[f"SIG{kind.upper()}"]
        point = "installed" if self.processes == 1 else "begin/*"
        since = "" if self.processes == 1 else "failpoint begin/"
        outcomes = self._run(of=of, strike=(since, after_s, number), whole=True, fail=f"trace@{point}")
        if (
            outcomes[of].struck_s is None and outcomes[of].code == 0 and after_s > 0.2
        ):  # little was left to do
            shutil.rmtree(self.workdir, ignore_errors=True)
            return self.strike(kind, after_s / 2, of)
        self.counts[kind, "any moment"] += 1
        codes = [EXIT_CODES[kind]]
        if not _say(outcomes, "failpoint"):  # Python had not run a line of ours
            codes += [-15, -2]
        self._judge(f"{kind} after {after_s:.1f} s", outcomes, of, kind, codes)

    def finish(self) -> None:
        """Start again until the run ends by itself."""
        for _ in range(4):
            if not any(outcome.code for outcome in self._run()):
                return
        self.failures.append(f"{self.workdir.name}: does not end")

    def _judge(self, what: str, outcomes, of: int, action: str, codes) -> None:
        struck_s = outcomes[of].struck_s
        if struck_s is None:
            self._fail(f"{what}: missed, the run ended with {outcomes[of].code}", outcomes)
        elif outcomes[of].code not in codes:
            self._fail(f"{what}: exit code {outcomes[of].code}", outcomes)
        else:
            for index, other in enumerate(outcomes):
                if index != of and other.code not in OF_OTHERS[action]:
                    self._fail(f"{what}: process {index} ended with {other.code}", outcomes)
                if index != of and other.seconds - struck_s > ENDS_S:
                    self._fail(f"{what}: process {index} took {other.seconds - struck_s:.0f} s", outcomes)

    def _run(self, **how) -> list[runs.Outcome]:
        """A run; where it stops at damage that it must name, it is started again."""
        while True:
            outcomes = run(self.workdir, self.processes, **how)
            self.runs += 1
            heard, self._heard = self._heard, []
            for what, words in heard:
                if words and not _say(outcomes, *words):
                    self._fail(f"{what}: nobody said {' '.join(words)}", outcomes)
            stopped = outcomes[0].code == 1 and _say(outcomes, "open again")
            if not (heard and stopped):
                return outcomes

    def _fail(self, text: str, outcomes) -> None:
        said = [line for each in outcomes for line in each.lines if line and not line.startswith("failpoint")]
        self.failures.append(f"{self.workdir.name}: {text} ({' / '.join(said[-2:])})")
        print(self.failures[-1], file=sys.stderr)


def _say(outcomes, *words: str) -> bool:
    return any(outcome.says(*words) for outcome in outcomes)
