"""What stopping costs: seconds from a SIGTERM to the end of the run, in every phase.

Nothing is written after the process has ended, so its end is when its state is durable.
"""

import os
import pathlib
import random
import shutil
import signal

from jsae.runtime import stages
from launch import markdown
from launch.faults import runs

# phase -> (the stage made again, the line after which it begins, the line at which it is over)
PHASES = {
    "start-up": ("classifier", "installed", "classifier: starting"),
    "compile": ("classifier", "classifier: demo", "progress/classifier"),
    "train": ("classifier", "progress/classifier", "save/20"),
    "evaluate": ("classifier", "saved/20", "finish/classifier"),
    "extract": ("activations", "begin/activations", "finish/activations"),
    "sae": ("sae", "begin/sae", "finish/sae"),
    "analysis": ("analysis", "begin/analysis", "finish/analysis"),
    "ablation": ("ablation", "begin/ablation", "finish/ablation"),
    "report": ("report", "begin/report", "finish/report"),
}


def latencies(calm: pathlib.Path, folder: pathlib.Path, n: int, seed: int) -> dict[str, list[float | None]]:
    """Phase -> n times, seconds from a SIGTERM at a random moment of it to the exit; None: not with 75.

    Each run starts from a copy of the finished study without the phase's stage and those below. A signal that
    comes when the phase is over is sent again in another run.
    """
    rng, found = random.Random(seed), {}
    for phase, (stage, begins, ends) in PHASES.items():
        base = folder / f"before {stage}"
        shutil.rmtree(base, ignore_errors=True)
        shutil.copytree(calm, base)
        for name in stages.STAGES[stages.STAGES.index(stage) :]:
            shutil.rmtree(base / name, ignore_errors=True)
        _copy(base, folder / "work")
        alone = runs.run(folder / "work", fail="trace@*", **_how(phase))
        length_s = alone.time_of(ends) - alone.time_of(begins)
        found[phase] = []
        for _ in range(n * 3):
            if len(found[phase]) == n:
                break
            _copy(base, folder / "work")
            strike = (begins, rng.uniform(0, 0.9 * length_s), signal.SIGTERM)
            done = runs.run(folder / "work", fail="trace@*", strike=strike, **_how(phase))
            over = done.struck_s is None or any(
                ends in line and time_s < done.struck_s
                for line, time_s in zip(done.lines, done.times_s, strict=True)
            )
            if not over:
                found[phase].append(done.seconds - done.struck_s if done.code == 75 else None)
        print(f"faults: latency of {phase}: {len(found[phase])} signals", flush=True)
    return found


def _how(phase: str) -> dict:
    """Starting up is a whole Python; compiling finds nothing compiled."""
    if phase == "compile":
        uncached = {k: v for k, v in os.environ.items() if "COMPILATION_CACHE" not in k}
        return {"whole": True, "environment": uncached}
    return {"whole": phase == "start-up"}


def _copy(base: pathlib.Path, work: pathlib.Path) -> None:
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(base, work)


def _row(phase: str, times: list[float | None]) -> dict:
    good = sorted(time for time in times if time is not None)
    median, largest = (f"{good[len(good) // 2]:.2f}", f"{good[-1]:.2f}") if good else ("-", "-")
    row = {"phase": phase, "signals": len(times), "ended with 75": len(good)}
    return row | {"median s": median, "maximum s": largest}


def report_latencies(folder: pathlib.Path, n: int, seed: int) -> bool:
    """Measure n SIGTERMs a phase and print the table; True if every run ended with 75 within 30 s."""
    calm = folder / "calm"
    if not (calm / "report" / "index.html").exists():
        shutil.rmtree(calm, ignore_errors=True)
        runs.run(calm)
    found = latencies(calm, folder, n, seed)
    print(markdown.table([_row(phase, times) for phase, times in found.items()]))
    times = [time for of_phase in found.values() for time in of_phase]
    return len(times) == n * len(PHASES) and all(time is not None and time <= 30 for time in times)
