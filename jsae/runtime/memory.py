"""The most memory that a stage took, of the host and of one device."""

import contextlib
import pathlib
import resource
import sys

import jax

_MIB = 1 << 20


def reset_peak() -> None:
    """Begin to measure anew, where the kernel can (Linux); elsewhere the peak is the whole process's."""
    with contextlib.suppress(OSError):
        pathlib.Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    """The largest resident size of this process since `reset_peak`, MiB."""
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB, 1)


def peak_device_mib() -> float | None:
    """The most memory that this process has held on its first device, MiB; None where it is not told."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else round(peak / _MIB, 1)
