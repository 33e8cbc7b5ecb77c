"""The images of a folder of class folders, found and checked.

    DIR/CLASS/...                      splits are drawn by class (drawn_splits.py)
    DIR/{train,val,test}/CLASS/...     as given; a missing val or test is drawn from train

A file's class is its folder directly below DIR, or below the split; folders inside it may be nested at will.
One answer per case:

    file suffix is one of SUFFIXES, any case    an image; whether its content is one, decode.py finds out
    any other file (Thumbs.db, labels.csv)      left out and counted
    names that begin with a dot, __MACOSX       left out, with all below them
    images outside a class folder               left out with a warning
    links                                       followed, each folder once
    names of classes                            Unicode NFC, blanks joined; two folders of one name: an error
    a class folder without images               stays a class, with a warning
    train together with other folders           an error, unless train holds no folders: then it is a class

An id is the path below DIR with "/", so one file name in two classes makes two ids.
"""

import dataclasses
import difflib
import os
import pathlib
import unicodedata

from jsae.data import drawn_splits
from jsae.data.drawn_splits import SPLITS

SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".gif",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".ppm",
    ".pgm",
)
_SHOWN = 10

LAYOUTS = """\
  DIR/CLASS/IMAGE               one folder a class; train, val and test are drawn (data.val_share, test_share)
  DIR/{train,val,test}/CLASS/IMAGE
  a folder in FGVC-Aircraft layout (variants.txt, images_variant_train.txt, ... and images/)"""


