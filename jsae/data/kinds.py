"""What differs between the kinds of data set: where images come from, and what their records hold.

A `Kind` is made before anything is prepared: it has read and checked the lists (cheap), so that wrong
input ends a run at once, and knows what its pixels depend on. `open` then prepares the TFDS data and gives
one random-access source a split. cache.py treats all kinds alike.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import logging
import pathlib
import shutil
import sys
from collections.abc import Callable

import numpy as np
import tensorflow_datasets as tfds

from jsae.data import arrays, locks
from jsae.data.fgvc_aircraft import FgvcAircraft, FgvcAircraftConfig, lists, source
from jsae.data.fgvc_aircraft.levels import parents
from jsae.data.image_folder import ImageFolder, ImageFolderConfig, files
from jsae.data.synthetic_aircraft import drawing
from jsae.data.synthetic_aircraft.builder import SyntheticAircraft, SyntheticAircraftConfig
from jsae.runtime import logs

SPLITS = ("train", "val", "test")
_ENCODED = {"image": tfds.decode.SkipDecoding()}  # bytes; decode.py makes pixels of them


@dataclasses.dataclass(frozen=True)
class Record:
    """One example: encoded bytes, or a function that makes uint8 [h,w,3] of what is no image file; labels per
    level; box (1-based) and masks (uint16 [S,S] bits) or None; what it is known by, None for the image."""

    id: str
    image: bytes | Callable[[], np.ndarray]
    labels: tuple[int, ...]
    box: tuple[int, ...] | None = None
    masks: object = None
    content: bytes | None = None


@dataclasses.dataclass(frozen=True)
class Kind:
    """A data set that is ready to be prepared.

    Attributes:
      identity: JSON values that its records depend on; part of the cache's key.
      class_names: label level -> names; the first level is the default one.
      part_names: of the masks' bits, () without masks.
      banner_px, fit: how its images are decoded.
      crop: "box" where images are cut to their box first, else "none".
      has_boxes: its records carry boxes.
      has_levels: config.data.label_level chooses among class_names; else there is one level.
      parents: level -> coarser level -> the coarser class of each class, int32; -1: a class without photos.
      open: prepares and returns {split: random-access source}.
      parse: makes a Record of a source's item.
      where: id -> what an error message calls the image.
    """

    identity: dict
    class_names: dict[str, tuple[str, ...]]
    part_names: tuple[str, ...]
    banner_px: int
    fit: str
    has_boxes: bool
    open: Callable[[], dict]
    parse: Callable[[dict], Record]
    where: Callable[[str], str]
    crop: str = "none"
    has_levels: bool = False
    parents: dict = dataclasses.field(default_factory=dict)


def _fgvc_aircraft(*, directory, banner_px, fit, cache_dir: pathlib.Path, crop="none", **_) -> Kind:
    """A folder or archive in FGVC layout. Its cache is of these lists and files."""
    read = lists.read_lists(source.resolve(directory, cache_dir))
    for level, names in read.class_names.items():
        _warn_of_empty_classes(level, names, (photo.labels[level] for photo in read.photos["train"]))
    digest = hashlib.sha256()
    for path in sorted(read.folder.glob("*.txt")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    paths = {photo.id: photo.path for photos in read.photos.values() for photo in photos}
    for id_, path in sorted(paths.items()):
        digest.update(f"{id_}\0{path.name}\0{stamp(path)}\n".encode())
    identity = {"folder": str(read.folder), "content": digest.hexdigest()}
    levels = tuple(read.class_names)

    def open_():
        name = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:16]
        config = FgvcAircraftConfig(name=name, description="A local folder.", folder=str(read.folder))
        return _prepare(FgvcAircraft, config, cache_dir)

    def parse(item) -> Record:
        box = tuple(int(corner) for corner in item["box"]) if read.has_boxes else None
        labels = tuple(int(item[level]) for level in levels)
        return Record(id=item["id"].decode(), image=item["image"], labels=labels, box=box)

    return Kind(
        identity=identity,
        class_names=read.class_names,
        part_names=(),
        banner_px=banner_px,
        fit=fit,
        has_boxes=read.has_boxes,
        open=open_,
        parse=parse,
        where=lambda id_: str(paths[id_]),
        crop=crop,
        has_levels=True,
        parents=parents(read),
    )


def _warn_of_empty_classes(level: str, names, train_labels) -> None:
    """A class without training photos stays a class, since labels are positions in the list."""
    counts = collections.Counter(train_labels)
    empty = [name for label, name in enumerate(names) if not counts[label]]
    if empty:
        shown = ", ".join(repr(name) for name in empty[:10]) + (", ..." if len(empty) > 10 else "")
        logs.get_logger().warning(
            "%d of %d classes (%s) have no training photo: %s", len(empty), len(names), level, shown
        )


def _image_folder(*, directory, seed, shares, banner_px, fit, cache_dir: pathlib.Path, **more) -> Kind:
    """A folder of class folders; one in FGVC layout is read as fgvc_aircraft."""
    folder = pathlib.Path(directory).expanduser() if directory else None
    if folder is None or not folder.is_dir():
        what = f"config.data.dir={directory!r} is no folder" if directory else "config.data.dir is empty"
        raise FileNotFoundError(f"{what}, but data.kind=image_folder needs one. It can be\n{files.LAYOUTS}")
    folder = folder.resolve()
    if source.has_lists(folder):
        return _fgvc_aircraft(directory=folder, banner_px=banner_px, fit=fit, cache_dir=cache_dir, **more)
    how = {"seed": seed, "val_share": shares["val"], "test_share": shares["test"]}
    listing = files.read_folder(folder, **how)
    for text in listing.notes:
        logs.note(text)
    _warn_of_empty_classes("class", listing.class_names, (photo.label for photo in listing.photos["train"]))
    paths = {photo.id: photo.path for photos in listing.photos.values() for photo in photos}
    digest = hashlib.sha256(repr(listing.class_names).encode())
    for split, photos in listing.photos.items():
        for photo in photos:
            digest.update(f"{split}\0{photo.id}\0{photo.label}\0{stamp(photo.path)}\n".encode())
    identity = {"folder": str(folder), "content": digest.hexdigest()}

    def open_():
        name = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()[:16]
        config = ImageFolderConfig(name=name, description="A local folder.", folder=str(folder), **how)
        return _prepare(ImageFolder, config, cache_dir)

    def parse(item) -> Record:
        return Record(id=item["id"].decode(), image=item["image"], labels=(int(item["label"]),))

    return Kind(
        identity=identity,
        class_names={"class": listing.class_names},
        part_names=(),
        banner_px=banner_px,
        fit=fit,
        has_boxes=False,
        open=open_,
        parse=parse,
        where=lambda id_: str(paths[id_]),
    )


def _arrays(*, directory, seed, shares, banner_px, fit, **_) -> Kind:
    """Images of an .npy or .npz file; their identity is the files' sizes and times, and the drawn splits."""
    read = arrays.read(directory, seed=seed, shares=shares)
    if read.images is None:
        raise ValueError(
            f"{read.path} holds activations, not images, so there is nothing to classify. "
            "Set config.activations.site=arrays to analyse them as they are (configs/arrays.py)"
        )
    row_of = {read.ids[row]: row for rows in read.rows.values() for row in rows.tolist()}

    def parse(row) -> Record:
        return Record(
            id=read.ids[row], image=functools.partial(read.image, row), labels=(int(read.labels[row]),)
        )

    return Kind(
        identity=read.identity,
        class_names={"class": read.class_names},
        part_names=(),
        banner_px=banner_px,
        fit=fit,
        has_boxes=False,
        open=lambda: {split: rows.tolist() for split, rows in read.rows.items()},
        parse=parse,
        where=lambda id_: f"{read.path}: images[{row_of[id_]}]",
    )


