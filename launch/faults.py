"""Does a study survive? The real pipeline, killed, stopped and damaged until it ends, beside one left alone.

    python -m launch.faults --folder=F [--a_stage=8] [--seed=0]
    python -m launch.faults --folder=F --latency=20
    python -m launch.faults --folder=F --every=120 --config=configs/demo.py

The first form draws `a_stage` faults of each stage (SIGKILL, SIGTERM, SIGINT, a disk that takes no more) at
failpoints of a calm run, damages files between runs, and sends signals at random moments; after every fault
the run is started again. In the end each workdir is compared with the calm one (launch.compare_runs). A fault
that was not reached counts as failed. The second measures SIGTERM in every phase: seconds until the process
has ended with 75. The third kills a run every so many seconds and says which share of the time was useful.

Prints tables in markdown; exits with 1 if anything failed or differs.
"""

import argparse
import collections
import os
import pathlib
import random
import shutil
import signal
import sys

from jsae.runtime import stages
from launch import compare_runs, fault_plan, fault_process, fault_timing

EXIT_CODES = {"kill": -9, "term": 75, "int": 75, "full": 1}
RANDOM_KILLS = ("kill", "term", "int")


def calm(workdir: pathlib.Path) -> list[str]:
    """The failpoints that a run left alone visits, in order."""
    shutil.rmtree(workdir, ignore_errors=True)
    done = fault_process.run(workdir, fail="trace@*")
    if done.code:
        sys.exit(f"error: the calm run ended with {done.code}: " + "\n".join(done.lines[-5:]))
    marks = [line for line in done.lines if line.startswith("failpoint ")]
    return [mark.removeprefix("failpoint ").removesuffix(": trace") for mark in marks]


class Survivor:
    """One workdir that faults befall; failures and counts are collected."""

    def __init__(self, workdir: pathlib.Path):
        shutil.rmtree(workdir, ignore_errors=True)
        self.workdir, self.failures, self.runs = workdir, [], 0
        self.counts: collections.Counter = collections.Counter()  # (kind, stage)
        self._heard: list[tuple[str, tuple]] = []  # (what was damaged, words the next run must say)

    def befall(self, fault: fault_plan.Fault) -> None:
        """Run until the fault, see that the run ends as it must, and damage what the fault names."""
        outcome = self._run(fail=f"{fault.action}@{fault.point}")
        what = f"{fault.kind} at {fault.point}"
        self.counts[fault.kind, fault.stage] += 1
        if outcome.struck_s is None:
            self._fail(f"{what}: missed, the run ended with {outcome.code}", outcome)
        elif outcome.code != EXIT_CODES[fault.action]:
            self._fail(f"{what}: exit code {outcome.code}", outcome)
        elif fault.kind == "full" and not (
            outcome.says("error:", "Nothing that was finished is lost")
            or outcome.says("error:", "checkpoints before it are intact")
        ):
            self._fail(f"{what}: the disk is not named", outcome)
        if fault.target:
            try:
                path = fault_plan.damage(self.workdir, fault)
            except FileNotFoundError as error:  # after a fault that was missed
                self._fail(f"{what}: {error}", outcome)
            else:
                self._heard.append((f"{fault.kind} of {path.relative_to(self.workdir)}", fault.heard))

    def strike(self, kind: str, after_s: float) -> None:
        """A signal at a moment that has nothing to do with what the run does."""
        number = signal.Signals[f"SIG{kind.upper()}"]
        outcome = self._run(strike=("", after_s, number), whole=True, fail="trace@installed")
        self.counts[kind, "any moment"] += 1
        codes = [EXIT_CODES[kind]]
        if not outcome.says("failpoint installed"):  # Python had not run a line of ours
            codes += [-15, -2]
        if outcome.struck_s is None:
            self._fail(f"{kind} after {after_s:.1f} s: missed, the run ended with {outcome.code}", outcome)
        elif outcome.code not in codes:
            self._fail(f"{kind} after {after_s:.1f} s: exit code {outcome.code}", outcome)

    def finish(self) -> None:
        """Start again until the run ends by itself."""
        for _ in range(4):
            if self._run().code == 0:
                return
        self.failures.append(f"{self.workdir.name}: does not end")

    def _run(self, **how) -> fault_process.Outcome:
        """A run; where it stops at damage that it must name, it is started again."""
        while True:
            outcome = fault_process.run(self.workdir, **how)
            self.runs += 1
            heard, self._heard = self._heard, []
            for what, words in heard:
                if words and not outcome.says(*words):
                    self._fail(f"{what}: nobody said {' '.join(words)}", outcome)
            if not (heard and outcome.code == 1 and outcome.says("open again")):
                return outcome

    def _fail(self, text: str, outcome) -> None:
        said = [line for line in outcome.lines if line and not line.startswith("failpoint")][-2:]
        self.failures.append(f"{self.workdir.name}: {text} ({' / '.join(said)})")
        print(self.failures[-1], file=sys.stderr)


