"""What a process finds around it, made the same for every run: streams, text encoding, settings of jax.

Shells, schedulers, containers and shared machines differ in all of these; a study's numbers shall not.
"""

import contextlib
import io
import locale
import os
import subprocess
import sys
from typing import Any

# What results depend on and an environment variable or a jaxrc may have changed, as studies take it.
_JAX = {
    "jax_enable_x64": False,
    "jax_default_prng_impl": "threefry2x32",
    "jax_threefry_partitionable": True,
    "jax_default_matmul_precision": None,
    "jax_numpy_dtype_promotion": "standard",
    "jax_numpy_rank_promotion": "allow",
}


class _Surviving(io.FileIO):
    """A stream's file that outlives its terminal or pipe: what can no longer be written goes nowhere."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), self.fileno())  # for compiled code, too
            return len(data)


def keep_streams() -> None:
    """Let the process outlive its terminal: a closed stream or a broken pipe loses lines and nothing else.

    A closed descriptor 0, 1 or 2 is opened on /dev/null: the next file to be opened would get its number, and
    whatever compiled code prints. Names that a stream cannot encode are written with backslashes.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is fd
    for name, fd in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
        encoding = getattr(stream, "encoding", None) or "utf-8"
        raw = io.BufferedWriter(_Surviving(fd, "w", closefd=False))
        setattr(sys, name, io.TextIOWrapper(raw, encoding, "backslashreplace", line_buffering=True))


def use_utf8() -> None:
    """Start the process again in Python's UTF-8 mode where the locale has another encoding.

    Names of classes and files are UTF-8 whatever the locale says. The process keeps its number.
    """
    if sys.flags.utf8_mode or locale.getpreferredencoding(False).lower().replace("-", "") == "utf8":
        return
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def settle_jax() -> list[str]:
    """Give jax the settings that a study's numbers are of; returns those that were others, "name=value"."""
    import jax

    changed = []
    for name, value in _JAX.items():
        found = getattr(jax.config, name)
        if found != value:
            changed.append(f"{name}={found}")
            jax.config.update(name, value)
    return changed


def check_platform() -> None:
    """Raise RuntimeError, saying what to set, where jax is told to use a platform that is not here."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter, without words, for cuda without its plugin
        wanted = os.environ.get("JAX_PLATFORMS", "")
        reason = (str(error).splitlines() or ["it is not installed"])[0]
        raise RuntimeError(
            f"jax finds no device (JAX_PLATFORMS={wanted!r}): {reason}. "
            "Set JAX_PLATFORMS=cpu to run on the CPU, or unset it for what is there"
        ) from error


def check_accelerator() -> None:
    """Raise RuntimeError where a GPU or TPU is in the machine, not hidden, and jax sees only the CPU."""
    import jax

    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return
    found = wanted = ""
    if os.path.exists("/dev/nvidiactl") and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1"):
        driver = nvidia_driver()
        wanted = "cuda12" if driver and int(driver.split(".")[0]) < 580 else "cuda13"
        found = f"An NVIDIA GPU (driver {driver or 'unknown'}; CUDA 13 needs 580 or newer)"
    elif any(os.path.exists(f"/dev/{name}") for name in ("accel0", "vfio/0")):
        found, wanted = "A TPU", "tpu"
    if found:
        raise RuntimeError(
            f"{found} is present but jax sees only the CPU. Install jsae[{wanted}] "
            f"(pip install -e '.[{wanted}]'), or set JAX_PLATFORMS=cpu to run on the CPU all the same."
        )


def nvidia_driver() -> str | None:
    """The version that nvidia-smi reports, such as "535.104.05"; None if it reports none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    first = (said.strip().splitlines() or [""])[0]
    return first if first.partition(".")[0].isdigit() else None
