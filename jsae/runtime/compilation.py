"""Compiled programs: where they are kept between runs, and what compiling has cost."""

import contextlib
import logging
import secrets

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from jsae.runtime import mesh

_FOLDER = "jax_compilation_cache_dir"  # the setting
_EVENTS = (
    "/jax/core/compile/jaxpr_trace_duration",
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)


class Seconds:
    """Seconds that this process has spent on tracing, lowering and compiling since `start`."""

    def __init__(self) -> None:
        self.total_s = 0.0

    def start(self) -> None:
        """Let jax report here, to the end of the process."""
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration_secs: float, **_: str | int) -> None:
        if event in _EVENTS:
            self.total_s += duration_secs


def cache(folder: str) -> None:
    """Keep compiled programs in a folder between runs; "" leaves it to jax and its environment variables.

    All processes read it, the first one writes. What lies there is run as code: the folder must be one that
    only trusted users can write. One that not all processes see, such as a disk of each node, is not used:
    the first process would take its programs from there and the others compile theirs, and programs that
    differ wait for each other for ever.
    """
    asked = folder or getattr(jax.config, _FOLDER)
    if jax.process_count() > 1 and asked and not _is_shared(asked):
        jax.config.update(_FOLDER, None)
        logging.getLogger("jsae").warning(
            "the compilation cache %s is not used: not every process sees what the first one writes "
            "there. Name a folder that all nodes share (config.runtime.compile_cache)",
            asked,
        )
        return
    if not folder:
        return
    jax.config.update(_FOLDER, folder)
    never = float("inf")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5 if mesh.is_writer() else never)


def _is_shared(folder: str) -> bool:
    """Whether every process sees what the first one writes into the folder; a collective."""
    name = f".shared-{int(multihost_utils.broadcast_one_to_all(np.uint32(secrets.randbits(32)))):08x}"
    path = epath.Path(folder) / name
    with contextlib.suppress(OSError):
        if mesh.is_writer():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
    mesh.wait_for_all("compilation cache: written")
    try:
        shared = path.exists()
    except OSError:
        shared = False
    shared = mesh.all_agree(shared)
    if mesh.is_writer():
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return shared
