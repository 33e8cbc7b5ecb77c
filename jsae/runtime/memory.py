"""Memory: the most that a stage took, of the host and of one device, and what the host has left."""

import contextlib
import pathlib
import resource
import sys

import jax

_MIB = 1 << 20


def reset_peak() -> None:
    """Begin to measure again, where the kernel can (Linux); elsewhere the peak is the whole process's."""
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


def available_bytes(root: str = "/") -> int | None:
    """What this process may still take: what the host has, less where a container or a limit allows less.

    In a container /proc/meminfo is the host's. None where nobody says. `root` is another / for tests.
    """
    found = [_of_host(root), _of_group(root, "memory.max", "memory.current", "sys/fs/cgroup")]
    found += [_of_group(root, "memory.limit_in_bytes", "memory.usage_in_bytes", "sys/fs/cgroup/memory")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    found += [None if soft == resource.RLIM_INFINITY else soft]
    return min((value for value in found if value is not None), default=None)


def _of_host(root: str) -> int | None:
    with contextlib.suppress(OSError, KeyError, ValueError):
        lines = pathlib.Path(root, "proc/meminfo").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines)["MemAvailable"].split()[0]) * 1024
    return None


def _of_group(root: str, limit: str, used: str, folder: str) -> int | None:
    """Of a control group; its page cache, which is given back when it is needed, counts as free."""
    where = pathlib.Path(root, folder)
    with contextlib.suppress(OSError, ValueError):
        most, taken = (int((where / name).read_text()) for name in (limit, used))  # "max" is no number
        stat = dict(line.split() for line in (where / "memory.stat").read_text().splitlines())
        return max(most - taken + int(stat.get("inactive_file", 0)), 0)
    return None


def peak_device_mib() -> float | None:
    """The most memory that this process has held on its first device, MiB; None where it is not told."""
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return None if peak is None else round(peak / _MIB, 1)
