"""Where FGVC-Aircraft comes from: a folder, an archive, or the download.

`config.data.dir` may be a folder that is data/ or contains it, a .tar.gz / .tgz / .tar archive of such a
folder, or the word "download". An archive is checked against its md5 before anything is unpacked, and
only plain files and folders inside the target are accepted.
"""

import hashlib
import os
import pathlib
import shutil
import tarfile
import tempfile
import urllib.request
from typing import Any

from jsae.data import locks
from jsae.data.image_folder import disk
from jsae.runtime import logs

URL = "https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz"
MD5 = "d4acdd33327262359767eeaa97a4f732"  # as published code has it; not verified by us
ARCHIVE_SUFFIXES = (".tar.gz", ".tgz", ".tar")

LAYOUTS = f"""\
  a folder with variants.txt, images_variant_train.txt, ... and images/, or one that holds such a data/
  an archive of it ({", ".join(ARCHIVE_SUFFIXES)})
  the word "download": fetches {URL}
    (2.8 GB, for non-commercial research only) into the cache folder"""


def resolve(directory: str | os.PathLike, cache_dir: str | os.PathLike) -> pathlib.Path:
    """The folder holding the lists and images/ for a `config.data.dir`.

    Args:
      directory: folder, archive or "download".
      cache_dir: where archives are downloaded and unpacked to.

    Raises:
      ValueError: an empty `directory`, or an archive that is damaged, unsafe or has another checksum.
      FileNotFoundError: no such folder or no lists in it.
    """
    directory, cache_dir = os.fspath(directory or ""), pathlib.Path(cache_dir)
    if not directory:
        raise ValueError(
            "config.data.dir is empty, but data.kind=fgvc_aircraft needs the photos. It can be\n" + LAYOUTS
        )
    if directory == "download":
        with locks.locked(cache_dir / ".download.lock") as alone:
            archive = download(cache_dir / "downloads", alone)
        return find_lists(unpack(archive, cache_dir / "unpacked", md5=MD5))
    path = pathlib.Path(directory).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"config.data.dir={directory!r} does not exist. It can be\n" + LAYOUTS)
    if path.is_dir():
        return find_lists(path)
    if not path.name.endswith(ARCHIVE_SUFFIXES):
        raise ValueError(
            f"config.data.dir={directory!r} is neither folder nor archive. It can be\n" + LAYOUTS
        )
    # only the official name promises the official content
    md5 = MD5 if path.name == URL.rsplit("/", 1)[1] else None
    return find_lists(unpack(path, cache_dir / "unpacked", md5=md5))


def find_lists(folder: pathlib.Path) -> pathlib.Path:
    """The folder with variants.txt: `folder`, its data/, or the same in a folder directly below it.

    Raises FileNotFoundError if there is none, ValueError if there are several below it.
    """
    for candidate in (folder, folder / "data"):
        if (candidate / "variants.txt").exists():
            return candidate.resolve()
    below = [path / name for path in disk.folders(folder) for name in ("data", "")]
    found = [path for path in below if (path / "variants.txt").exists()]
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds several folders with variants.txt; give one of them: "
            f"{disk.listed(map(str, found))}"
        )
    if found:
        return found[0].resolve()
    raise FileNotFoundError(
        f"no variants.txt in {folder}, {folder / 'data'} or one folder further down. data.dir can be\n"
        + LAYOUTS
    )


def has_lists(folder: pathlib.Path) -> bool:
    """Whether `folder` itself or its data/ holds the lists of FGVC-Aircraft."""
    return any((path / "variants.txt").exists() for path in (folder, folder / "data"))


def download(folder: pathlib.Path, alone: bool = False) -> pathlib.Path:
    """Fetch the official archive into `folder`, once, and return its path; `alone`: no other run does."""
    target = folder / URL.rsplit("/", 1)[1]
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.part") if alone else ():
        left.unlink()
    logs.get_logger().info("downloading %s to %s (non-commercial research only)", URL, target)
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    with urllib.request.urlopen(URL, timeout=60) as response, open(part, "wb") as file:
        mib = int(response.headers.get("Content-Length") or 0) >> 20
        with logs.Progress(mib, 0, "download", "MiB") as progress:
            while block := response.read(1 << 20):
                file.write(block)
                progress.update(1)
    try:
        _check_md5(part, MD5)
    except ValueError:
        part.unlink()
        raise
    part.replace(target)
    return target


def unpack(archive: pathlib.Path, folder: pathlib.Path, *, md5: str | None) -> pathlib.Path:
    """Unpack `archive` into a new folder under `folder`, once; returns that folder.

    The folder's name is a digest of the archive's path, size and time, so a changed archive is unpacked
    again. Raises ValueError if `md5` is given and differs, for links, devices and paths that lead out of
    the folder, and for damaged archives.
    """
    archive = archive.resolve()
    stat = archive.stat()
    key = f"{archive}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()
    target = folder / hashlib.sha256(key).hexdigest()[:16]
    if target.exists():
        return target
    with locks.locked(folder / ".lock") as alone:
        if target.exists():
            return target  # another run has unpacked it meanwhile
        for left in folder.glob(".unpacking-*") if alone else ():
            shutil.rmtree(left, ignore_errors=True)
        if md5 is not None:
            _check_md5(archive, md5)
        logs.get_logger().info("unpacking %s into %s", archive, target)
        temporary = pathlib.Path(tempfile.mkdtemp(dir=folder, prefix=".unpacking-"))
        try:
            _extract(archive, temporary)
            temporary.rename(target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def _extract(archive: pathlib.Path, target: pathlib.Path) -> None:
    root = target.resolve()
    safe: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # absent before 3.11.4
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                inside = (root / member.name).resolve().is_relative_to(root)
                if not inside or not (member.isfile() or member.isdir()):
                    raise ValueError(
                        f"{archive}: member {member.name!r} is not a plain file or folder inside the "
                        "archive; nothing was taken from it"
                    )
                tar.extract(member, root, **safe)
    except (tarfile.TarError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # disk full, no permission: not the archive's fault
        raise ValueError(f"{archive}: damaged archive ({error})") from error


def _check_md5(archive: pathlib.Path, expected: str) -> None:
    with open(archive, "rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != expected:
        raise ValueError(
            f"{archive}: md5 is {found}, expected {expected}; the file is damaged or another one. "
            "Fetch it again, or, if you trust it, unpack it yourself and give the folder as config.data.dir."
        )
