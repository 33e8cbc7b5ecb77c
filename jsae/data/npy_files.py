"""Named arrays of an .npz file, or of a folder of .npy files, without pickle and without reading them whole.

A .npy file is memory-mapped, and so is an array inside an .npz that is stored uncompressed (np.savez). One
that is compressed (np.savez_compressed) is unpacked into memory.
"""

import pathlib
import struct
import zipfile

import numpy as np

from jsae.runtime import logs

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and extra field
_UNPACKED_MIB = 256  # from here on a compressed array is worth a word


def names(path: pathlib.Path) -> list[str]:
    """Names of the arrays in an .npz file or a folder. Raises ValueError for a damaged .npz."""
    if path.is_dir():
        return sorted(file.stem for file in path.glob("*.npy") if not file.name.startswith("."))
    try:
        with zipfile.ZipFile(path) as archive:
            return sorted(name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy"))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is no .npz file, or it is damaged ({error})") from error


def read(path: pathlib.Path, name: str) -> np.ndarray:
    """One array of an .npz file, of a folder, or of the .npy file `path` itself.

    Raises ValueError that names the file and array if it holds Python objects, is damaged or cut short.
    """
    where = (
        f"{path}[{name!r}]" if path.suffix == ".npz" else str(path / f"{name}.npy" if path.is_dir() else path)
    )
    try:
        if path.suffix == ".npz":
            return _from_zip(path, f"{name}.npy")
        file = path / f"{name}.npy" if path.is_dir() else path
        try:
            return np.load(file, mmap_mode="r", allow_pickle=False)
        except ValueError:
            return np.load(file, allow_pickle=False)  # what cannot be mapped, e.g. an empty array
    except (ValueError, EOFError, zipfile.BadZipFile, zipfile.zlib.error) as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise ValueError(
                f"{where} holds Python objects (dtype object), which are never read: they may run code. "
                "Save a plain array of numbers or strings"
            ) from error
        raise ValueError(f"{where} is no .npy array, or it is damaged ({error})") from error


def _from_zip(path: pathlib.Path, member: str) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
        with archive.open(info) as file:
            if info.compress_type != zipfile.ZIP_STORED:
                if info.file_size >> 20 >= _UNPACKED_MIB:
                    logs.get_logger().info(
                        "%s[%r] is compressed and takes %d MiB of memory; np.savez would be mapped from disk",
                        *(path, member.removesuffix(".npy"), info.file_size >> 20),
                    )
                return np.lib.format.read_array(file, allow_pickle=False)
            version = np.lib.format.read_magic(file)
            reader = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }
            if version not in reader:
                file.seek(0)
                return np.lib.format.read_array(file, allow_pickle=False)
            shape, fortran, dtype = reader[version](file)
            header = file.tell()
    if dtype.hasobject:
        raise ValueError("Object arrays cannot be loaded")
    if header + int(np.prod(shape)) * dtype.itemsize != info.file_size:
        raise ValueError(f"its header announces shape {shape}, which is not its size")
    if 0 in shape:
        return np.zeros(shape, dtype)
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        start = (
            info.header_offset + _LOCAL_HEADER.size + sum(_LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size)))
        )
    return np.memmap(
        path, dtype, "r", offset=start + header, shape=shape, order="F" if fortran else "C"
    )  # an array of 0 dimensions comes as 1
