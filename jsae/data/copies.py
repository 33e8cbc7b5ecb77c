"""Images that a data set holds more than once, found without reading most of them.

An image that is trained on and tested on flatters every number. Of files only those of one size are read, and
whole only if they end alike; of arrays only the middle line of each image, and whole where these are equal.
"""

import collections
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from PIL import Image

_TAIL = 4096  # bytes: the ends of two photos differ nearly always
SHOWN = 10


def of_files(paths: list[pathlib.Path]) -> list[list[int]]:
    """Groups of positions, each rising, of image files with the same bytes.

    Left out are links that lead nowhere and what no decoder knows, such as an error page that was saved
    twice. Raises OSError, which names the file, where one cannot be read.
    """
    sizes = [path.stat().st_size if path.exists() else 0 for path in paths]
    groups = _split(range(len(paths)), lambda i: sizes[i])
    groups = [group for group in groups if sizes[group[0]]]
    groups = [part for group in groups for part in _split(group, lambda i: _tail(paths[i]))]
    groups = [part for group in groups for part in _split(group, lambda i: _digest(paths[i]))]
    return sorted(group for group in groups if _is_image(paths[group[0]]))


def of_rows(images: np.ndarray) -> list[list[int]]:
    """Groups of positions, each rising, of equal images of an array [N,H,W,...]; blank ones are left out."""
    middle = images.shape[1] // 2
    groups = _split(range(len(images)), lambda i: np.asarray(images[i, middle]).tobytes())
    groups = [part for group in groups for part in _split(group, lambda i: _sha256(images[i]))]
    return sorted(group for group in groups if images[group[0]].min() < images[group[0]].max())


def pairs_across(groups: list[list[int]], splits: list[str]) -> list[tuple[int, int]]:
    """One pair of positions for each group that lies in several splits; `splits` has the split of each."""
    pairs = []
    for first, *rest in groups:
        other = next((i for i in rest if splits[i] != splits[first]), None)
        if other is not None:
            pairs.append((first, other))
    return pairs


def listed(pairs: Iterable[tuple]) -> str:
    """Pairs of names, a line each, the first ten."""
    pairs = list(pairs)
    more = f"\n  ... and {len(pairs) - SHOWN} more" if len(pairs) > SHOWN else ""
    return "".join(f"\n  {one} = {other}" for one, other in pairs[:SHOWN]) + more


def _split(positions: Iterable[int], key: Callable[[int], object]) -> list[list[int]]:
    """The groups of positions with one key, those of a single one left out."""
    groups = collections.defaultdict(list)
    for i in positions:
        groups[key(i)].append(i)
    return [group for group in groups.values() if len(group) > 1]


def _tail(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        file.seek(-min(_TAIL, os.fstat(file.fileno()).st_size), os.SEEK_END)
        return file.read()


def _digest(path: pathlib.Path) -> bytes:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _sha256(image: np.ndarray) -> bytes:
    return hashlib.sha256(np.asarray(image).tobytes()).digest()


def _is_image(path: pathlib.Path) -> bool:
    try:
        with Image.open(path):
            return True
    except Exception:  # Pillow's decoders raise a dozen types
        return False
