"""Stages of a study: which folder, which digest, and whether there is work left.

A stage's digest is made of its own sub-config, the digest of the stage above it and, in a study's first
stage, the content of its data; keys that cannot change a result (logging, saving, report, devices) are left
out, and so are places: paths stand for what lies there (jsae.runtime.contents). `begin` compares the config
and the digest above with the manifest that lies in the stage's folder:

    no manifest                  -> the stage starts
    "started", nothing else      -> the stage starts
    the same, "started"          -> the stage resumes
    the same, "complete"         -> up to date, nothing to do
    another                      -> ConfigMismatch, which names the keys that differ

With config.activations.site = "arrays" the activations come from a file of the user's and there is no
classifier: the stages that need one are skipped (the ablation runs if config.activations.head names a head),
and the stage above one of them counts as the one above.

`finish` writes the manifest anew with the stage's headline results, and what they cost: seconds over all
attempts, compile seconds of the last one, lost work (jsae.runtime.attempts), memory.
"""

import contextlib
import dataclasses
import hashlib
import json
import os

import jax
from etils import epath

from jsae.runtime import (
    artifacts,
    attempts,
    circumstances,
    contents,
    disks,
    failpoints,
    logs,
    memory,
    mesh,
    passes,
    paths,
)

STAGES = ("classifier", "activations", "sae", "analysis", "ablation", "report")

IMPORTED = "arrays"  # the site of activations that no classifier of ours has made
WHY_SKIPPED = (
    f"there is no classifier: with activations.site={IMPORTED} the activations come from data.dir, and "
    "activations.head may name their head"
)

# What a stage's result depends on, besides the stage above it.
_SECTIONS = {
    "classifier": ("seed", "data", "classifier"),
    "activations": ("data", "activations"),
    "sae": ("seed", "sae"),
    "analysis": ("seed", "analysis"),
    "ablation": ("seed", "ablation"),
    "report": ("report",),
}
# Keys inside those sections that change when and what is saved or said, or where things lie, but no result.
_NO_RESULT = {
    "dir",
    "log_every_steps",
    "save_every_steps",
    "keep_checkpoints",
    "steps_per_dispatch",
    "remat",
    "workdir",
    "cache_dir",
}
_BY_CONTENT = ("pretrained", "head", "embedding_workdir")  # paths whose content a result depends on
DATA_FILE = "data.json"  # in the folder of a study's first stage: what it was made on (jsae.data.identity)

_compile_seconds = 0.0


def _count_compile_seconds(event: str, seconds: float, **_):
    global _compile_seconds
    if event in (
        "/jax/core/compile/jaxpr_trace_duration",
        "/jax/core/compile/jaxpr_to_mlir_module_duration",
        "/jax/core/compile/backend_compile_duration",
    ):
        _compile_seconds += seconds


jax.monitoring.register_event_duration_secs_listener(_count_compile_seconds)


class ConfigMismatch(ValueError):
    """The stage in this workdir was made with another config."""


class StageMissing(FileNotFoundError):
    """A stage is needed that has not been finished in this workdir."""


@dataclasses.dataclass
class Stage:
    """One stage of one workdir while it runs; made by `begin`."""

    name: str
    folder: epath.Path
    manifest: dict
    up_to_date: bool
    _attempts: attempts.Attempts | None = None
    _start_compile_s: float = dataclasses.field(default_factory=lambda: _compile_seconds)

    @property
    def digest(self) -> str:
        return self.manifest["digest"]

    def note(self, **facts) -> None:
        """Keep facts in the manifest while the stage runs."""
        self.manifest |= facts
        artifacts.write_json(self.folder / "manifest.json", self.manifest)

    def add_data(self, content: str) -> None:
        """Make the content of the study's data part of the digest; again with the same, nothing changes."""
        upstream = [self.manifest["upstream"], content]
        self.note(data=content, digest=digest_of(self.manifest["config"], upstream))

    def finish(self, results: dict) -> None:
        """Mark the stage complete and keep its headline results (JSON-able, unknown numbers None)."""
        failpoints.visit(f"finish/{self.name}")
        mesh.wait_for_all(f"{self.name}: all have come to its end")  # one that fails leaves the stage open
        self.manifest |= {
            "status": "complete",
            "results": results,
            "compile_seconds": round(_compile_seconds - self._start_compile_s, 3),
            "peak_memory_mib": memory.peak_mib(),
            "peak_device_memory_mib": memory.peak_device_mib(),
            **self._attempts.totals(),
        }
        passes.drop(self.folder)
        artifacts.write_json(self.folder / "manifest.json", self.manifest)
        mesh.wait_for_all(f"{self.name}: finished")  # the next stage reads what was written
        attempts.end()
        logs.get_logger().info("%s: done in %.1f s", self.name, self.manifest["seconds"])


