"""Does a study survive? The real pipeline, killed, stopped and damaged until it ends, beside one left alone.

    python -m launch.faults --folder=F [--a_stage=8] [--seed=0]
    python -m launch.faults --folder=F --n_faults=100
    python -m launch.faults --folder=F --n_faults=50 --processes=2
    python -m launch.faults --folder=F --latency=20

The first forms draw `a_stage` faults of each stage (SIGKILL, SIGTERM, SIGINT, a disk that takes no more) at
failpoints of a calm run, damage files between runs, and send signals at random moments; after every fault
the run is started again. In the end each workdir is compared with the calm one (faults/compare_runs.py). A
fault that was not reached counts as failed. Of `n_faults` a tenth is damage, a tenth comes at random moments.
With several processes, which are one run, each fault hits one of them; the others must end by themselves,
with 75 where one was told to stop. The last form measures SIGTERM in every phase: seconds until the process
has ended with 75.

Prints tables in markdown; exits with 1 if anything failed or differs.
"""

import argparse
import collections
import os
import pathlib
import random
import shutil
import sys
import time

from jsae.runtime import stages
from launch import markdown
from launch.faults import compare_runs, plan, survivor, timing

RANDOM_KILLS = ("kill", "term", "int")


def calm(workdir: pathlib.Path, processes: int = 1) -> list[list[str]]:
    """The failpoints that each process of a run left alone visits, in order."""
    shutil.rmtree(workdir, ignore_errors=True)
    done = survivor.run(workdir, processes, None, fail="trace@*")
    for ended in done:
        if ended.code:
            sys.exit(f"error: the calm run ended with {ended.code}: " + "\n".join(ended.lines[-5:]))
    marks = [[line for line in ended.lines if line.startswith("failpoint ")] for ended in done]
    return [[m.removeprefix("failpoint ").removesuffix(": trace") for m in each] for each in marks]


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
        damage = plan.damage_of(processes, n_damages)
        todo = plan.draw_all(traces, n_faults - n_random - n_damages, seed)
    else:
        damage = plan.damage_of(processes, n_damages)
        drawn = [plan.draw(trace, n_a_stage, seed, of) for of, trace in enumerate(traces)]
        todo = {"faults" + (f"-{of}" if of else ""): faults for of, faults in enumerate(drawn)}
    works = []
    for name, faults in (*todo.items(), ("damage", damage)):
        if faults:
            works.append(survivor.Survivor(folder / name, processes))
            for fault in faults:
                began_s = time.monotonic()
                works[-1].suffer(fault)
                took_s = time.monotonic() - began_s
                print(f"{name}: {fault.kind} at {fault.point} ({took_s:.0f} s)", file=sys.stderr)
    if n_random:
        rng = random.Random(seed)
        works.append(survivor.Survivor(folder / "moments", processes))
        for i in range(n_random):
            after_s = rng.uniform(0.2, 8.0) if i % 3 else rng.uniform(4, 9)
            if processes > 1:  # counted from when they have met
                after_s /= 2
            works[-1].strike(RANDOM_KILLS[i % 3], after_s, i // 3 % processes)
    differences = []
    for work in works:
        work.finish()
        found = compare_runs.compare(folder / "calm", work.workdir)
        differences += [f"{work.workdir.name}: {line}" for line in found]
    counts = sum((work.counts for work in works), collections.Counter())
    failures = [line for work in works for line in work.failures]
    kinds = list(dict.fromkeys(kind for kind, _ in counts))
    rows = [*stages.STAGES, "any moment"]
    print(markdown.table([{"stage": row} | {kind: counts[kind, row] for kind in kinds} for row in rows]))
    n_files = len(compare_runs.files(folder / "calm"))
    print(
        f"\nprocesses {processes}, faults {counts.total()}, runs {sum(work.runs for work in works)}, "
        f"workdirs compared {len(works)} "
        f"({n_files} files each, and the arrays of both trainers' newest checkpoints), "
        f"failures {len(failures)}, differences {len(differences)}"
    )
    print(*(f"- {line}" for line in failures + differences), sep="\n")
    return not failures and not differences


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="where the workdirs go")
    parser.add_argument("--a_stage", type=int, default=8, help="faults a stage")
    parser.add_argument("--n_faults", type=int, default=0, help="faults in all, instead of so many a stage")
    parser.add_argument("--processes", type=int, default=1, help="how many make one run")
    parser.add_argument("--damages", type=int, default=len(plan.DAMAGE), help="damaged files")
    parser.add_argument("--moments", type=int, default=9, help="signals at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--latency", type=int, default=0, help="SIGTERMs in each phase, instead of faults")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # what every run needs is compiled by the first
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str((args.folder / "compiled").resolve())
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    if args.latency:
        good = timing.report_latencies(args.folder, args.latency, args.seed)
    else:
        how = {"processes": args.processes, "n_faults": args.n_faults}
        good = attack(args.folder, args.a_stage, args.seed, args.moments, args.damages, **how)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
