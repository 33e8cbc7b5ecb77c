"""Files of a workdir, written whole or not at all: a temporary file beside the target, then a rename.

Paths are etils epaths, so a workdir may lie on gs:// as well as on local disk. Only one process writes.
Parquet tables carry their manifest (config, upstream digest, versions, git revision) as schema metadata.
"""

import io
import json
import os

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

MANIFEST_KEY = b"jsae.manifest"


def write_bytes(path, data: bytes) -> None:
    """Write `data` to `path` atomically, in the writer process only."""
    if jax.process_index() != 0:
        return
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{path.name}.tmp{os.getpid()}"
    temporary.write_bytes(data)
    temporary.replace(path)


def write_json(path, obj) -> None:
    """Write `obj` as JSON. Raises ValueError on NaN or infinity: an unknown number is None."""
    write_bytes(path, (json.dumps(obj, indent=2, allow_nan=False, default=_jsonable) + "\n").encode())


def _jsonable(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} cannot be written as JSON: {value!r}")


def read_json(path):
    """Read a JSON file. Raises ValueError that names the file if it is damaged."""
    path = epath.Path(path)
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); it is damaged or was cut short") from error


def write_array(path, array: np.ndarray) -> None:
    """Write one .npy file (no pickled objects)."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def read_array(path, *, mmap: bool = False) -> np.ndarray:
    """Read one .npy file; mmap=True maps it where the path is local."""
    path = os.fspath(path)
    if mmap and "://" not in path:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with epath.Path(path).open("rb") as file:
        return np.load(io.BytesIO(file.read()), allow_pickle=False)


def write_table(path, table: pa.Table, manifest: dict) -> None:
    """Write a Parquet table with its manifest as schema metadata."""
    metadata = dict(table.schema.metadata or {}) | {
        MANIFEST_KEY: json.dumps(manifest, default=_jsonable).encode()
    }
    sink = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), sink)
    write_bytes(path, sink.getvalue())


def manifest_of(table: pa.Table) -> dict:
    """The manifest that a table written here carries, {} without one."""
    return json.loads((table.schema.metadata or {}).get(MANIFEST_KEY, b"{}"))


def read_table(path) -> pa.Table:
    """Read a Parquet table. Raises FileNotFoundError that names the stage's file if it is missing."""
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: run the stage that writes it first")
    return pq.read_table(io.BytesIO(path.read_bytes()))
