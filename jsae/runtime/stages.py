"""Stages of a study: which folder, which manifest, and whether there is work left.

`begin` compares the config and the digest of the stage above (jsae.runtime.stage_config) with the manifest
that lies in the stage's folder:

    no manifest                  -> the stage starts
    "started", nothing else      -> the stage starts
    the same, "started"          -> the stage resumes
    the same, "complete"         -> up to date, nothing to do
    another                      -> ConfigMismatch, which names the keys that differ
    of another format            -> OtherFormat, which says how to go on

With config.activations.site = "arrays" the activations come from a file of the user's and there is no
classifier: the stages that need one are skipped (the ablation runs if config.activations.head names a head),
and the stage above one of them counts as the one above.

`Stage.finish` writes the manifest again with the stage's headline results, and what they cost: seconds over
all attempts, compile seconds of the last one, lost work (jsae.runtime.attempts), memory.
"""

import contextlib
import dataclasses
import os
from typing import Any

import jax
from etils import epath

from jsae.runtime import artifacts, circumstances, disks, logs, memory, mesh, paths
from jsae.runtime.attempts import FILE as ATTEMPTS_FILE
from jsae.runtime.attempts import Attempts
from jsae.runtime.context import RunContext
from jsae.runtime.paths import PathLike
from jsae.runtime.stage_config import ConfigMismatch, differing, digest_of, plain, section

STAGES = ("classifier", "activations", "sae", "analysis", "ablation", "report")
_COMMANDS = {
    "classifier": "train_classifier",
    "activations": "extract",
    "sae": "train_sae",
    "analysis": "analyze",
    "ablation": "ablate",
    "report": "report",
}

IMPORTED = "arrays"  # the site of activations that no classifier of ours has made
WHY_SKIPPED = (
    f"there is no classifier: with activations.site={IMPORTED} the activations come from data.dir, and "
    "activations.head may name their head"
)

FORMAT = 2  # of manifests and what lies beside them; raise it where a later revision cannot read them
_LAST_OF_FORMAT_1 = "1ca682e"  # the revision of this repository

DATA_FILE = "data.json"  # in the folder of a study's first stage: what it was made on (jsae.data.identity)
PASSES = "passes"  # a folder of finished passes, while the stage runs (jsae.runtime.passes)


class StageMissing(FileNotFoundError):
    """A stage is needed that has not been finished in this workdir."""


class OtherFormat(ValueError):
    """The manifest of a stage was written by a revision whose files this one cannot read."""


@dataclasses.dataclass
class Stage:
    """One stage of one workdir while it runs; made by `begin`."""

    name: str
    folder: epath.Path
    manifest: dict[str, Any]
    up_to_date: bool
    context: RunContext = dataclasses.field(default_factory=RunContext)
    _attempts: Attempts | None = None
    _compiled_before_s: float = 0.0

    @property
    def digest(self) -> str:
        """Of the stage's config and what it builds on."""
        return self.manifest["digest"]

    def note(self, **facts: Any) -> None:
        """Keep facts in the manifest while the stage runs."""
        self.manifest |= facts
        artifacts.write_json(self.folder / "manifest.json", self.manifest)

    def add_data(self, content: str) -> None:
        """Make the content of the study's data part of the digest; again with the same, nothing changes."""
        upstream = [self.manifest["upstream"], content]
        self.note(data=content, digest=digest_of(self.manifest["config"], upstream))

    def kept(self) -> None:
        """All work up to now lies on disk (`Attempts.kept`)."""
        if self._attempts is not None:
            self._attempts.kept()

    def saved(self, step: int) -> None:
        """The state after `step` was handed to the background to be written (`Attempts.saved`)."""
        if self._attempts is not None:
            self._attempts.saved(step)

    def restored(self, step: int) -> None:
        """The stage goes on from `step` (`Attempts.restored`)."""
        if self._attempts is not None:
            self._attempts.restored(step)

    def finish(self, results: dict[str, Any]) -> None:
        """Mark the stage complete and keep its headline results (JSON-able, unknown numbers None)."""
        assert self._attempts is not None  # a stage that is up to date does not run
        self.context.failpoint(f"finish/{self.name}")
        mesh.wait_for_all(f"{self.name}: all have come to its end")  # one that fails leaves the stage open
        compiling = self.context.compiling
        self.manifest |= {
            "status": "complete",
            "results": results,
            "compile_seconds": compiling and round(compiling.total_s - self._compiled_before_s, 3),
            "peak_memory_mib": memory.peak_mib(),
            "peak_device_memory_mib": memory.peak_device_mib(),
            **self._attempts.totals(),
        }
        if mesh.is_writer() and (self.folder / PASSES).exists():
            (self.folder / PASSES).rmtree()
        artifacts.write_json(self.folder / "manifest.json", self.manifest)
        mesh.wait_for_all(f"{self.name}: finished")  # the next stage reads what was written
        self._attempts.end()
        self.context.alive = lambda: None
        self.context.log.info("%s: done in %.1f s", self.name, self.manifest["seconds"])


