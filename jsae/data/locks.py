"""One writer at a time in a cache folder; the lock ends with its process, however that ends."""

import contextlib
import fcntl
import pathlib
from collections.abc import Iterator

from jsae.runtime import logs


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[bool]:
    """Hold an exclusive lock on the file `path`, waiting for another holder.

    Yields True, or False where the disk has no locks (some network disks): then nothing that looks left
    over may be removed, since its writer could be alive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logs.get_logger().info("another run is preparing the same data; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            yield False
            return
        yield True
