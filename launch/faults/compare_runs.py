"""Whether two workdirs hold the same results: `python -m launch.faults.compare_runs WORKDIR OTHER`.

Files by name; arrays (.npy, .safetensors, every array of the newest checkpoints) bit by bit; tables and CSVs
column by column; JSON key by key but for times, versions and what a run cost; metrics.jsonl row by row but
for times; anything else byte by byte. Where a newer revision has renamed something (RENAMED), the new name
counts. Prints one line per difference and how much was compared, and exits with 1 if there is a difference.

    --rtol=1e-5     floats may differ by this share of the largest of their column; those that do are listed
    --revisions     the two come from different revisions of the code: of manifests only the results count,
                    and pages, configs, what was saved to resume from, and what is DROPPED do not
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.csv
import safetensors

from jsae.runtime import artifacts, checkpoints, digests, disks

# Old name -> new one, of tables (and their files), columns, JSON keys and cells of text alike.
RENAMED = {
    "atlas": "all_features",
    "atlas_classes": "all_features_by_class",
    "aircraft": "foreground",
    "control_on_aircraft_share": "control_on_foreground_share",
    "ci95_low": "mean_delta_low",
    "ci95_high": "mean_delta_high",
    "margin_ci95_low": "mean_margin_low",
    "margin_ci95_high": "mean_margin_high",
    "accuracy_ci95_low": "accuracy_low",
    "accuracy_ci95_high": "accuracy_high",
}
# What a revision left out: files by their stem, columns and JSON keys by name.
DROPPED = {"sigma_sweep", "agreement", "known_answer", "found", "n_found", "n_parts_found", "specific"}

_COSTS = {
    "seconds",
    "compile_seconds",
    "lost_work_seconds",
    "attempts",
    "peak_memory_mib",
    "peak_device_memory_mib",
    "versions",
    "git_revision",
}
_OF_ONE_RUN = {"log.txt", ".lock", "attempts.json"}  # logs and book-keeping of the process
_TEXT_WITH_TIMES = {"index.html"}  # shows seconds of each stage
_PAGES = {".html", ".css", ".js", ".svg"}
_OF_A_REVISION = {"config.json", "model.json", "checksums.json", "source.json"}


@dataclasses.dataclass
class Comparison:
    """What two workdirs differ in, collected file by file.

    Attributes:
      rtol: share of a column's largest number by which its floats may differ.
      revisions: whether the workdirs come from different revisions of the code.
      differences: one line each.
      within: one line per column whose floats differ by no more than `rtol`.
      n_files, n_columns: how many were compared; an array or a key of a JSON file is a column, too.
    """

    rtol: float = 0.0
    revisions: bool = False
    differences: list[str] = dataclasses.field(default_factory=list)
    within: list[str] = dataclasses.field(default_factory=list)
    n_files: int = 0
    n_columns: int = 0

    def run(self, one: pathlib.Path, other: pathlib.Path) -> None:
        """Compare all files of two workdirs, and the newest checkpoints of both trainers."""
        names = [{self._name(name): name for name in files(folder)} for folder in (one, other)]
        names = [{new: old for new, old in found.items() if self._counts(new)} for found in names]
        self._only_in(one, names[0].keys() - names[1].keys())
        self._only_in(other, names[1].keys() - names[0].keys())
        for name in sorted(names[0].keys() & names[1].keys()):
            self.n_files += 1
            self._file(name, one / names[0][name], other / names[1][name])
        for name in ("classifier", "sae"):
            folders = [workdir / name / "checkpoints" for workdir in (one, other)]
            if all(folder.exists() for folder in folders):
                self._checkpoints(f"{name}/checkpoints", *folders)

    def _only_in(self, folder: pathlib.Path, names: set[str]) -> None:
        self.differences += [f"{name}: only in {folder}" for name in sorted(names)]

    def _name(self, name: str) -> str:
        path = pathlib.Path(name)
        return str(path.with_stem(RENAMED.get(path.stem, path.stem)))

    def _counts(self, name: str) -> bool:
        path = pathlib.Path(name)
        left_out = path.suffix in _PAGES or path.name in _OF_A_REVISION or path.stem in DROPPED
        return not (self.revisions and (left_out or "passes" in path.parts))

    def _file(self, name: str, one: pathlib.Path, other: pathlib.Path) -> None:
        if one.name in _TEXT_WITH_TIMES:
            return
        read = _READERS.get(one.suffix, _bytes)
        if one.name == "checksums.json":
            read = _names_alone
        elif one.name == "manifest.json" and self.revisions:
            read = _results
        try:
            self.columns(name, read(one), read(other))
        except (OSError, ValueError) as error:  # a damaged file
            self.differences.append(f"{name}: cannot be read: {error}")

    def columns(self, name: str, one: dict, other: dict) -> None:
        """Compare two sets of columns: name -> array, of objects where they are no numbers."""
        if self.revisions:
            one, other = _without_dropped(one), _without_dropped(other)
        for column in sorted(one.keys() ^ other.keys()):
            self.differences.append(f"{name}: {column} only in the {'first' if column in one else 'second'}")
        for column in sorted(one.keys() & other.keys()):
            self.n_columns += 1
            self._column(f"{name}: {column}", one[column], other[column])

    def _column(self, name: str, one: np.ndarray, other: np.ndarray) -> None:
        if {one.dtype, other.dtype} == {np.dtype(np.int64), np.dtype(np.float64)}:  # 1 and 1.0 in JSON, CSV
            one, other = one.astype(np.float64), other.astype(np.float64)
        if one.shape != other.shape or one.dtype != other.dtype:
            self.differences.append(
                f"{name}: {one.dtype} {list(one.shape)} became {other.dtype} {list(other.shape)}"
            )
        elif one.dtype == object:
            n_differing = sum(a != b for a, b in zip(one.ravel(), other.ravel(), strict=True))
            if n_differing:
                self.differences.append(f"{name}: {n_differing} of {one.size} differ")
        elif one.tobytes() != other.tobytes():
            self._numbers(name, one, other)

    def _numbers(self, name: str, one: np.ndarray, other: np.ndarray) -> None:
        differing = (one != other) & ~((one != one) & (other != other))
        said = f"{name}: {differing.sum()} of {one.size} differ"
        if one.dtype.kind in "biu":
            self.differences.append(said)
            return
        one, other = one.astype(np.float64), other.astype(np.float64)
        known = np.isfinite(one) & np.isfinite(other)
        largest = np.abs(one[np.isfinite(one)]).max(initial=0.0)
        largest_off = np.abs(one[known] - other[known]).max(initial=0.0)
        relative = largest_off / largest if largest else np.inf if largest_off else 0.0
        said += f", by at most {relative:.2g} of the largest ({largest:.4g})"
        same_gaps = np.array_equal(one[~known], other[~known], equal_nan=True)
        if not same_gaps:
            said += "; other ones are unknown"
        ok = self.rtol > 0 and relative <= self.rtol and same_gaps
        (self.within if ok else self.differences).append(said)

    def _checkpoints(self, name: str, one: pathlib.Path, other: pathlib.Path) -> None:
        try:
            (steps, newest, arrays), (their_steps, their_newest, theirs) = (
                _checkpoint(one),
                _checkpoint(other),
            )
        except digests.Damaged as error:
            self.differences.append(str(error))
            return
        if len(steps) != len(their_steps):  # a run that was told to stop has saved at that step, too
            self.differences.append(f"{other}: holds steps {their_steps} instead of {steps}")
        elif newest != their_newest:
            self.differences.append(f"{other}: the newest step is {their_newest} instead of {newest}")
        else:
            if self.revisions:  # how a state is nested is not compared
                shared = arrays.keys() & theirs.keys()
                print(f"{name}: {len(shared)} arrays have the same name, of {len(arrays)} and {len(theirs)}")
                arrays, theirs = ({k: each[k] for k in shared} for each in (arrays, theirs))
            self.n_files += 1
            self.columns(f"{name}/{newest}", arrays, theirs)


def compare(
    one: str | pathlib.Path, other: str | pathlib.Path, rtol: float = 0.0, revisions: bool = False
) -> list[str]:
    """One line per difference between two workdirs; empty if there is none."""
    found = Comparison(rtol, revisions)
    found.run(pathlib.Path(one), pathlib.Path(other))
    return found.differences


def files(workdir: pathlib.Path) -> set[str]:
    """Names of all files, without the damaged ones aside and those in checkpoints, whose names are random."""
    names = (path.relative_to(workdir) for path in workdir.rglob("*") if path.is_file())
    left_out = {"checkpoints", "tensorboard", "ranks", disks.ASIDE}
    return {str(n) for n in names if not left_out & set(n.parts) and n.name not in _OF_ONE_RUN}


def _without_dropped(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {k: v for k, v in columns.items() if not DROPPED & set(k.split("."))}


def _array(values: list) -> np.ndarray:
    """Values as integers, as floats (inf for None), or as objects with older names replaced."""
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return np.array(values, np.int64)
    if kinds and kinds <= {float, int, type(None)} and float in kinds:
        return np.array([np.inf if value is None else value for value in values])
    found = np.empty(len(values), object)
    found[:] = [RENAMED.get(value, value) if isinstance(value, str) else value for value in values]
    return found


def _table(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Columns of a table; null floats are inf, which no table holds, and lists are laid flat."""
    found = {}
    table = pyarrow.csv.read_csv(path) if path.suffix == ".csv" else artifacts.parse_table(path.read_bytes())
    for name in table.column_names:
        array = table[name].combine_chunks()
        if pa.types.is_list(array.type):
            array = array.flatten()
        if pa.types.is_floating(array.type):
            array = array.fill_null(np.inf)
        is_number = pa.types.is_primitive(array.type) and not array.null_count
        values = array.to_numpy(zero_copy_only=False) if is_number else _array(array.to_pylist())
        found[RENAMED.get(name, name)] = values
    return found