def folder(config: Any, workdir: PathLike, name: str) -> epath.Path:
    """Where a stage's artifacts lie; the classifier's may belong to another workdir."""
    check_name(name)
    if name == "classifier":
        workdir = plain(config).get("classifier", {}).get("workdir") or workdir
    return paths.resolve(workdir) / name


def skipped(config: Any) -> tuple[str, ...]:
    """The stages that a study of this config does not have: those that need a classifier, where none is.

    Bare activations with a head (config.activations.head) have an ablation stage.
    """
    activations = plain(config).get("activations") or {}
    if activations.get("site") != IMPORTED:
        return ()
    return ("classifier",) if activations.get("head") else ("classifier", "ablation")


def first(config: Any) -> str:
    """The stage that a study of this config begins with."""
    return next(stage for stage in STAGES if stage not in skipped(config))


def above(config: Any, name: str) -> str | None:
    """The stage that `name` builds on, None for the first one."""
    check_name(name)
    upper = [stage for stage in STAGES[: STAGES.index(name)] if stage not in skipped(config)]
    return upper[-1] if upper else None


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a stage."""
    if name not in STAGES:
        raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(STAGES)}")


def is_external(config: Any, workdir: PathLike, name: str) -> bool:
    """True for a classifier stage that is taken from another workdir and therefore not run here."""
    return not paths.same(folder(config, workdir, name), paths.resolve(workdir) / name)


def read_manifest(config: Any, workdir: PathLike, name: str) -> dict[str, Any] | None:
    """The stage's manifest, or None if the stage was never started."""
    return manifest_in(folder(config, workdir, name))


def manifest_in(where: PathLike) -> dict[str, Any] | None:
    """The manifest in a folder, or None without one. Raises OtherFormat if its format is not `FORMAT`."""
    path = epath.Path(where) / "manifest.json"
    if not path.exists():
        return None
    manifest = artifacts.read_json(path)
    found = manifest.get("format", 1)
    if found != FORMAT:
        there = (
            f"take git revision {_LAST_OF_FORMAT_1}" if found < FORMAT else "take the revision that made it"
        )
        raise OtherFormat(
            f"{path} is of format {found}, and this revision of jsae reads and writes format {FORMAT}; the "
            f"study stays as it is: {there} to go on with it, or another --workdir to make it again"
        )
    return manifest


def check_format(workdir: PathLike) -> None:
    """Raise OtherFormat if a stage in the workdir is of another format; nothing is touched."""
    for name in STAGES:
        manifest_in(paths.resolve(workdir) / name)


def is_ahead(config: Any, workdir: PathLike, name: str) -> bool:
    """Whether the stage is still to be run: it is the study's, and not finished (the report never is).

    A finished stage may have been made on other devices than there are now; `check` compares its settings.
    """
    if name in skipped(config) or name == "report":
        return name == "report"
    return (read_manifest(config, workdir, name) or {}).get("status") != "complete"


def results(config: Any, workdir: PathLike, name: str) -> dict[str, Any]:
    """What the finished stage passed to `finish`. Raises StageMissing if it is not complete."""
    return require(config, workdir, name)["results"]


def require(config: Any, workdir: PathLike, name: str) -> dict[str, Any]:
    """The manifest of a complete stage. Raises StageMissing, saying which command makes it, if one does."""
    if name in skipped(config):
        raise StageMissing(f"this study has no stage {name!r}: {WHY_SKIPPED}")
    manifest = read_manifest(config, workdir, name)
    if manifest is None or manifest["status"] != "complete":
        state = "was never started" if manifest is None else "is not finished"
        raise StageMissing(
            f"stage {name!r} {state} in {folder(config, workdir, name).parent}; "
            f"run launch.{_COMMANDS[name]} (or launch.pipeline) with this workdir first"
        )
    return manifest


