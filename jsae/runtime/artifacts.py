"""Files of a workdir, written whole or not at all: a temporary file beside the target, then a rename.

Paths are etils epaths, so a workdir may lie on gs:// as well as on local disk. Only one process writes.
Parquet tables carry their manifest (config, upstream digest, versions, git revision) as schema metadata.

Files that a later stage reads are *checked*: `checksums.json` beside them holds the CRC-32 of each, and
reading one that has changed raises `digests.Damaged`. The checksum is recorded before the file is renamed
and the one before it stays valid, so a kill between the two leaves a folder that can be read.
"""

import contextlib
import functools
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import fsspec.core
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jsae.runtime import digests, paths, preemption
from jsae.runtime.paths import PathLike

MANIFEST_KEY = b"jsae.manifest"
CHECKSUMS = "checksums.json"
UNFINISHED = ".unfinished-"  # what the temporary files' names begin with


def write_bytes(path: PathLike, data: bytes, *, checked: bool = False, by_any: bool = False) -> None:
    """Write `data` to `path` atomically, in the writer process only.

    Args:
      checked: record a checksum, and return when the file will survive a loss of power.
      by_any: in whichever process; then all must write the same.

    Raises OSError that names the file, for example if the disk is full; the file is then as it was.
    """
    if jax.process_index() != 0 and not by_any:
        return
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if checked:
        known = _checksums(path.parent)
        crc = digests.of_bytes(data)
        known[path.name] = [crc, *(other for other in known.get(path.name, ()) if other != crc)][:4]
        _replace(path.parent / CHECKSUMS, json.dumps(known, indent=1).encode(), sync=True)
    _replace(path, data, sync=checked)


def _replace(path: epath.Path, data: bytes, sync: bool) -> None:
    temporary = path.parent / f"{UNFINISHED}{jax.process_index() or ''}{path.name}"
    try:
        with preemption.saving():
            if paths.is_remote(path):  # an object appears whole or not at all
                path.write_bytes(data)
                return
            with open(temporary, "wb") as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, f"cannot write {path}: {error.strerror or error}") from error


def remove(path: PathLike) -> None:
    """Remove a file that may not be there, in the writer process; one that cannot be removed stays."""
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            epath.Path(path).unlink(missing_ok=True)


def drop_unfinished(folder: PathLike) -> None:
    """Remove the temporary files that a killed run left in a local folder and the folders in it."""
    if jax.process_index() == 0 and not paths.is_remote(folder):
        for pattern in (f"{UNFINISHED}*", f"*/{UNFINISHED}*"):
            for path in epath.Path(folder).glob(pattern):
                path.unlink(missing_ok=True)


def _checksums(folder: epath.Path) -> dict[str, list[str]]:
    path = folder / CHECKSUMS
    try:
        return json.loads(content(path)) if path.exists() else {}
    except ValueError as error:
        raise digests.Damaged(path, f"{path}, the folder's checksums, is damaged ({error})") from error


def recorded(path: PathLike) -> list[str] | None:
    """The checksums that a file may have, the newest first; None if none was recorded."""
    path = epath.Path(path)
    return _checksums(path.parent).get(path.name)


def check(path: PathLike) -> None:
    """Raise `digests.Damaged` if the file is not what was written; files without a checksum pass."""
    valid = recorded(path)
    try:
        if valid is not None:
            _check_file(path, valid)
    except FileNotFoundError as error:
        raise digests.Damaged(path, f"{path} is gone, although it was written") from error


def is_known(path: PathLike, valid: Sequence[str]) -> bool:
    """Whether the file has one of the checksums; a local one that has not changed since is not read again."""
    try:
        _check_file(path, valid)
    except digests.Damaged:
        return False
    return True


def _check_file(path: PathLike, valid: Sequence[str]) -> None:
    if paths.is_remote(path):
        _check_content(epath.Path(path), tuple(valid), None)
    else:
        stat = os.stat(path)
        _check_once(epath.Path(path), tuple(valid), (stat.st_size, stat.st_mtime_ns))


