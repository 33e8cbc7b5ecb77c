"""Paths as people type them, made absolute where they enter: the launch scripts and the public functions.

Only a path with :// is remote. A local one may be relative, begin with ~, end with a slash, hold blanks, #
or %, or lie on links. What comes out is absolute and means the same after an os.chdir.
"""

import os
from typing import Any

from etils import epath

PathLike = str | os.PathLike[str]

# The keys of a config that are paths; "" is none.
KEYS = (
    "data.dir",
    "data.cache_dir",
    "classifier.workdir",
    "classifier.pretrained",
    "activations.head",
    "analysis.embedding_workdir",
    "report.twin",
    "runtime.compile_cache",
)
WORDS = {"data.dir": ("download",)}  # what is no path in them
_CLOUDS = ("gs", "s3", "az", "hf")  # etils takes /gs/bucket for gs://bucket
_PATTERN = "[*?"  # orbax finds its files with a pattern that the folder's name is part of


def absolute(path: PathLike) -> str:
    """`path` without ~, relative parts and trailing slashes; one with :// only loses the slashes.

    Raises ValueError for an empty path.
    """
    text = os.fspath(path)
    if not text:
        raise ValueError("the path is empty")
    if "://" in text:
        scheme, _, rest = text.partition("://")
        return f"{scheme}://{rest.rstrip('/')}"
    text = os.path.abspath(os.path.expanduser(text)).replace("//", "/", 1)
    # The parent of the root is the root; etils takes only what comes straight behind the root for a cloud
    return f"/..{text}" if text.split("/")[1] in _CLOUDS else text


def resolve(path: PathLike) -> epath.Path:
    """`absolute` as an etils path, which it also is where it lies on gs:// and the like."""
    return epath.Path(absolute(path))


def is_remote(path: PathLike) -> bool:
    """Whether a path is not on a file system of this machine."""
    return "://" in os.fspath(path)


def same(one: PathLike, other: PathLike) -> bool:
    """Whether two paths lead to one place, over links too."""
    if is_remote(one) or is_remote(other):
        return absolute(one) == absolute(other)
    return os.path.realpath(absolute(one)) == os.path.realpath(absolute(other))


def workdir(path: PathLike) -> str:
    """`absolute` for a folder in which checkpoints are to lie.

    Raises ValueError for a name with one of [ * ?: checkpoints there could not be read again.
    """
    text = absolute(path)
    wrong = [sign for sign in _PATTERN if sign in text]
    if wrong:
        raise ValueError(
            f"--workdir={os.fspath(path)}: {' '.join(wrong)} cannot be part of a workdir's path, for "
            "checkpoints there would never be found again; take another name, for example with - or ="
        )
    return text


def of_config(config: Any) -> None:
    """Make the paths of a config absolute, in place."""
    for key in KEYS:
        section, name = key.split(".")
        value = config.get(section, {}).get(name)
        if value and value not in WORDS.get(key, ()):
            config[section][name] = absolute(value)
