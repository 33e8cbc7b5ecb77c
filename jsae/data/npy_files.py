"""Named arrays of an .npz file, or of a folder of .npy files, without pickle and without reading them whole.

A .npy file is memory-mapped, and so is an array inside an .npz that is stored uncompressed (np.savez). One
that is compressed (np.savez_compressed) is unpacked into memory.
"""

import math
import pathlib
import struct
import zipfile
import zlib
from typing import IO, Literal

import numpy as np

from jsae.data.image_folder import disk
from jsae.runtime import logs

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and extra field
_UNPACKED_MIB = 256  # from here on a compressed array is worth a word


def names(path: pathlib.Path) -> list[str]:
    """Names of the arrays in an .npz file or a folder. Raises ValueError for a damaged .npz."""
    if path.is_dir():
        return sorted(file.stem for file in path.glob("*.npy") if not disk.is_hidden(file.name))
    try:
        with zipfile.ZipFile(path) as archive:
            found = [pathlib.PurePosixPath(name) for name in archive.namelist() if name.endswith(".npy")]
            return sorted(str(n.with_suffix("")) for n in found if not any(map(disk.is_hidden, n.parts)))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no .npz file, or it is damaged ({error})") from error


def read(path: pathlib.Path, name: str) -> np.ndarray:
    """One array of an .npz file, of a folder, or of the .npy file `path` itself.

    Raises ValueError that names the file and array if it holds Python objects, is damaged or cut short.
    """
    file = path / f"{name}.npy" if path.is_dir() else path
    where = f"{path}[{name!r}]" if path.suffix.lower() == ".npz" else str(file)
    try:
        if path.suffix.lower() == ".npz":
            return _from_zip(path, f"{name}.npy")
        with open(file, "rb") as stream:
            return _mapped(stream, file, 0, file.stat().st_size)
    except _Objects:
        raise ValueError(
            f"{where} holds Python objects (dtype object), which are never read: they may run code. Save a "
            f"plain array of numbers or strings: np.asarray({name}).astype(str)"
        ) from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{where} is no .npy array, or it is damaged ({error})") from error


class _Objects(Exception):
    """The array's dtype is object."""


def _mapped(stream: IO[bytes], path: pathlib.Path, start: int, size: int) -> np.ndarray:
    """The array whose .npy header `stream` is at; its `size` bytes with header begin at `start` in `path`."""
    shape, fortran, dtype = _header(stream)
    offset = stream.tell()
    if offset + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"its header announces {dtype} {shape}, which does not take {size} bytes")
    if 0 in shape:
        return np.zeros(shape, dtype)
    order: Literal["F", "C"] = "F" if fortran else "C"
    return np.memmap(path, dtype, "r", offset=start + offset, shape=shape, order=order)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran order, dtype."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        found = np.lib.format.read_array_header_1_0(stream)
    elif version == (2, 0):
        found = np.lib.format.read_array_header_2_0(stream)
    else:
        raise ValueError(f".npy version {version} is for named fields; expected a plain array")
    if found[2].hasobject:
        raise _Objects
    return found


def _from_zip(path: pathlib.Path, member: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        with archive.open(info) as stream:
            if info.compress_type == zipfile.ZIP_STORED:
                return _mapped(stream, path, _start(path, info), info.file_size)
            _header(stream)
        if info.file_size >> 20 >= _UNPACKED_MIB:
            logs.get_logger().info(
                "%s[%r] is compressed and takes %d MiB of memory; np.savez would leave it on disk",
                path,
                member.removesuffix(".npy"),
                info.file_size >> 20,
            )
        with archive.open(info) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)


def _start(path: pathlib.Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed member begin in the .npz file."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
    return info.header_offset + _LOCAL_HEADER.size + sum(lengths)