def _flat(tree: Any, name: str = "") -> dict[str, np.ndarray]:
    """Leaves of a JSON tree by their path, and lists of numbers, without times and costs."""
    if isinstance(tree, dict):
        items = [(RENAMED.get(k, k), v) for k, v in tree.items()]
        kept = [(k, v) for k, v in items if k not in _COSTS and not k.endswith(("_s", "_per_s"))]
    elif isinstance(tree, list) and any(isinstance(item, dict | list) for item in tree):
        kept = list(enumerate(tree))
    else:
        return {name: _array(tree if isinstance(tree, list) else [tree])}
    return {k: v for key, item in kept for k, v in _flat(item, f"{name}.{key}".lstrip(".")).items()}


def _json(path: pathlib.Path) -> dict[str, np.ndarray]:
    return _flat(json.loads(path.read_text()))


def _names_alone(path: pathlib.Path) -> dict[str, np.ndarray]:
    return {name: np.zeros(0) for name in json.loads(path.read_text())}


def _results(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Results of a stage's manifest; of a store's, all but the classifier that it names."""
    manifest = json.loads(path.read_text())
    return _flat(manifest.get("results", {k: v for k, v in manifest.items() if k != "classifier_digest"}))


def _metrics(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Columns of a metrics.jsonl, inf where a row lacks one. Raises ValueError if the steps do not rise."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = [(row["step"], *sorted(row)) for row in rows]  # rows of training and evaluation share steps
    rising = all(before["step"] <= after["step"] for before, after in itertools.pairwise(rows))
    if not rising or len(set(kinds)) < len(kinds):
        raise ValueError("its steps do not rise")
    names = dict.fromkeys(name for row in rows for name in row)
    return _flat({name: [row.get(name) for row in rows] for name in names})


def _safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    with safetensors.safe_open(path, framework="numpy") as file:
        metadata = json.dumps(file.metadata(), sort_keys=True)
        return {name: file.get_tensor(name) for name in file.keys()} | {"metadata": _array([metadata])}  # noqa: SIM118


def _bytes(path: pathlib.Path) -> dict[str, np.ndarray]:
    return {"bytes": _array([path.read_bytes()])}


_READERS = {
    ".json": _json,
    ".jsonl": _metrics,
    ".parquet": _table,
    ".csv": _table,
    ".npy": lambda path: {"array": np.load(path, allow_pickle=False)},
    ".npz": lambda path: dict(np.load(path, allow_pickle=False)),
    ".safetensors": _safetensors,
}


def _checkpoint(folder: pathlib.Path) -> tuple[list[int], int, dict[str, np.ndarray]]:
    """(steps that are kept, the newest, its arrays by name). Raises Damaged if there is none."""
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("one", type=pathlib.Path)
    parser.add_argument("other", type=pathlib.Path)
    parser.add_argument("--rtol", type=float, default=0.0, help="floats may differ by this share")
    parser.add_argument("--revisions", action="store_true", help="the code of the two differs")
    args = parser.parse_args()
    found = Comparison(args.rtol, args.revisions)
    found.run(args.one, args.other)
    print(*found.differences, *(f"within --rtol: {line}" for line in found.within), sep="\n")
    print(
        f"{found.n_files} files and {found.n_columns} columns compared; "
        f"{len(found.differences)} differences, {len(found.within)} within --rtol={args.rtol:g}"
    )
    sys.exit(1 if found.differences else 0)


if __name__ == "__main__":
    main()