class FolderError(ValueError):
    """The folder cannot be read as a data set; the message names what is wrong in it."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """One image: its id (path below the folder), file and label."""

    id: str
    path: pathlib.Path
    label: int


@dataclasses.dataclass(frozen=True)
class Listing:
    """A checked folder.

    Attributes:
      folder: DIR.
      class_names: sorted.
      photos: split -> its images, sorted by id.
      drawn: the splits that were drawn.
      notes: what was drawn and what was left out, a line each.
    """

    folder: pathlib.Path
    class_names: tuple[str, ...]
    photos: dict[str, tuple[Photo, ...]]
    drawn: tuple[str, ...]
    notes: tuple[str, ...]


def read_folder(folder, *, seed: int, val_share: float, test_share: float) -> Listing:
    """Find the images of `folder`.

    Args:
      folder: DIR of the layouts above.
      seed: of the drawn splits.
      val_share, test_share: of each class, where the split is drawn; ignored where it exists.

    Raises FolderError for a folder without images, a class of val or test that train does not have, splits
    mixed with other folders, and names that cannot be stored; ValueError for shares out of range.
    """
    folder = pathlib.Path(folder)
    found = _folders(folder)
    given = _given_splits(folder, found)
    missing = tuple(split for split in SPLITS[1:] if split not in given)
    shares = {s: share for s, share in (("val", val_share), ("test", test_share)) if s in missing}
    drawn_splits.check(shares)
    notes = []
    where = {split: folder / split for split in given} or {"train": folder}
    classes = {split: _classes(path, notes) for split, path in where.items()}
    names = tuple(sorted(classes["train"]))
    _check_classes(folder, classes, names)
    photos = {split: _photos(folder, classes[split], names) for split in classes}
    if missing:
        train = photos["train"]
        ours = drawn_splits.draw(
            [photo.id for photo in train],
            [names[photo.label] for photo in train],
            seed=seed,
            shares=shares,
        )
        for split in ("train", *missing):
            photos[split] = [photo for photo, mine in zip(train, ours, strict=True) if mine == split]
        counts = ", ".join(f"{len(photos[split])} {split}" for split in SPLITS)
        notes.append(f"{folder}: {' and '.join(missing)} drawn from all images with seed {seed}: {counts}")
    for split in SPLITS:
        if not photos[split]:
            few = "; no class has enough images to draw it from" if split in missing else ""
            raise FolderError(f"{folder}: split {split!r} has no image{few}")
    by_id = {split: tuple(sorted(photos[split], key=lambda photo: photo.id)) for split in SPLITS}
    return Listing(folder, names, by_id, missing, tuple(notes))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _is_image(name: str) -> bool:
    return not _hidden(name) and name.lower().endswith(SUFFIXES)


def _folders(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.iterdir() if not _hidden(path.name) and path.is_dir())


def _given_splits(folder: pathlib.Path, found: list[pathlib.Path]) -> tuple[str, ...]:
    """The split folders that are there, () where the folders are classes."""
    there = tuple(split for split in SPLITS if any(path.name == split for path in found))
    others = [path.name for path in found if path.name not in SPLITS]
    if len(found) == 1 and not there and any(path.name == "train" for path in _folders(found[0])):
        raise FolderError(f"{folder} holds one folder with splits; give config.data.dir={found[0]}")
    if not there or not any(_folders(folder / split) for split in there):
        return ()  # no split, or folders of images that happen to be called so
    if others:
        raise FolderError(
            f"{folder}: {', '.join(there)} look like splits, but {_listed(others)} lie beside them; "
            f"expected either\n{LAYOUTS}"
        )
    if "train" not in there:
        raise FolderError(f"{folder}: holds {', '.join(there)} but no train; expected\n{LAYOUTS}")
    return there


def _classes(parent: pathlib.Path, notes: list[str]) -> dict[str, list[pathlib.Path]]:
    """{class name: image files} of the class folders in `parent`."""
    folders, found = {}, {}
    for path in _folders(parent):
        name = _class_name(path)
        if name in folders:
            raise FolderError(
                f"{parent}: folders {folders[name]!r} and {path.name!r} have one class name, {name!r}"
            )
        folders[name] = path.name
        found[name] = _images(path, notes)
    loose = sorted(path.name for path in parent.iterdir() if _is_image(path.name) and path.is_file())
    if not any(found.values()):
        what = "images, but none in a class folder" if loose else "no images"
        raise FolderError(f"{parent} holds {what} ({', '.join(SUFFIXES)}); config.data.dir can be\n{LAYOUTS}")
    if loose:
        notes.append(
            f"{parent}: {len(loose)} images lie outside the class folders, left out: {_listed(loose)}"
        )
    return found


def _class_name(path: pathlib.Path) -> str:
    name = " ".join(unicodedata.normalize("NFC", path.name).split())
    if not name:
        raise FolderError(f"{path.parent}: a folder is called {path.name!r}; a class needs a name")
    return name


def _images(folder: pathlib.Path, notes: list[str]) -> list[pathlib.Path]:
    """All image files below a class folder."""
    found, other, seen = [], [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:  # a link back up
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _hidden(name))
        found += [pathlib.Path(parent, name) for name in files if _is_image(name)]
        other += [name for name in files if not _hidden(name) and not _is_image(name)]
    if other:
        notes.append(f"{folder}: {len(other)} files are no images, left out: {_listed(other)}")
    return found


def _check_classes(folder: pathlib.Path, classes: dict, names: tuple[str, ...]) -> None:
    """Every class of val and test is one of train."""
    problems = []
    for split in classes:
        for name in sorted(classes[split].keys() - set(names)):
            near = difflib.get_close_matches(name, names, n=1)
            hint = f"; nearest is {near[0]!r}" if near else ""
            problems.append(f"{split}/{name} ({len(classes[split][name])} images){hint}")
    if problems:
        raise FolderError(
            f"{folder}: {len(problems)} classes are not in train, which has {_listed(map(repr, names))}:"
            + "".join(f"\n  {text}" for text in problems[:_SHOWN])
        )


def _photos(folder: pathlib.Path, classes: dict, names: tuple[str, ...]) -> list[Photo]:
    label = {name: i for i, name in enumerate(names)}
    photos = []
    for name, paths in classes.items():
        for path in paths:
            id_ = path.relative_to(folder).as_posix()
            try:
                id_.encode()
            except UnicodeEncodeError:
                raise FolderError(
                    f"{os.fsencode(path)!r}: the file name is not UTF-8; rename the file"
                ) from None
            photos.append(Photo(id_, path, label[name]))
    return photos


def _listed(names) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (f", ... ({len(names)})" if len(names) > _SHOWN else "")
