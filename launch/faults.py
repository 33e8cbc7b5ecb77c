"""Does a study survive? The real pipeline, killed, stopped and damaged until it ends, beside one left alone.

    python -m launch.faults --folder=F [--a_stage=8] [--seed=0]
    python -m launch.faults --folder=F --n_faults=100
    python -m launch.faults --folder=F --n_faults=50 --processes=2
    python -m launch.faults --folder=F --latency=20
    python -m launch.faults --folder=F --every=120 --config=configs/demo.py

The first forms draw `a_stage` faults of each stage (SIGKILL, SIGTERM, SIGINT, a disk that takes no more) at
failpoints of a calm run, damages files between runs, and sends signals at random moments; after every fault
the run is started again. In the end each workdir is compared with the calm one (launch.compare_runs). A fault
that was not reached counts as failed. Of `n_faults` a tenth is damage, a tenth comes at random moments. With
several processes, which are one run, each fault befalls one of them; the others must end by themselves, with
75 where one was told to stop. The next form measures SIGTERM in every phase: seconds until the process
has ended with 75. The last kills a run every so many seconds and says which share of the time was useful.

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
import time

from jsae.runtime import stages
from launch import compare_runs, fault_plan, fault_process, fault_timing

EXIT_CODES = {"kill": -9, "term": 75, "int": 75, "full": 1}
OF_OTHERS = {"kill": (1, -6), "full": (1, -6), "term": (75,), "int": (75,)}  # -6: jax's own thread was first
ENDS_S = 60.0  # for a process to end by itself once another one has
RANDOM_KILLS = ("kill", "term", "int")


def run(workdir, processes: int = 1, of: int | None = 0, **how) -> list[fault_process.Outcome]:
    """The outcome of each process; what befalls, befalls `of`."""
    if processes == 1:
        return [fault_process.run(workdir, **how)]
    how.pop("whole", None)
    return fault_process.run_together(workdir, n=processes, of=of, **how)


def calm(workdir: pathlib.Path, processes: int = 1) -> list[list[str]]:
    """The failpoints that each process of a run left alone visits, in order."""
    shutil.rmtree(workdir, ignore_errors=True)
    done = run(workdir, processes, None, fail="trace@*")
    for ended in done:
        if ended.code:
            sys.exit(f"error: the calm run ended with {ended.code}: " + "\n".join(ended.lines[-5:]))
    marks = [[line for line in ended.lines if line.startswith("failpoint ")] for ended in done]
    return [[m.removeprefix("failpoint ").removesuffix(": trace") for m in each] for each in marks]


class Survivor:
    """One workdir that faults befall; failures and counts are collected."""

    def __init__(self, workdir: pathlib.Path, processes: int = 1):
        shutil.rmtree(workdir, ignore_errors=True)
        self.workdir, self.processes, self.failures, self.runs = workdir, processes, [], 0
        self.counts: collections.Counter = collections.Counter()  # (kind, stage)
        self._heard: list[tuple[str, tuple]] = []  # (what was damaged, words the next run must say)

    def befall(self, fault: fault_plan.Fault) -> None:
        """Run until the fault, see that the run ends as it must, and damage what the fault names."""
        how = {"of": fault.process, "fail": f"{fault.action}@{fault.point}"}
        outcomes = self._run(**how)
        if outcomes[fault.process].struck_s is None and outcomes[fault.process].code == 0:
            # the faults before it had left nothing of this place to do: from the stage on anew
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
                path = fault_plan.damage(self.workdir, fault)
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

    def _run(self, **how) -> list[fault_process.Outcome]:
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


def attack(
    folder: pathlib.Path,
    n_a_stage: int,
    seed: int,
    n_random: int,
    n_damages: int,
    processes: int = 1,
    n_faults: int = 0,
) -> bool:
    """The first forms; True if everything survived."""
    traces = calm(folder / "calm", processes)
    if n_faults:
        n_random, n_damages = n_faults // 10, min(n_faults // 10, n_damages)
        damage = fault_plan.damage_of(processes, n_damages)
        plan = fault_plan.draw_all(traces, n_faults - n_random - n_damages, seed)
    else:
        damage = fault_plan.damage_of(processes, n_damages)
        drawn = [fault_plan.draw(trace, n_a_stage, seed, of) for of, trace in enumerate(traces)]
        plan = {"faults" + (f"-{of}" if of else ""): faults for of, faults in enumerate(drawn)}
    survivors = []
    for name, todo in (*plan.items(), ("damage", damage)):
        if todo:
            survivors.append(Survivor(folder / name, processes))
            for fault in todo:
                began_s = time.monotonic()
                survivors[-1].befall(fault)
                took_s = time.monotonic() - began_s
                print(f"{name}: {fault.kind} at {fault.point} ({took_s:.0f} s)", file=sys.stderr)
    if n_random:
        rng = random.Random(seed)
        survivors.append(Survivor(folder / "moments", processes))
        for i in range(n_random):
            after_s = rng.uniform(0.2, 8.0) if i % 3 else rng.uniform(4, 9)
            if processes > 1:  # counted from when they have met
                after_s /= 2
            survivors[-1].strike(RANDOM_KILLS[i % 3], after_s, i // 3 % processes)
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
        f"\nprocesses {processes}, faults {counts.total()}, runs {sum(s.runs for s in survivors)}, "
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
    parser.add_argument("--n_faults", type=int, default=0, help="faults in all, instead of so many a stage")
    parser.add_argument("--processes", type=int, default=1, help="how many make one run")
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
        how = {"processes": args.processes, "n_faults": args.n_faults}
        good = attack(args.folder, args.a_stage, args.seed, args.moments, args.damages, **how)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