def _synthetic_aircraft(*, seed, sizes, image_size, cache_dir: pathlib.Path, **_) -> Kind:
    """The drawn set: drawn at the size it is used in, so it is neither cut nor resized.

    An image is what this code draws, not its last bits, which the processor has a part in: another brush is
    another data set.
    """
    code = hashlib.sha256()
    for path in sorted(pathlib.Path(drawing.__file__).parent.glob("*.py")):
        code.update(path.read_bytes())
    drawn = {f"n_{split}": n for split, n in sizes.items()} | {"seed": seed, "image_size": image_size}
    config = SyntheticAircraftConfig(**drawn, description="Drawn here.")
    config.name += f"-{code.hexdigest()[:8]}"
    names = tuple(variant.name for variant in drawing.VARIANTS)

    def open_():
        return _prepare(SyntheticAircraft, config, cache_dir)

    def parse(item) -> Record:
        labels = (int(item["label"]),)
        id_, masks = item["id"].decode(), item["part_masks"]
        return Record(
            id=id_,
            image=item["image"],
            labels=labels,
            masks=masks,
            content=f"{drawn} {code.hexdigest()} {id_}".encode(),
        )

    return Kind(
        identity=drawn | {"code": code.hexdigest()},
        class_names={"variant": names},
        part_names=tuple(drawing.PART_NAMES),
        banner_px=0,
        fit="squash",
        has_boxes=False,
        open=open_,
        parse=parse,
        where=lambda id_: f"drawing {id_}",
    )


def stamp(path: pathlib.Path) -> str:
    """Size and times of a file: another one in its place has others, even where its own time was kept."""
    stat = path.stat() if path.exists() else path.lstat()  # a link to nowhere
    return f"{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"


def _prepare(builder_class, config, cache_dir: pathlib.Path) -> dict:
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


KINDS = {
    "synthetic_aircraft": _synthetic_aircraft,
    "fgvc_aircraft": _fgvc_aircraft,
    "image_folder": _image_folder,
    "arrays": _arrays,
}
