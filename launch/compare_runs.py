"""Whether two runs of one study left the same: `python -m launch.compare_runs WORKDIR OTHER`.

Files by name; arrays (.npy, .safetensors, every array of the newest checkpoints) bit by bit; tables row by
row; JSON key by key but for times, versions and what a run cost; metrics row by row but for times; pages of
the report as they are. Prints a line a difference, and exits with 1 if there is any.
"""

import argparse
import itertools
import json
import pathlib
import sys

import jax
import numpy as np

from jsae.runtime import artifacts, checkpoints, digests, disks

_COSTS = {
    *("seconds", "compile_seconds", "lost_work_seconds", "attempts"),
    *("peak_memory_mib", "peak_device_memory_mib", "versions", "git_revision"),
}
_OF_ONE_RUN = {"log.txt", ".lock", "attempts.json"}  # logs and book-keeping of the process
_TEXT_WITH_TIMES = {"index.html"}  # shows seconds of each stage


def compare(one, other) -> list[str]:
    """One line a difference between two workdirs; empty if there is none."""
    one, other = pathlib.Path(one), pathlib.Path(other)
    names = [files(folder) for folder in (one, other)]
    found = [f"{name}: only in {one}" for name in sorted(names[0] - names[1])]
    found += [f"{name}: only in {other}" for name in sorted(names[1] - names[0])]
    for name in sorted(names[0] & names[1]):
        if not _same(one / name, other / name):
            found.append(f"{name}: differs")
    for name in ("classifier", "sae"):
        if (one / name / "checkpoints").exists() and (other / name / "checkpoints").exists():
            found += _checkpoint_differences(one / name / "checkpoints", other / name / "checkpoints")
    return found


def files(workdir: pathlib.Path) -> set[str]:
    """Names of all files, without the damaged ones aside and those in checkpoints, whose names are random."""
    names = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    left_out = {"checkpoints", "tensorboard", "ranks", disks.ASIDE}
    return {str(n) for n in names if not left_out & set(n.parts) and n.name not in _OF_ONE_RUN}


def _same(one: pathlib.Path, other: pathlib.Path) -> bool:
    if one.name == "checksums.json":
        return json.loads(one.read_text()).keys() == json.loads(other.read_text()).keys()
    if one.suffix == ".json":
        return _timeless(json.loads(one.read_text())) == _timeless(json.loads(other.read_text()))
    if one.suffix == ".jsonl":
        return _rows(one) == _rows(other)
    if one.suffix == ".parquet":
        found, wanted = (artifacts.parse_table(path.read_bytes()) for path in (one, other))
        return found.replace_schema_metadata() == wanted.replace_schema_metadata()
    return one.name in _TEXT_WITH_TIMES or one.read_bytes() == other.read_bytes()


def _timeless(tree):
    if isinstance(tree, dict):
        kept = {k: v for k, v in tree.items() if k not in _COSTS and not k.endswith(("_s", "_per_s"))}
        return {k: _timeless(v) for k, v in kept.items()}
    return [_timeless(item) for item in tree] if isinstance(tree, list) else tree


def _rows(path: pathlib.Path) -> list[dict]:
    """Rows of a metrics.jsonl without times; where the steps do not rise, no other file has the same."""
    rows = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    kinds = [(row["step"], *sorted(row)) for row in rows]  # rows of training and evaluation share steps
    rising = all(before["step"] <= after["step"] for before, after in itertools.pairwise(rows))
    return rows if rising and len(set(kinds)) == len(kinds) else [{"steps do not rise in": str(path)}]


def _checkpoint_differences(one: pathlib.Path, other: pathlib.Path) -> list[str]:
    try:
        (steps, newest, arrays), (their_steps, their_newest, theirs) = _checkpoint(one), _checkpoint(other)
    except digests.Damaged as error:
        return [str(error)]
    if len(steps) != len(their_steps):  # a run that was told to stop has saved at that step, too
        return [f"{other}: holds steps {their_steps} instead of {steps}"]
    if newest != their_newest or arrays.keys() != theirs.keys():
        return [f"{other}: step {their_newest} does not hold the arrays of {newest}"]
    return [
        f"{other}: {name} of step {newest} differs"
        for name, array in arrays.items()
        if array.dtype != theirs[name].dtype or array.tobytes() != theirs[name].tobytes()
    ]


def _checkpoint(folder: pathlib.Path):
    """(steps that are kept, the newest, its arrays by name)."""
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())
    saved = checkpoints.Checkpoints(folder, keep=1 << 20)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    newest = saved.latest_step()
    if newest is None:
        raise digests.Damaged(folder, f"{folder} holds no checkpoint")
    abstract = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
        for name, (shape, dtype) in saved.names(newest).items()
    }
    arrays = saved.restore(abstract, newest)[1]
    saved.close()
    return steps, newest, {name: np.asarray(array) for name, array in arrays.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("one", type=pathlib.Path)
    parser.add_argument("other", type=pathlib.Path)
    args = parser.parse_args()
    found = compare(args.one, args.other)
    for line in found:
        print(line)
    print(f"{len(found)} differences")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
