"""What all launch scripts share: signal handlers first, then flags, devices, log, lock.

Importing this module installs the signal handlers; it comes before jax in every script.
"""

from jsae.runtime import preemption

SIGNALS = preemption.install()

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from jsae.runtime import (
    allocator,
    compilation,
    digests,
    disks,
    environment,
    logs,
    mesh,
    paths,
    remote,
    stages,
    watchdog,
    workdirs,
)
from jsae.runtime.context import RunContext
from jsae.runtime.profiling import Profiler
from launch import mistyped, usage

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Experiment, e.g. configs/demo.py; override keys with --config.sae.topk.k=16."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the study (local, gs:// or another etils path).")
_RESTART = flags.DEFINE_string(
    "restart", None, f"Drop this stage and all below first: {', '.join(stages.STAGES)}."
)
_PROFILE = flags.DEFINE_string(
    "profile_steps", None, "Record these steps of every training stage, e.g. 10..20, into workdir/profile."
)
_SHOW_CONFIG = flags.DEFINE_bool(
    "show_config", False, "Print every key of the config with its value, overrides included, and end."
)


def run_stages(names: Sequence[str]) -> None:
    """Run the named stages of the config in the workdir, in order; the whole body of a launch script.

    Exit codes: 0 done, 1 bad input (the message says what), 75 preempted: start the same command again.
    """

    def work(config: Any, workdir: str, context: RunContext) -> None:
        modules = {name: importlib.import_module(f"jsae.{name}.run") for name in names}
        for name, module in modules.items():  # a mistake in the last stage shall not wait for the first
            if hasattr(module, "check_config") and stages.is_ahead(config, workdir, name):
                module.check_config(config)
        workdirs.write_config(config, workdir)
        for name, module in modules.items():
            context.check()
            if name in stages.skipped(config):
                context.log.info("%s: skipped, %s", name, stages.WHY_SKIPPED)
            else:
                module.run(config, workdir, context)
            importlib.import_module("jsae.report.summary").write_summary(config, workdir)
        context.check()  # told to stop during the last stage

    run(work)


def run(work: Callable[[Any, str, RunContext], None]) -> None:
    """Call `work(config, workdir, context)` with all that a long run needs around it; exit codes as above."""
    environment.use_utf8()
    environment.keep_streams()
    with SIGNALS.ending_together():
        app.run(lambda argv: _main(argv, work), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
    """Parse the command line; a mistake ends the run with one line that says what is valid."""
    if usage.wants_help(argv):
        usage.show_help(
            "  --config.KEY=VALUE\n      Override a key of the config; --show_config prints them."
        )
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.get("runtime")  # a config file that could not be read fails here, not above
    except (AttributeError, KeyError, TypeError, ValueError, OSError, flags.Error) as error:
        said = usage.explain(error) if isinstance(error, flags.UnrecognizedFlagError) else _last_line(error)
        sys.exit(f"error: {mistyped.explain(argv) or said}")
    said = mistyped.unused(argv, _CONFIG.value)
    if said:
        sys.exit(f"error: {said}")
    if _SHOW_CONFIG.value:
        print("\n".join(_keys(_CONFIG.value)))
        sys.exit(0)
    if not _WORKDIR.value:
        sys.exit("error: --workdir=FOLDER is missing: where the study goes, for example --workdir=runs/demo")
    return rest


def _keys(config: Any, path: str = "config") -> list[str]:
    """A line for each key of a config with its value, as Python writes it."""
    lines = []
    for key, value in config.items():
        inside = hasattr(value, "items")
        lines += _keys(value, f"{path}.{key}") if inside else [f"{path}.{key} = {value!r}"]
    return lines


def _last_line(error: Exception) -> str:
    """The message without the traceback that config_flags puts into it."""
    text = str(error.args[0]) if error.args else str(error)
    return text.strip().splitlines()[-1].strip() if "Traceback" in text else text


def _main(argv: list[str], work: Callable[[Any, str, RunContext], None]) -> None:
    if len(argv) > 1:
        sys.exit(
            f"error: unexpected argument {argv[1]!r}; flags are --config, --config.KEY=VALUE, "
            + ", ".join(f"--{flag.name}" for flag in usage.own_flags() if flag.name != "config")
        )
    config = _CONFIG.value
    try:
        workdir = paths.workdir(_WORKDIR.value)
        paths.of_config(config)
    except ValueError as error:
        sys.exit(f"error: {error}")
    if config.runtime.deterministic:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
    if config.data.get("cache_dir"):
        os.environ["JSAE_CACHE"] = config.data.cache_dir  # what is copied from remote disks goes there too
    allocator.keep_freed_memory()
    changed = environment.settle_jax()
    try:
        mesh.initialize(SIGNALS)
        environment.check_platform()
    except (RuntimeError, ValueError) as error:
        sys.exit(f"error: {error}")
    absl_logging.set_verbosity(absl_logging.FATAL)  # what matters of orbax and tfds is raised
    logs.to_terminal()
    context = RunContext(signals=SIGNALS, compiling=compilation.Seconds())
    log = context.log
    log.addFilter(context.notes)
    try:
        compilation.cache(config.runtime.compile_cache)
        environment.check_accelerator()
        remote.check(workdir, *remote.strings_in(stages.plain(config)))
        stages.check_format(workdir)
        held = workdirs.lock(workdir)  # noqa: F841 - held until the process ends
        logs.to_file(workdir)
        watchdog.start(workdir, config.runtime.stuck_after_s, lambda: context.n_steps)
        context.compiling.start()
        if config.runtime.tensorboard:
            context.tensorboard = logs.tensorboard_writer()
        log.info("%s", workdirs.describe_start(config, workdir))
        if changed:
            log.warning(
                "set for this run as for every study, whatever the environment says: %s", ", ".join(changed)
            )
        if _PROFILE.value:
            context.profiler = Profiler(_PROFILE.value, workdir)
        if _RESTART.value:
            stages.restart(config, workdir, _RESTART.value)
        work(config, workdir, context)
        for text in context.notes.texts:
            log.warning("note: %s", text)
        log.info("results: %s", workdir)
    except (ValueError, OSError, RuntimeError, FloatingPointError, MemoryError) as error:
        log.debug("traceback", exc_info=True)
        log.error("error: %s", _explained(error, workdir))
        sys.exit(1)


def _explained(error: Exception, workdir: str) -> str:
    """The message, and what to do about a full disk, a damaged file or a process that is gone."""
    lost = SIGNALS.peers and SIGNALS.peers.explain(error)
    if lost:
        return lost
    if isinstance(error, MemoryError):
        return f"there is not enough memory{f': {error}' if str(error) else ''}"
    if isinstance(error, OSError):
        try:
            with disks.room_in(workdir, disks.MOVE_WORKDIR):
                raise error
        except OSError as told:
            return str(told)
    stage = stages.reopen(workdir, error.path) if isinstance(error, digests.Damaged) else None
    if stage is None:
        return str(error)
    return (
        f"{error}. Stage {stage!r} is open again: start launch.pipeline, and it makes again what is damaged"
    )
