"""The images of a folder of class folders, found and checked.

    DIR/CLASS/...                      splits are drawn by class (drawn_splits.py)
    DIR/{train,val,test}/CLASS/...     as given; a missing val or test is drawn from train

A file's class is its folder directly below DIR, or below the split; folders inside it may be nested at will.
One answer per case:

    file suffix is one of SUFFIXES, any case    an image; whether its content is one, decode.py finds out
    any other file (labels.csv)                 left out and counted
    hidden and system files and folders         left out with all below them, and counted (disk.py)
    images outside a class folder               left out with a warning
    links                                       followed, each folder once
    links that lead nowhere                     damaged images (data.on_bad_image); as a split an error
    names of classes                            Unicode NFC, blanks joined; two folders of one name: an error
    a class folder without images               stays a class, with a warning
    names of splits                             drawn_splits.WORDS, any case; two names of one split: an error
    train together with other folders           an error if those hold images, unless train holds no folders:
                                                then it is a class
    DIR one level too high                      an error that says which folder to give
    DIR is one of several splits                a warning: splits are drawn from it alone
    one file (same bytes) in two splits         an error that names both; where splits are drawn, copies stay
                                                together
    one file twice in a split, in two classes   a warning with their number and names
    a folder that cannot be read                an error that names it

An id is the path below DIR with "/", so one file name in two classes makes two ids.
"""

import dataclasses
import difflib
import os
import pathlib
import unicodedata

from jsae.data import copies, drawn_splits
from jsae.data.drawn_splits import SPLITS
from jsae.data.image_folder import disk, layout
from jsae.data.image_folder.disk import LAYOUTS, SUFFIXES, FolderError

_SHOWN = 10


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


def read_folder(folder: str | os.PathLike, *, seed: int, val_share: float, test_share: float) -> Listing:
    """Find the images of `folder`.

    Args:
      folder: DIR of the layouts above.
      seed: of the drawn splits.
      val_share, test_share: of each class, where the split is drawn; ignored where it exists.

    Raises FolderError for a folder without images, a class of val or test that train does not have, splits
    mixed with other folders, one image in two splits, and the other errors of the table above; ValueError for
    shares out of range; OSError for an image file that cannot be read.
    """
    folder = pathlib.Path(folder)
    left = disk.LeftOut(folder)
    where = layout.given_splits(folder, left)
    missing = tuple(split for split in SPLITS[1:] if split not in where) if where else SPLITS[1:]
    shares = {s: share for s, share in (("val", val_share), ("test", test_share)) if s in missing}
    drawn_splits.check(shares)
    classes = {split: _classes(path, left) for split, path in (where or {"train": folder}).items()}
    names = tuple(sorted(classes["train"]))
    _check_classes(folder, classes, names)
    found = {split: _photos(folder, classes[split], names) for split in classes}
    photos, alike = _check_copies(folder, found, left)
    splits = [split for split in found for _ in found[split]]
    if missing:
        train = len(found["train"])  # they come first
        splits[:train] = drawn_splits.draw(
            [photo.id for photo in photos[:train]],
            [names[photo.label] for photo in photos[:train]],
            seed=seed,
            shares=shares,
            copies=[group for group in alike if group[0] < train],
        )
    by_split = {s: [photo for photo, its in zip(photos, splits, strict=True) if its == s] for s in SPLITS}
    if missing:
        counts = ", ".join(f"{len(by_split[split])} {split}" for split in SPLITS)
        left.notes.append(
            f"{folder}: {' and '.join(missing)} drawn from all images with seed {seed}, damaged ones "
            f"included: {counts}"
        )
    for split in SPLITS:
        if not by_split[split]:
            few = "; no class has enough images to draw it from" if split in missing else ""
            raise FolderError(f"{folder}: split {split!r} has no image{few}")
    by_id = {split: tuple(sorted(by_split[split], key=lambda photo: photo.id)) for split in SPLITS}
    return Listing(folder, names, by_id, missing, (*left.notes, *left.counted()))


def _classes(parent: pathlib.Path, left: disk.LeftOut) -> dict[str, list[pathlib.Path]]:
    """{class name: image files} of the class folders in `parent`."""
    folders, found, loose = {}, {}, []
    for path, is_folder in disk.entries(parent):
        if left.hidden(path.name):
            continue
        if not is_folder:
            if disk.is_image(path.name):
                loose.append(path.name)
            continue
        name = _class_name(path)
        if name in folders:
            raise FolderError(
                f"{parent}: folders {folders[name]!r} and {path.name!r} have one class name, {name!r}"
            )
        folders[name] = path.name
        found[name] = [path] if disk.leads_nowhere(path) else list(disk.walk(path, left.hidden, left.other))
    if not any(found.values()):
        what = "images, but none in a class folder" if loose else "no images"
        raise FolderError(f"{parent} holds {what} ({', '.join(SUFFIXES)}); config.data.dir can be\n{LAYOUTS}")
    if loose:
        left.notes.append(
            f"{parent}: {len(loose)} images lie outside the class folders, left out: {disk.listed(loose)}"
        )
    return found


def _class_name(path: pathlib.Path) -> str:
    name = " ".join(unicodedata.normalize("NFC", path.name).split())
    if not name:
        raise FolderError(f"{path.parent}: a folder is called {path.name!r}; a class needs a name")
    return name


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
            f"{folder}: {len(problems)} classes are not in train, which has {disk.listed(map(repr, names))}:"
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


def _check_copies(
    folder: pathlib.Path, found: dict[str, list[Photo]], left: disk.LeftOut
) -> tuple[list[Photo], list[list[int]]]:
    """(all photos, split after split; groups of positions of the same bytes). Notes copies.

    Raises FolderError where they lie in two splits.
    """
    photos = [photo for split in found for photo in sorted(found[split], key=lambda photo: photo.id)]
    splits = [split for split in found for _ in found[split]]
    alike = copies.of_files([photo.path for photo in photos])
    across = copies.pairs_across(alike, splits)
    if across:
        pairs = copies.listed((photos[i].id, photos[j].id) for i, j in across)
        raise FolderError(
            f"{folder}: {len(across)} images lie in two splits, byte for byte; what is learnt from one would "
            f"be tested on the other. Remove one of each:{pairs}"
        )
    for what, differ in (("lie there twice or more", False), ("lie in two classes", True)):
        labels = [[photos[i].label for i in group] for group in alike]
        groups = [g for g, its in zip(alike, labels, strict=True) if (len(set(its)) > 1) == differ]
        if groups:
            pairs = copies.listed((photos[g[0]].id, photos[g[1]].id) for g in groups)
            left.notes.append(f"{folder}: {len(groups)} images {what}, byte for byte:{pairs}")
    return photos, alike
