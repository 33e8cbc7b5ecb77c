"""Shards of a remote store on this machine's disk: copied once a host, then mapped and read like local ones.

A copy lies in the cache folder (as in jsae.data.cache), under <cache>/remote/<place>-<checksum>.npy: a shard
that is written anew has another checksum and replaces the copy. Processes of one host take turns, so that one
copies and the others find it.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import tempfile

from jsae.data import cache, locks
from jsae.runtime import artifacts, digests, disks, paths


def local(path: paths.PathLike) -> pathlib.Path:
    """A local file with the bytes of `path`, checked; `path` itself where it is local.

    Raises:
      digests.Damaged: the file is not what was written.
      OSError: there is no room for the copy, naming the cache folder and the setting that moves it.
    """
    if not paths.is_remote(path):
        artifacts.check(path)
        return pathlib.Path(path)
    folder = cache.local_folder("") / "remote"
    valid = artifacts.recorded(path)
    place = hashlib.sha256(os.fspath(path).encode()).hexdigest()[:24]
    copy = folder / f"{place}-{valid[0] if valid else 'unchecked'}.npy"
    with locks.locked(folder / f".{place}.lock") as alone:
        if valid and copy.exists() and artifacts.is_known(copy, valid):
            return copy
        for other in folder.glob(f"{place}-*") if alone else ():  # of a shard written anew
            other.unlink(missing_ok=True)
        _fetch(path, copy)
        if valid and not artifacts.is_known(copy, valid):
            copy.unlink()
            raise digests.Damaged(path, f"{path} is damaged: it has not the checksum of what was written")
    return copy


def _fetch(path, copy: pathlib.Path) -> None:
    handle, temporary = tempfile.mkstemp(dir=copy.parent, prefix=f"{copy.stem}.copying-")
    try:
        needs = f"for a copy of {path}"
        with (
            path.open("rb") as source,
            open(handle, "wb") as target,
            disks.room_in(copy.parent, disks.MOVE_CACHE, needs),
        ):
            shutil.copyfileobj(source, target, 1 << 24)
        os.chmod(temporary, copy.parent.stat().st_mode & 0o666)  # whoever uses the cache reads what is in it
        os.replace(temporary, copy)
    except disks.NoRoom:
        raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot copy {path} to the cache folder {copy.parent} ({error.strerror or error}); "
            "JSAE_CACHE names another folder",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
