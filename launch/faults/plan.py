"""Which faults hit a run, where, and what must come of each.

A calm run says every failpoint it visits (fail="trace@*"); a plan draws from these, so that a fault is
never aimed at a place that does not exist. In one workdir the faults follow each other in the order of their
places: each is visited by the run that goes on after the fault before.
"""

import collections
import dataclasses
import itertools
import pathlib
import random
import re

from jsae.runtime import stages

_NOISE = ("attempts.json",)  # book-keeping, written at times that depend on the clock
_OF_THE_WORKDIR = ("config.json", "summary.json")  # their points carry the workdir's name
_SHARD_NUMBER = re.compile(r"/(?:shard|logits)-(\d+)")
KINDS = ("kill", "term", "int", "full")
KINDS_OF_OTHERS = (
    "kill",
    "term",
    "int",
)  # only the first process writes


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
      kind: kill, term, int, full: hits the run at `point`. truncate, flip, tear: the run is killed at
        `point`, then the newest file that `target` names is damaged.
      stage: the stage in which the point lies.
      point: POINT#N of launch.faults.points.
      process: the process of several that it hits.
      target: a shell pattern of files in the workdir.
      heard: words that one line of the next run must hold; none for damage that is mended in silence.
    """

    kind: str
    stage: str
    point: str
    target: str = ""
    heard: tuple[str, ...] = ()
    process: int = 0

    @property
    def action(self) -> str:
        return self.kind if self.kind in KINDS else "kill"


_NEWEST = "checkpoints/*/default/ocdbt.process_0/d/*"
_INDEX = "checkpoints/*/default/d/*"  # read whatever is wanted of the checkpoint; of the rest, what is wanted
_UNREADABLE, _DAMAGED = ("checkpoint", "cannot be read"), ("is damaged", "open again")
DAMAGE = (
    Fault("flip", "classifier", "save/16", f"classifier/{_NEWEST}", _UNREADABLE),
    Fault("tear", "classifier", "save/20", "classifier/metrics.jsonl"),
    Fault("truncate", "activations", "begin/activations", f"classifier/{_INDEX}", _UNREADABLE),
    Fault("flip", "activations", "rename/test/shard-00001.npy", "activations/train/shard-*.npy", _DAMAGED),
    Fault("truncate", "sae", "begin/sae", "activations/train/shard-*.npy", _DAMAGED),
    Fault("truncate", "sae", "save/64", f"sae/{_NEWEST}", _UNREADABLE),
    Fault("flip", "analysis", "begin/analysis", f"sae/{_NEWEST}", _UNREADABLE),
    Fault("flip", "ablation", "begin/ablation", "analysis/features.parquet", _DAMAGED),
    Fault("flip", "ablation", "rename/passes/input_space.npz", "ablation/passes/feature_space.npz", _DAMAGED),
    Fault("truncate", "report", "begin/report", "ablation/feature_space.parquet", _DAMAGED),
)


def damage_of(processes: int, n: int) -> list[Fault]:
    """The first n of DAMAGE; of several processes the small arrays lie in the index that they share."""
    if processes == 1:
        return list(DAMAGE[:n])
    return [dataclasses.replace(fault, target=fault.target.replace(_NEWEST, _INDEX)) for fault in DAMAGE[:n]]


def draw(trace: list[str], n_a_stage: int, seed: int, process: int = 0) -> list[Fault]:
    """`n_a_stage` faults of each stage at places of a calm run's trace, in the order of the trace.

    `process` is the one of several whose trace it is.
    """
    rng, faults, kinds = random.Random(f"{seed} {process}" if process else seed), [], KINDS
    if process:
        kinds = KINDS_OF_OTHERS
    for number, (stage, visits) in enumerate(_by_stage(trace).items()):
        places = _places(visits, 1 if process else 3)
        chosen = sorted(rng.sample(range(len(places)), min(n_a_stage, len(places))))
        shuffled = rng.sample([kinds[(number + i) % len(kinds)] for i in range(len(chosen))], len(chosen))
        chosen = [places[i] for i in chosen]
        kinds_there = _that_leave_the_next(visits, chosen, shuffled)
        found = zip(kinds_there, chosen, strict=True)
        faults += [Fault(kind, stage, place, process=process) for kind, place in found]
    return faults


def draw_all(traces: list[list[str]], n: int, seed: int) -> dict[str, list[Fault]]:
    """n faults, those of one workdir under its name, dealt evenly to the processes whose traces these are.

    A stage has only so many places: where they do not suffice there are more workdirs.
    """
    found: dict[str, list[Fault]] = {}
    for process, trace in enumerate(traces):
        left, n_stages = n // len(traces) + (process < n % len(traces)), len(_by_stage(trace))
        for turn in itertools.count():
            if not left or not n_stages:
                break
            drawn = draw(trace, -(-left // n_stages), seed + turn, process)
            rows = random.Random(seed).sample(range(len(drawn)), min(left, len(drawn)))
            found[f"faults-{process}-{turn}"] = [drawn[row] for row in sorted(rows)]
            left -= len(rows)
    return found


def _that_leave_the_next(visits: list[str], places: list[str], kinds: list[str]) -> list[str]:
    """The kinds, with a kill for a signal after which the run comes to the next place before it stops."""
    at = []
    for place in places:
        point, _, number = place.rpartition("#")
        at.append([i for i, visit in enumerate(visits) if visit == point][int(number) - 1])
    found = list(kinds)
    for i, (here, following) in enumerate(itertools.pairwise(at)):
        if kinds[i] in ("term", "int") and "poll" not in visits[here + 1 : following + 1]:
            found[i] = "kill"
    return found


def _by_stage(trace: list[str]) -> dict[str, list[str]]:
    found, stage = {name: [] for name in stages.STAGES}, None
    for point in trace:
        if point.startswith("begin/"):
            stage = point.removeprefix("begin/")
        if stage is not None:
            found[stage].append(point)
    return {name: visits for name, visits in found.items() if visits}


def _places(visits: list[str], of_loop: int = 3) -> list[str]:
    """POINT#N in the order of the visits, of those that a run which goes on later will come to as well.

    Names that occur once; of a loop the first visits, for a resumed run has fewer of them (of another process
    than the first one, which may have kept the pass meanwhile, one visit); and every other shard, for a run
    that is told to stop may write the rest of one, which is not written again.
    """
    count, visited, places = collections.Counter(visits), collections.Counter(), []
    for point in visits:
        visited[point] += 1
        looping = point == "poll" or point.startswith("progress/")
        if point.endswith(_OF_THE_WORKDIR + _NOISE) or (not looping and count[point] > 1):
            continue
        shard = _SHARD_NUMBER.search(point)
        if shard and not (point.startswith("rename/") and "shard" in point and int(shard[1]) % 2 == 0):
            continue
        if visited[point] <= (min(of_loop, count[point] // 4) if looping else 1):
            places.append(f"{point}#{visited[point]}")
    return places


def damage(workdir: pathlib.Path, fault: Fault) -> pathlib.Path:
    """Truncate, tear or flip a bit of the file that the fault names; returns its path.

    Of several files the largest in the newest checkpoint is taken, or the last by name.
    """
    files = sorted(path for path in workdir.glob(fault.target) if path.is_file())
    if not files:
        raise FileNotFoundError(f"{workdir} holds no {fault.target} to damage")
    if "checkpoints" in fault.target:
        steps = [int(path.relative_to(workdir).parts[2]) for path in files]
        files = [path for path, step in zip(files, steps, strict=True) if step == max(steps)]
        files.sort(key=lambda path: path.stat().st_size)
    path, data = files[-1], files[-1].read_bytes()
    middle = len(data) // 2
    if fault.kind == "flip":
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :])
    else:
        path.write_bytes(data[: middle if fault.kind == "truncate" else len(data) - 3])
    return path
