"""What a data set is to the rest of this room: a `Source`, made from a `Request`, that gives `Record`s.

A source is made before anything is prepared: it has read and checked the lists (cheap), so that wrong input
ends a run at once, and knows what its pixels depend on. `open` then prepares the data and gives one
random-access sequence per split. cache.py treats all sources alike. A new kind of data is one file with a
function (Request) -> Source, and one line in kinds.py.
"""

import collections
import contextlib
import dataclasses
import hashlib
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from jsae.data import locks
from jsae.data.drawn_splits import SPLITS
from jsae.runtime import logs

_ENCODED = {"image": tfds.decode.SkipDecoding()}  # bytes; decode.py makes pixels of them


@dataclasses.dataclass(frozen=True)
class Request:
    """What `cache.load_splits` was asked for, as far as a source decides it.

    Attributes:
      directory: config.data.dir.
      seed: of a drawn set, or of splits that are drawn.
      sizes: split -> images to draw, of a drawn set.
      shares: split -> share of each class, where splits are drawn.
      image_size: side of the square images.
      banner_px, fit, crop: how photos are decoded.
      cache_dir: where archives are unpacked and TFDS data are prepared.
      tied: of a drawn set, what gives the class away (jsae.data.tied_sky).
    """

    directory: str
    image_size: int
    cache_dir: pathlib.Path
    seed: int = 0
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    banner_px: int = 0
    fit: str = "squash"
    crop: str = "none"
    tied: str = ""


@dataclasses.dataclass(frozen=True)
class Record:
    """One example.

    Attributes:
      id: its name, unique in its split.
      image: encoded bytes, or a function that makes uint8 [h,w,3] of what is no image file.
      labels: class index per level.
      box: (x0, y0, x1, y1), 1-based, or None.
      masks: uint16 [S,S] of bits (`cache.Split`), or None.
      content: what it is known by; None for the image itself.
    """

    id: str
    image: bytes | Callable[[], np.ndarray]
    labels: tuple[int, ...]
    box: tuple[int, ...] | None = None
    masks: np.ndarray | None = None
    content: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """A data set that is ready to be prepared.

    Attributes:
      identity: JSON values that its records depend on; part of the cache's key.
      class_names: label level -> names; the first level is the default one.
      open: prepares and returns {split: random-access sequence of items}.
      parse: makes a Record of such an item.
      where: id -> what an error message calls the image.
      part_names: of the masks' bits, () without masks.
      banner_px, fit: how its images are decoded.
      crop: "box" where images are cut to their box first, else "none".
      has_boxes: its records carry boxes.
      has_levels: config.data.label_level chooses among class_names; else there is one level.
      parents: level -> coarser level -> the coarser class of each class, int32; -1: a class without photos.
    """

    identity: dict[str, Any]
    class_names: dict[str, tuple[str, ...]]
    open: Callable[[], dict[str, Sequence]]
    parse: Callable[[Any], Record]
    where: Callable[[str], str]
    part_names: tuple[str, ...] = ()
    banner_px: int = 0
    fit: str = "squash"
    crop: str = "none"
    has_boxes: bool = False
    has_levels: bool = False
    parents: dict[str, dict[str, np.ndarray]] = dataclasses.field(default_factory=dict)


def stamp(path: pathlib.Path) -> str:
    """Size and times of a file: another one in its place has others, even where its own time was kept."""
    stat = path.stat() if path.exists() else path.lstat()  # a link to nowhere
    return f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"


def name_of(identity: dict[str, Any]) -> str:
    """The name under which TFDS keeps a data set of this identity."""
    return hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:16]


def warn_of_empty_classes(level: str, names: Sequence[str], train_labels: Iterable[int]) -> None:
    """Say which classes have no training photo; they stay classes, since labels are positions in the list."""
    counts = collections.Counter(train_labels)
    empty = [name for label, name in enumerate(names) if not counts[label]]
    if empty:
        shown = ", ".join(repr(name) for name in empty[:10]) + (", ..." if len(empty) > 10 else "")
        logs.get_logger().warning(
            "%d of %d classes (%s) have no training photo: %s", len(empty), len(names), level, shown
        )


def prepare(
    builder_class: type[tfds.core.GeneratorBasedBuilder],
    config: tfds.core.BuilderConfig,
    cache_dir: pathlib.Path,
) -> dict[str, Sequence]:
    """Write the ArrayRecord files of a data set, unless they are there: {split: random-access source}.

    TFDS's messages go to stderr: stdout belongs to results.
    """
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)  # TFDS warns of every config that it has not listed itself
    folder = cache_dir / "tfds"
    try:
        with locks.locked(folder / f".{config.name}.lock") as alone, contextlib.redirect_stdout(sys.stderr):
            builder = builder_class(config=config, data_dir=folder, file_format="array_record")
            if alone:
                for left in pathlib.Path(builder.data_dir).parent.glob("incomplete.*"):  # by a killed run
                    shutil.rmtree(left, ignore_errors=True)
            builder.download_and_prepare()
    finally:
        absl.setLevel(level)
    return {split: builder.as_data_source(split, decoders=_ENCODED) for split in SPLITS}
