"""Digests of arrays and of files: is what is read still what was written?

An array's digest is computed where it lies, on the devices, and depends on its values and their positions
only, not on how it is sharded: every element's bits are mixed with the element's number by a function that
can be inverted (MurmurHash3's finaliser), and the results are added up modulo 2^32. One changed element
always changes the digest.
"""

import zlib
from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax import lax

from jsae.runtime.paths import PathLike


class Damaged(ValueError):
    """A file or checkpoint does not hold what was written; `path` says which, where a stage can mend it."""

    def __init__(self, path: PathLike, message: str) -> None:
        super().__init__(message)
        self.path = path


def of_tree(flat: Mapping[str, jax.Array]) -> jax.Array:
    """Digests of a flat dict of arrays, uint32 [n], in the order of the sorted names."""
    return jnp.stack([_of_array(flat[name]) for name in sorted(flat)])


def differing(flat: Mapping[str, jax.Array], names: Iterable[str], recorded: np.ndarray) -> list[str]:
    """The names in `flat` whose arrays do not have the recorded digest.

    Args:
      flat: name -> array, of all `names` or some of them.
      names: all names that were saved.
      recorded: what `of_tree` said of them, uint32 [len(names)].
    """
    recorded = dict(zip(sorted(names), np.asarray(recorded).tolist(), strict=True))
    found = dict(zip(sorted(flat), np.asarray(of_tree(flat)).tolist(), strict=True)) if flat else {}
    return [name for name, value in found.items() if recorded.get(name) != value]


@jax.jit
def _of_array(x: jax.Array) -> jax.Array:
    bits = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
    if bits.dtype.itemsize > 4:
        raise ValueError(f"digests are of arrays of at most 32 bits an element, not {x.dtype}")
    bits = lax.bitcast_convert_type(bits, f"uint{8 * bits.dtype.itemsize}").astype(jnp.uint32)
    number, stride = jnp.zeros(x.shape, jnp.uint32), 1
    for axis in reversed(range(x.ndim)):
        number = number + lax.broadcasted_iota(jnp.uint32, x.shape, axis) * np.uint32(stride % 2**32)
        stride *= x.shape[axis]
    mixed = bits ^ (number * np.uint32(0x9E3779B1))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return (mixed ^ (mixed >> 16)).sum(dtype=jnp.uint32)


def of_bytes(data: bytes | np.ndarray) -> str:
    """The CRC-32 of bytes, eight hex digits."""
    return f"{zlib.crc32(data):08x}"  # type: ignore[arg-type]  # before Python 3.12 no type has the buffer


def of_file(path: epath.Path, block_bytes: int = 1 << 22) -> str:
    """The CRC-32 of a file, read in blocks; `path` is an etils path."""
    crc = 0
    with path.open("rb") as file:
        while block := file.read(block_bytes):
            crc = zlib.crc32(block, crc)
    return f"{crc:08x}"
