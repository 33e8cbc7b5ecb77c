"""Keep freed memory: the C library's allocator, told not to give large buffers back after every step.

XLA:CPU frees its temporaries after each execution. glibc returns blocks of this size to the kernel at once,
and the next step pays for a page fault every 4 KiB: measured, a forward pass takes up to 1.5 times as long.
"""

import ctypes
import sys
from collections.abc import Callable

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEEP_BYTES = 1 << 30
_LARGEST_MMAP_THRESHOLD = 32 << 20  # the most that glibc takes; beyond it blocks are mapped one by one


def keep_freed_memory() -> None:
    """Let the process keep up to 1 GiB of freed memory; does nothing where the C library is not glibc."""
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def return_freed_memory() -> None:
    """Give back what was kept, so that what a process grows by from here on can be measured."""
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    """A function of the C library, None where it is not glibc."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