def plain(config) -> dict:
    """The config as a nested dict."""
    return config.to_dict() if hasattr(config, "to_dict") else dict(config)


def section(config, name: str) -> dict:
    """The part of the config that the stage's result depends on, as a plain nested dict."""
    config = plain(config)
    picked = {}
    for key in _SECTIONS[name]:
        value = config.get(key)
        if isinstance(value, dict):
            value = {k: v for k, v in value.items() if k not in _NO_RESULT}
            value |= {k: contents.of(k, value[k]) for k in _BY_CONTENT if k in value}
        picked[key] = value
    return json.loads(json.dumps(picked))  # tuples become lists, as they are when read back


def digest_of(section_config: dict, upstream) -> str:
    """16 hex digits of the sha256 over the sub-config and what it builds on: the digest above, or a list."""
    text = json.dumps([section_config, upstream], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def folder(config, workdir, name: str) -> epath.Path:
    """Where a stage's artifacts lie; the classifier's may belong to another workdir."""
    check_name(name)
    if name == "classifier":
        workdir = plain(config).get("classifier", {}).get("workdir") or workdir
    return paths.resolve(workdir) / name


def skipped(config) -> tuple[str, ...]:
    """The stages that a study of this config does not have: those that need a classifier, where none is.

    Bare activations with a head (config.activations.head) have an ablation stage.
    """
    activations = plain(config).get("activations") or {}
    if activations.get("site") != IMPORTED:
        return ()
    return ("classifier",) if activations.get("head") else ("classifier", "ablation")


def first(config) -> str:
    """The stage that a study of this config begins with."""
    return next(stage for stage in STAGES if stage not in skipped(config))


def above(config, name: str) -> str | None:
    """The stage that `name` builds on, None for the first one."""
    check_name(name)
    upper = [stage for stage in STAGES[: STAGES.index(name)] if stage not in skipped(config)]
    return upper[-1] if upper else None


def check_name(name: str) -> None:
    """Raise ValueError unless `name` is a stage."""
    if name not in STAGES:
        raise ValueError(f"there is no stage {name!r}; the stages are {', '.join(STAGES)}")


def is_external(config, workdir, name: str) -> bool:
    """True for a classifier stage that is taken from another workdir and therefore not run here."""
    return not paths.same(folder(config, workdir, name), paths.resolve(workdir) / name)


def read_manifest(config, workdir, name: str) -> dict | None:
    """The stage's manifest, or None if the stage was never started."""
    return manifest_in(folder(config, workdir, name))


def manifest_in(where) -> dict | None:
    """The manifest in a folder, or None if there is none."""
    path = epath.Path(where) / "manifest.json"
    return artifacts.read_json(path) if path.exists() else None


def is_ahead(config, workdir, name: str) -> bool:
    """Whether the stage is still to be run: it is the study's, and not finished (the report never is).

    A finished stage may have been made on other devices than there are now; `check` compares its settings.
    """
    if name in skipped(config) or name == "report":
        return name == "report"
    return (read_manifest(config, workdir, name) or {}).get("status") != "complete"


def results(config, workdir, name: str) -> dict:
    """What the finished stage passed to `finish`. Raises StageMissing if it is not complete."""
    return require(config, workdir, name)["results"]


def require(config, workdir, name: str) -> dict:
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


_COMMANDS = {
    "classifier": "train_classifier",
    "activations": "extract",
    "sae": "train_sae",
    "analysis": "analyze",
    "ablation": "ablate",
    "report": "report",
}


def begin(config, workdir, name: str, *, always: bool = False, where=None) -> Stage:
    """Open a stage: up to date, to be resumed, or to be started.

    Args:
      config: the whole config of the experiment.
      workdir: the study's folder.
      name: one of `STAGES`.
      always: make the stage anew whatever lies there (the report).
      where: another folder than the stage's own, for one of several of its kind (a sweep).

    Raises:
      StageMissing: the stage above is not complete, or the study has no such stage.
      ConfigMismatch: the folder holds this stage made with another config or another upstream stage.
    """
    log = logs.get_logger()
    where = folder(config, workdir, name) if where is None else epath.Path(where)
    if name in skipped(config):
        raise StageMissing(f"stage {name!r} cannot run: {WHY_SKIPPED}")
    upper = above(config, name)
    upstream = require(config, workdir, upper)["digest"] if upper else None
    wanted = section(config, name)
    if is_external(config, workdir, name):
        manifest = require(config, workdir, name)
        _compare(
            manifest,
            wanted | {"seed": manifest["config"]["seed"], "classifier": manifest["config"]["classifier"]},
            None,
            name,
            upper,
        )
        log.info("%s: taken from %s", name, where.parent)
        return Stage(name, where, manifest, up_to_date=True)
    found = manifest_in(where)
    if found is not None and not always and not _is_empty(where, found):
        _compare(found, wanted, upstream, name, upper)
        if found["status"] == "complete":
            log.info("%s: up to date", name)
            return Stage(name, where, found, up_to_date=True)
        log.info("%s: resuming", name)
        changed = circumstances.changed(found)
        if changed:
            logs.note(
                f"{name}: resumed under other circumstances ({changed}): its results are then those of an "
                "uninterrupted run within 0.5% of fvu and accuracy, not bit for bit"
            )
        mesh.wait_for_all(f"{name}: something was there")  # every process has looked before one tidies up
        return _opened(name, where, found)
    log.info("%s: starting", name)
    manifest = {
        "stage": name,
        "status": "started",
        "digest": digest_of(wanted, upstream),
        "upstream": upstream,
        "config": wanted,
        "precision": {"evaluation": "float32"},
        "resume": circumstances.promise(plain(config).get("runtime", {}).get("deterministic", False)),
        "git_revision": circumstances.git_revision(),
        **circumstances.now(),
    }
    mesh.wait_for_all(f"{name}: nothing was there")  # every process has looked before one of them writes
    artifacts.remove(where / DATA_FILE)  # of a start that was refused before it made anything
    artifacts.write_json(where / "manifest.json", manifest)
    return _opened(name, where, manifest)


def _opened(name: str, where, manifest: dict) -> Stage:
    artifacts.drop_unfinished(where)
    memory.reset_peak()
    stage = Stage(name, where, manifest, up_to_date=False, _attempts=attempts.begin(where))
    failpoints.visit(f"begin/{name}")
    return stage


def reopen(workdir, path) -> str | None:
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


def check(config, workdir) -> None:
    """Raise ConfigMismatch if a stage in the workdir was made with another config than this one."""
    for name in STAGES:
        if name in skipped(config) or is_external(config, workdir, name) or name == "report":
            continue
        found = read_manifest(config, workdir, name)
        if found is not None and not _is_empty(folder(config, workdir, name), found):
            _compare(found, section(config, name), found["upstream"], name, None)


def _is_empty(where, manifest: dict) -> bool:
    """Whether a stage was started and left nothing, e.g. because a setting or an image was refused.

    It may then be started with another config: that loses nothing.
    """
    nothing = ("manifest.json", attempts.FILE, artifacts.CHECKSUMS, DATA_FILE)
    return manifest["status"] == "started" and all(
        path.name in nothing or (path.name == "checkpoints" and not any(path.iterdir()))
        for path in where.iterdir()
    )


def _compare(manifest: dict, wanted: dict, upstream: str | None, name: str, upper: str | None) -> None:
    ours, theirs = _flatten(wanted), _flatten(manifest["config"])
    for key in ours.keys() & theirs.keys():
        if key.endswith(_BY_CONTENT) and not contents.is_known(ours[key]) and ours[key] and theirs[key]:
            ours[key] = theirs[key]  # it was needed once, and is gone
        elif key.endswith(_BY_CONTENT) and theirs[key] and not contents.is_known(theirs[key]):
            theirs[key] = ours[key]
    theirs = {key: value for key, value in theirs.items() if key.split(".")[-1] not in _NO_RESULT}
    if ours == theirs and manifest["upstream"] == upstream:
        return
    differing = [
        f"config.{key}: {theirs.get(key, 'absent')!r} there, {ours.get(key, 'absent')!r} now"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key, "absent") != theirs.get(key, "absent")
    ]
    if not differing and manifest["upstream"] != upstream:
        differing = [f"the stage above it, {upper}, has been made anew since"]
    raise ConfigMismatch(
        f"stage {name!r} in this workdir was made with another config:\n  "
        + "\n  ".join(differing)
        + f"\nTake another --workdir, or --restart={name} to drop this stage and all below it."
    )


def _flatten(tree: dict, prefix: str = "") -> dict:
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def restart(config, workdir, name: str) -> None:
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
    mesh.wait_for_all(f"restart of {name}: dropped")  # before any process looks at what is there
