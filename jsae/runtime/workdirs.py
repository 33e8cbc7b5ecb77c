"""The workdir as a whole: one run at a time, the resolved config, and what is said when a run starts."""

import fcntl
import importlib.metadata
import os
import pathlib
import time
from typing import Any, TextIO

import jax
from etils import epath

from jsae.runtime import artifacts, logs, mesh, paths, stages
from jsae.runtime.paths import PathLike


def write_config(config: Any, workdir: PathLike) -> None:
    """Write the resolved config to workdir/config.json.

    Raises stages.ConfigMismatch, and leaves the file as it is, if a stage was made with another config.
    """
    stages.check(config, workdir)
    artifacts.write_json(epath.Path(workdir) / "config.json", stages.plain(config))


def lock(workdir: PathLike) -> TextIO | None:
    """Hold the workdir for this run; the kernel frees it when the process ends, however it ends.

    Returns the open lock file, to be kept. Raises RuntimeError naming the process that holds it.
    Workdirs on remote file systems, and on disks without locks, are not locked; of the latter a note says so.
    """
    if paths.is_remote(workdir) or jax.process_index() != 0:
        return None
    path = pathlib.Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = open(path / ".lock", "a+")  # noqa: SIM115 - held until the process ends
    except OSError as error:
        raise OSError(f"workdir {path} is not writable: {error}") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        with file:
            holder = _holder(file)
        raise RuntimeError(f"another run works in {path}: {holder}") from error
    except OSError as error:
        logs.note(f"the disk of {path} has no locks ({error.strerror}): see that no other run works there")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {os.uname().nodename}")
    file.flush()
    return file


def _holder(file: TextIO) -> str:
    for _ in range(20):  # the other run has the lock and may not have written its name yet
        file.seek(0)
        holder = file.read().strip()
        if holder:
            return holder
        time.sleep(0.05)
    return "a process that has not said which"


def describe_start(config: Any, workdir: PathLike) -> str:
    """One line for the log: devices, mesh, processes, versions, config digest, workdir."""
    device_mesh = mesh.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    shape = " x ".join(f"{name}={size}" for name, size in device_mesh.shape.items())
    digest = stages.digest_of({k: v for k, v in stages.plain(config).items() if k != "runtime"}, None)
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jsae", "jax", "flax", "optax"))
    return (
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, mesh {shape}, "
        f"{jax.process_count()} process(es), {versions}, config {digest}, workdir {os.fspath(workdir)}"
    )