def attack(folder: pathlib.Path, n_a_stage: int, seed: int, n_random: int, damage) -> bool:
    """The first form; True if everything survived."""
    trace = calm(folder / "calm")
    faults = fault_plan.draw(trace, n_a_stage, seed)
    survivors = []
    for name, todo in (("faults", faults), ("damage", damage)):
        if todo:
            survivors.append(Survivor(folder / name))
            for fault in todo:
                survivors[-1].befall(fault)
                print(f"{name}: {fault.kind} at {fault.point}", file=sys.stderr)
    if n_random:
        rng = random.Random(seed)
        survivors.append(Survivor(folder / "moments"))
        for i in range(n_random):
            survivors[-1].strike(RANDOM_KILLS[i % 3], rng.uniform(0.2, 8.0) if i % 3 else rng.uniform(4, 9))
    differences = []
    for survivor in survivors:
        survivor.finish()
        found = compare_runs.compare(folder / "calm", survivor.workdir)
        differences += [f"{survivor.workdir.name}: {line}" for line in found]
    counts = sum((survivor.counts for survivor in survivors), collections.Counter())
    failures = [line for survivor in survivors for line in survivor.failures]
    print(_table(counts))
    n_files = len(compare_runs.files(folder / "calm"))
    print(
        f"\nfaults {counts.total()}, runs {sum(s.runs for s in survivors)}, "
        f"workdirs compared {len(survivors)} "
        f"({n_files} files each, and the arrays of both trainers' newest checkpoints), "
        f"failures {len(failures)}, differences {len(differences)}"
    )
    print(*(f"- {line}" for line in failures + differences), sep="\n")
    return not failures and not differences


def _table(counts: collections.Counter) -> str:
    rows = [*stages.STAGES, "any moment"]
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    lines = ["| stage | " + " | ".join(kinds) + " |", "|---" * (len(kinds) + 1) + "|"]
    for row in rows:
        lines.append(f"| {row} | " + " | ".join(str(counts[kind, row]) for kind in kinds) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the workdirs go")
    parser.add_argument("--a_stage", type=int, default=8, help="faults a stage")
    parser.add_argument("--damages", type=int, default=len(fault_plan.DAMAGE), help="damaged files")
    parser.add_argument("--moments", type=int, default=9, help="signals at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=int, default=0, help="SIGTERMs in each phase, instead of faults")
    parser.add_argument("--every", type=float, default=0.0, help="seconds between kills, instead of faults")
    parser.add_argument("--config", help="with --every: the experiment (default: the tiny one of the faults)")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what every run needs is compiled by the first
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str((args.folder / "compiled").resolve())
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if args.latency:
        good = fault_timing.report_latencies(args.folder, args.latency, args.seed)
    elif args.every:
        settings = [f"--config={args.config}"] if args.config else fault_process.TINY
        good = fault_timing.report_useful(args.folder, settings, args.every)
    else:
        good = attack(args.folder, args.a_stage, args.seed, args.moments, fault_plan.DAMAGE[: args.damages])
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
