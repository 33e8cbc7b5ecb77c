"""What the last bits of a result depend on beside its config: versions, devices, cores, the code itself."""

import importlib.metadata
import os
import pathlib
import subprocess

import jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets", "numpy")


def promise(deterministic: bool) -> str:
    """How near a resumed run comes to an uninterrupted one; `deterministic` is the setting."""
    same = "bit-identical for the same topology, jax version and device kind"
    if jax.default_backend() == "cpu":
        # XLA:CPU cuts its products by the threads it has: one core or two is one unit in the last place
        return f"{same}, on as many CPU cores as this process may use ({_cores()})"
    if deterministic:
        return same
    return "fvu and accuracy within 0.5% (runtime.deterministic is off)"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def now() -> dict:
    """What the last bits of a result depend on beside its config."""
    device = {"kind": jax.devices()[0].device_kind, "count": jax.device_count()}
    if jax.default_backend() == "cpu":
        device["cores"] = _cores()
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {"versions": versions, "device": device, "processes": jax.process_count()}


def changed(manifest: dict) -> str:
    """What differs from when the stage was started, as words ("jax 0.10 then, 0.11 now"); "" for nothing."""
    here = now()
    then, today = _flat({key: manifest[key] for key in here if key in manifest}), _flat(here)
    return ", ".join(
        f"{name} {then[name]} then, {value} now"
        for name, value in today.items()
        if name in then and then[name] != value
    )


def _flat(facts: dict) -> dict:
    """{"jax": ..., "device cores": ..., "processes": ...} of what `now` returns."""
    flat = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= {key if name == "versions" else f"{name} {key}": v for key, v in value.items()}
        else:
            flat[name] = value
    return flat


def git_revision() -> str | None:
    """The revision of this repository; None where the package was installed, be it inside another one."""
    root = pathlib.Path(__file__).parents[2]
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD", "--show-toplevel"],
            cwd=root,
            env={name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
            capture_output=True,
            text=True,
            timeout=10,
        )
        revision, top = done.stdout.splitlines()
        return revision if root.samefile(top) else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