def begin(
    config: Any,
    workdir: PathLike,
    name: str,
    context: RunContext | None = None,
    *,
    always: bool = False,
    where: PathLike | None = None,
) -> Stage:
    """Open a stage: up to date, to be resumed, or to be started.

    Args:
      config: the whole config of the experiment.
      workdir: the study's folder.
      name: one of `STAGES`.
      context: of the run; a new `RunContext` without one.
      always: make the stage again whatever lies there (the report).
      where: another folder than the stage's, for one of several of its kind (a sweep).

    Raises:
      StageMissing: the stage above is not complete, or the study has no such stage.
      ConfigMismatch: the folder holds this stage made with another config or another upstream stage.
      OtherFormat: a manifest was written by a revision whose files this one cannot read.
    """
    context = context or RunContext()
    where = folder(config, workdir, name) if where is None else epath.Path(where)
    if name in skipped(config):
        raise StageMissing(f"stage {name!r} cannot run: {WHY_SKIPPED}")
    wanted = section(config, name)
    if is_external(config, workdir, name):
        manifest = require(config, workdir, name)
        there = {key: manifest["config"][key] for key in ("seed", "classifier")}
        _compare(manifest, wanted | there, None, name, None)
        context.log.info("%s: taken from %s", name, where.parent)
        return Stage(name, where, manifest, up_to_date=True, context=context)
    upper = above(config, name)
    upstream = require(config, workdir, upper)["digest"] if upper else None
    found = manifest_in(where)
    if found is None or always or _is_empty(where, found):
        context.log.info("%s: starting", name)
        deterministic = plain(config).get("runtime", {}).get("deterministic", False)
        manifest = {
            "format": FORMAT,
            "stage": name,
            "status": "started",
            "digest": digest_of(wanted, upstream),
            "upstream": upstream,
            "config": wanted,
            "precision": {"evaluation": "float32"},
            "resume": circumstances.promise(deterministic),
            "git_revision": circumstances.git_revision(),
            **circumstances.now(),
        }
        mesh.wait_for_all(f"{name}: nothing was there")  # no process writes before all have found nothing
        artifacts.remove(where / DATA_FILE)  # of a start that was refused before it made anything
        artifacts.write_json(where / "manifest.json", manifest)
        return _opened(name, where, manifest, context)
    _compare(found, wanted, upstream, name, upper)
    if found["status"] == "complete":
        context.log.info("%s: up to date", name)
        return Stage(name, where, found, up_to_date=True, context=context)
    context.log.info("%s: resuming", name)
    changed = circumstances.changed(found)
    if changed:
        context.note(
            f"{name}: resumed under other circumstances ({changed}): its results are then those of an "
            "uninterrupted run within 0.5% of fvu and accuracy, not bit for bit"
        )
    mesh.wait_for_all(f"{name}: something was there")  # no process tidies up before all have found it
    return _opened(name, where, found, context)


def _opened(name: str, where: epath.Path, manifest: dict[str, Any], context: RunContext) -> Stage:
    artifacts.drop_unfinished(where)
    memory.reset_peak()
    attempts = Attempts(where)
    context.alive = attempts.alive
    before_s = context.compiling.total_s if context.compiling else 0.0
    stage = Stage(name, where, manifest, False, context, attempts, before_s)
    context.failpoint(f"begin/{name}")
    return stage


def reopen(workdir: PathLike, path: PathLike) -> str | None:
    """Mark the stage to which a damaged file or checkpoint belongs unfinished, and move the file aside.

    Started again, the stage makes what is missing, or trains on from the checkpoint before. Any process may
    do this, the one that has read the file or several at once. Returns the stage's name, None if the path
    belongs to no stage of this workdir.
    """
    path, workdir = epath.Path(path), paths.resolve(workdir)
    inside = os.fspath(path).removeprefix(os.fspath(workdir) + "/").split("/")
    manifest = manifest_in(workdir / inside[0]) if inside[0] in STAGES else None
    if manifest is None:
        return None
    artifacts.write_json(workdir / inside[0] / "manifest.json", manifest | {"status": "started"}, by_any=True)
    if not path.is_dir():
        with contextlib.suppress(FileNotFoundError):  # gone, or moved by another process
            disks.move_aside(path, workdir / inside[0])
    return inside[0]


def check(config: Any, workdir: PathLike) -> None:
    """Raise ConfigMismatch if a stage in the workdir was made with another config than this one."""
    for name in STAGES:
        if name in skipped(config) or is_external(config, workdir, name) or name == "report":
            continue
        found = read_manifest(config, workdir, name)
        if found is not None and not _is_empty(folder(config, workdir, name), found):
            _compare(found, section(config, name), found["upstream"], name, None)


def _is_empty(where: epath.Path, manifest: dict[str, Any]) -> bool:
    """Whether a stage was started and left nothing, e.g. because a setting or an image was refused.

    It may then be started with another config: that loses nothing.
    """
    nothing = ("manifest.json", ATTEMPTS_FILE, artifacts.CHECKSUMS, DATA_FILE)
    return manifest["status"] == "started" and all(
        path.name in nothing or (path.name == "checkpoints" and not any(path.iterdir()))
        for path in where.iterdir()
    )


def _compare(
    manifest: dict[str, Any], wanted: dict[str, Any], upstream: str | None, name: str, upper: str | None
) -> None:
    found = differing(wanted, manifest["config"])
    if not found and manifest["upstream"] != upstream:
        found = [f"the stage above it, {upper}, has been made again since"]
    if found:
        raise ConfigMismatch(
            f"stage {name!r} in this workdir was made with another config:\n  "
            + "\n  ".join(found)
            + f"\nTake another --workdir, or --restart={name} to drop this stage and all below it."
        )


def restart(config: Any, workdir: PathLike, name: str) -> None:
    """Drop a stage and all stages below it from the workdir."""
    check_name(name)
    for stage in STAGES[STAGES.index(name) :]:
        if is_external(config, workdir, stage):
            raise ValueError(
                f"--restart={name} would drop a classifier that belongs to another workdir, "
                f"{folder(config, workdir, stage).parent}; restart it there"
            )
        where = paths.resolve(workdir) / stage
        if where.exists() and jax.process_index() == 0:
            where.rmtree()
            logs.get_logger().info("%s: dropped", stage)
    mesh.wait_for_all(f"restart of {name}: dropped")  # before any process reads what is there
