"""What a disk or a machine says when it refuses: full, over a quota, unreadable just now; and what is done.

A read that is refused is not damage: the same bytes may be there a minute later. Only what was read and is
not what was written, or is gone, is damaged, and that is moved aside, never deleted.
"""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from etils import epath

from jsae.runtime.paths import PathLike

_FULL = {errno.ENOSPC: "is full", errno.EDQUOT: "is over its quota", errno.EFBIG: "takes no more"}
# Of a read: the file is there, or may be, and could not be had. ENOENT is none of them.
_REFUSED_NAMES = (
    "EIO ESTALE EACCES EPERM ENOMEM EMFILE ENFILE ETIMEDOUT EINTR EAGAIN EBUSY ENOTCONN ECONNRESET",
    "EHOSTDOWN EHOSTUNREACH ENETUNREACH ENODEV ENXIO EREMOTEIO",
)
_REFUSED = tuple(getattr(errno, name) for names in _REFUSED_NAMES for name in names.split())
_REFUSED_WORDS = (  # as messages of tensorstore and XLA begin
    r"(?:^|[\s(:])(?:RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED): "
)
ASIDE = "damaged"  # a stage's folder for what is damaged


class NoRoom(OSError):
    """A disk takes no more; the message says which, and what can be done."""


def why_full(error: BaseException) -> str | None:
    """What to say of a disk that took no more ("is full"); None for any other error."""
    code = _code(error, tuple(_FULL))
    return None if code is None else _FULL[code]


def why_refused(error: BaseException) -> str | None:
    """Why something could not be read although it may be sound; None where that is not so."""
    code = _code(error, _REFUSED)
    if code is not None:
        return os.strerror(code)
    for link in _chain(error):
        if isinstance(link, MemoryError):
            return "there is not enough memory"
        if re.search(_REFUSED_WORDS, str(link)):
            return first_line(link)
    return None


MOVE_WORKDIR = "copy the workdir to another disk and give its new place as --workdir"
MOVE_CACHE = "set data.cache_dir (or JSAE_CACHE) to a folder on another disk"


@contextlib.contextmanager
def room_in(folder: PathLike, advice: str, needs: str = "") -> Iterator[None]:
    """Name `folder`, what it `needs` and the `advice` where its disk takes no more in the block.

    Raises NoRoom then.
    """
    try:
        yield
    except NoRoom:
        raise
    except Exception as error:  # writers underneath have many types for a disk that refuses
        why = why_full(error)
        if why is None:
            raise
        need = f" ({needs})" if needs else ""
        raise NoRoom(
            f"the disk of {os.fspath(folder)} {why}{need}: {first_line(error)}. Nothing that was finished is "
            f"lost: make room, or {advice}, and start the same command again"
        ) from error


def move_aside(path: epath.Path, stage_folder: epath.Path) -> None:
    """Move a damaged file or folder of a stage to damaged/ in the stage's folder."""
    inside = os.path.relpath(os.fspath(path), os.fspath(stage_folder)).replace("/", "-")
    target, number = stage_folder / ASIDE / inside, 1
    while target.exists():
        target, number = stage_folder / ASIDE / f"{inside}-{number}", number + 1
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and those that it came from."""
    known = set()
    while error is not None and id(error) not in known:
        known.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _code(error: BaseException, codes: tuple[int, ...]) -> int | None:
    """The first of the error numbers in `codes` that an error or one behind it has, in words too."""
    for link in _chain(error):
        if isinstance(link, OSError) and link.errno in codes:
            return link.errno
        text = str(link)
        told = [int(number) for number in re.findall(r"os_error_code='(\d+)'", text)]  # tensorstore's form
        told += [number for number in codes if os.strerror(number) in text]
        for number in told:
            if number in codes:
                return number
    return None


def first_line(error: BaseException) -> str:
    """The first line of a message, without the long descriptions that tensorstore appends."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