def _check_content(path: epath.Path, valid: tuple[str, ...], stamp: tuple[int, int] | None) -> None:
    with _naming(path):
        found = digests.of_file(epath.Path(path))
    if found not in valid:
        _raise_damaged(path, found, valid)


_check_once = functools.lru_cache(maxsize=1 << 14)(_check_content)  # what raises is not kept


def _raise_damaged(path: PathLike, found: str, valid: Sequence[str]) -> NoReturn:
    raise digests.Damaged(
        path, f"{path} is damaged: its checksum is {found}, what was written had {valid[0]}"
    )


def read_bytes(path: PathLike) -> bytes:
    """The bytes of a file. Raises `digests.Damaged` if they are not what was written."""
    path = epath.Path(path)
    if not paths.is_remote(path):
        check(path)
        with _naming(path):
            return path.read_bytes()
    valid, data = recorded(path), content(path)  # comes over the network once
    if valid is not None and digests.of_bytes(data) not in valid:
        _raise_damaged(path, digests.of_bytes(data), valid)
    return data


def content(path: epath.Path) -> bytes:
    """The bytes of a file, unchecked, as they were at one moment, though a writer replaces it meanwhile.

    A remote object comes in one request: opening it asks for its size first, and what is longer by then is
    cut to that size.
    """
    if paths.is_remote(path):
        filesystem, name = fsspec.core.url_to_fs(os.fspath(path))
        return filesystem.cat_file(name)
    return path.read_bytes()


@contextlib.contextmanager
def _naming(path: PathLike) -> Iterator[None]:
    """Errors of a read say of which file; the system itself names only what it cannot open."""
    try:
        yield
    except OSError as error:
        if error.filename:
            raise
        raise OSError(error.errno, f"cannot read {path}: {error.strerror or error}") from error


def write_json(path: PathLike, obj: Any, *, checked: bool = False, by_any: bool = False) -> None:
    """Write `obj` as JSON. Raises ValueError on NaN or infinity: an unknown number is None."""
    text = json.dumps(obj, indent=2, allow_nan=False, default=_jsonable) + "\n"
    write_bytes(path, text.encode(), checked=checked, by_any=by_any)


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def read_json(path: PathLike) -> Any:
    """Read a JSON file. Raises ValueError that names the file if it is damaged."""
    path = epath.Path(path)
    try:
        return json.loads(read_bytes(path))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it is damaged or was cut short") from error


def write_array(path: PathLike, array: np.ndarray) -> None:
    """Write one .npy file (no pickled objects)."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue(), checked=True)


def read_array(path: PathLike, *, mmap: bool = False) -> np.ndarray:
    """Read one .npy file, checked as a whole; mmap=True maps it where the path is local."""
    if mmap and not paths.is_remote(path):
        check(path)
        return np.load(path, mmap_mode="r", allow_pickle=False)
    return np.load(io.BytesIO(read_bytes(path)), allow_pickle=False)


def write_table(path: PathLike, table: pa.Table, manifest: Mapping[str, Any]) -> None:
    """Write a Parquet table with its manifest as schema metadata."""
    metadata = dict(table.schema.metadata or {}) | {
        MANIFEST_KEY: json.dumps(manifest, default=_jsonable).encode()
    }
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    write_bytes(path, sink.getvalue(), checked=True)


def manifest_of(table: pa.Table) -> dict[str, Any]:
    """The manifest that a table written here carries, {} without one."""
    return json.loads((table.schema.metadata or {}).get(MANIFEST_KEY, b"{}"))


def read_table(path: PathLike) -> pa.Table:
    """Read a Parquet table. Raises FileNotFoundError that names the stage's file if it is missing."""
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it first")
    return parse_table(read_bytes(path))


def parse_table(data: bytes) -> pa.Table:
    """The table of a Parquet file's bytes.

    In this thread: of the threads that `pq.read_table` starts some are still there when a short script ends,
    and then every second one is aborted (pyarrow 26.0.1).
    """
    return pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)
