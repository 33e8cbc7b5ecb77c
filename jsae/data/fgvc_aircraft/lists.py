"""The lists of a folder in FGVC-Aircraft layout, read and checked.

    variants.txt  families.txt  manufacturers.txt      class names, one per line; their order is the label
    images_variant_train.txt  images_family_val.txt .. "ID NAME" per line, split at the first space only
    images_train.txt  images_val.txt  images_test.txt  ids; optional, must then agree with the above
    images_box.txt                                     "ID XMIN YMIN XMAX YMAX", 1-based; optional
    images/ID.jpg

The same bytes under two ids are a warning, also in two splits, since official splits stay as they are. Hidden
files and those of systems (._0034309.jpg) are no images, and a link that leads nowhere is a damaged one.

Ids are strings (they have leading zeros) and names are never used as paths (they hold slashes). Every
defect found is reported at once, with file and line: the first ten and how many there are.
"""

import dataclasses
import difflib
import os
import pathlib

from jsae.data import copies
from jsae.data.drawn_splits import SPLITS
from jsae.runtime import logs

LEVELS = {"variant": "variants.txt", "family": "families.txt", "manufacturer": "manufacturers.txt"}
SUFFIXES = (".jpg", ".jpeg", ".png")  # what may follow the id of an image file, any case
_SHOWN = 10


class ListError(ValueError):
    """The lists of a data folder contradict each other or its images."""


@dataclasses.dataclass(frozen=True)
class Photo:
    """One image: its id, file, label per level and box (xmin, ymin, xmax, ymax as listed) or None."""

    id: str
    path: pathlib.Path
    labels: dict[str, int]
    box: tuple[int, int, int, int] | None


@dataclasses.dataclass(frozen=True)
class Lists:
    """A checked folder: class names per level, photos per split sorted by id."""

    folder: pathlib.Path
    class_names: dict[str, tuple[str, ...]]
    photos: dict[str, tuple[Photo, ...]]
    has_boxes: bool


def read_lists(folder: str | os.PathLike) -> Lists:
    """Read the lists of `folder` (the one that holds variants.txt and images/).

    Levels whose class list is absent are left out, except variant, which is required. Raises ListError
    for missing lists, unknown classes, ids without image, ids in two splits, and lists that disagree.
    """
    folder = pathlib.Path(folder)
    problems = _Problems(folder)
    _require_lists(folder)
    levels = [level for level, name in LEVELS.items() if (folder / name).exists()]
    class_names = {level: _read_classes(folder / LEVELS[level], problems) for level in levels}
    labels = {level: _read_labels(folder, level, class_names[level], problems) for level in levels}
    boxes = _read_boxes(folder / "images_box.txt", problems)
    files = _image_files(folder / "images")

    _check_splits(labels["variant"], problems)
    photos = {}
    for split in SPLITS:
        where = labels["variant"][split]
        for level in levels[1:]:
            _check_same_ids(f"images_{level}_{split}.txt", labels[level][split], split, where, problems)
        if (folder / f"images_{split}.txt").exists():
            ids = {line: (number, None) for number, line in _lines(folder / f"images_{split}.txt")}
            _check_same_ids(f"images_{split}.txt", ids, split, where, problems)
        for id_, (number, _) in where.items():
            listed = f"images_variant_{split}.txt:{number}"
            if id_ not in files:
                problems.add(listed, f"id {id_!r} has no image; expected images/{id_}.jpg")
            if boxes is not None and id_ not in boxes:
                problems.add(listed, f"id {id_!r} has no line in images_box.txt")
    problems.raise_any()
    for split in SPLITS:
        photos[split] = tuple(
            Photo(
                id=id_,
                path=files[id_],
                labels={level: labels[level][split][id_][1] for level in levels},
                box=None if boxes is None else boxes[id_],
            )
            for id_ in sorted(labels["variant"][split])
        )
    _note_copies(folder, photos)
    return Lists(folder, class_names, photos, boxes is not None)


def _note_copies(folder: pathlib.Path, photos: dict) -> None:
    """Warn of photos that are listed under several ids, first of those in several splits."""
    flat = [(split, photo) for split in SPLITS for photo in photos[split]]
    alike = copies.of_files([photo.path for _, photo in flat])
    across = copies.pairs_across(alike, [split for split, _ in flat])
    if alike:
        names = [f"{photo.id} ({split})" for split, photo in flat]
        shown = across or [(group[0], group[1]) for group in alike]
        pairs = copies.listed((names[i], names[j]) for i, j in shown)
        logs.note(
            f"{folder}: {len(alike)} photos have several ids, {len(across)} of them in several splits, byte "
            f"for byte; scores on these are of what was learnt:{pairs}"
        )


class _Problems:
    """Collects defects, so that one run shows them all."""

    def __init__(self, folder: pathlib.Path):
        self._folder, self._found = folder, []

    def add(self, where: str, what: str) -> None:
        self._found.append(f"{where}: {what}")

    def raise_any(self) -> None:
        if not self._found:
            return
        count = len(self._found)
        shown = "".join(f"\n  {text}" for text in self._found[:_SHOWN])
        more = f"\n  ... and {count - _SHOWN} more" if count > _SHOWN else ""
        noun = "defect" if count == 1 else "defects"
        raise ListError(f"{count} {noun} in the lists of {self._folder}:{shown}{more}")


def _require_lists(folder: pathlib.Path) -> None:
    """Raise ListError naming every list that is absent and the splits that are there."""
    needed = [LEVELS["variant"]]
    for level, name in LEVELS.items():
        if level == "variant" or (folder / name).exists():
            needed += [f"images_{level}_{split}.txt" for split in SPLITS]
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        there = [split for split in SPLITS if (folder / f"images_variant_{split}.txt").exists()]
        raise ListError(
            f"{folder}: missing {', '.join(missing)}; splits that are there: {', '.join(there) or 'none'}"
        )
    if not (folder / "images").is_dir():
        raise ListError(f"{folder}: no folder images/ with the photos that the lists name")


def _lines(path: pathlib.Path) -> list[tuple[int, str]]:
    """Numbered lines, stripped, empty ones left out; the file must be UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ListError(f"{path}:{line}: byte {error.object[error.start]:#x} is not UTF-8") from None
    # split at newlines only: splitlines() would also break names at exotic separators
    numbered = enumerate((line.strip() for line in text.split("\n")), start=1)
    return [(number, line) for number, line in numbered if line]


def _read_classes(path: pathlib.Path, problems: _Problems) -> tuple[str, ...]:
    first = {}
    for number, name in _lines(path):
        if name in first:
            problems.add(f"{path.name}:{number}", f"class {name!r} is already on line {first[name]}")
        first.setdefault(name, number)
    if not first:
        problems.add(path.name, "holds no class name")
    return tuple(first)


def _read_labels(folder: pathlib.Path, level: str, names: tuple[str, ...], problems: _Problems) -> dict:
    """{split: {id: (line number, label)}} of one level."""
    index = {name: label for label, name in enumerate(names)}
    labels = {}
    for split in SPLITS:
        file = f"images_{level}_{split}.txt"
        labels[split] = {}
        for number, line in _lines(folder / file):
            where = f"{file}:{number}"
            id_, _, name = line.partition(" ")
            name = name.strip()
            if not _is_plain(id_):
                problems.add(where, f"id {id_!r} is not a plain file name")
            elif not name:
                problems.add(where, f"{line!r} has no class; expected 'ID NAME'")
            elif id_ in labels[split]:
                problems.add(where, f"id {id_!r} is already on line {labels[split][id_][0]}")
            elif name not in index:
                labels[split][id_] = (number, None)  # known, so that other checks do not report it again
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"; nearest is {near[0]!r}" if near else ""
                problems.add(
                    where, f"id {id_!r}: class {name!r} is not one of {len(names)} in {LEVELS[level]}{hint}"
                )
            else:
                labels[split][id_] = (number, index[name])
        if not labels[split]:
            problems.add(file, "lists no usable image; every split needs at least one")
    return labels


def _is_plain(id_: str) -> bool:
    return bool(id_) and id_ not in (".", "..") and not any(sign in id_ for sign in "/\\\0")


def _read_boxes(path: pathlib.Path, problems: _Problems) -> dict | None:
    """{id: box}; ids of no split are allowed, since the box list covers all of them."""
    if not path.exists():
        return None
    boxes = {}
    for number, line in _lines(path):
        id_, *corners = line.split()
        try:
            xmin, ymin, xmax, ymax = (int(corner) for corner in corners)
        except ValueError:
            problems.add(f"{path.name}:{number}", f"{line!r}; expected 'ID XMIN YMIN XMAX YMAX'")
            continue
        boxes[id_] = (xmin, ymin, xmax, ymax)
    return boxes


def _image_files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """{id: file}; of several files with one id the one first in SUFFIXES."""
    files = {}
    for path in folder.iterdir():
        if path.suffix.lower() not in SUFFIXES:
            continue
        other = files.get(path.stem)
        if other is None or _rank(path) < _rank(other):
            files[path.stem] = path
    return files


def _rank(path: pathlib.Path) -> tuple[int, str]:
    return SUFFIXES.index(path.suffix.lower()), path.name


def _check_splits(variant: dict, problems: _Problems) -> None:
    """No id in two splits: a test image that was trained on would flatter every number."""
    first = {}
    for split in SPLITS:
        for id_, (number, _) in variant[split].items():
            where = f"images_variant_{split}.txt:{number}"
            if id_ in first:
                problems.add(where, f"id {id_!r} is also in {first[id_]}; an id belongs to one split")
            first.setdefault(id_, where)


def _check_same_ids(file: str, ids: dict, split: str, variant: dict, problems: _Problems) -> None:
    for id_, (number, _) in ids.items():
        if id_ not in variant:
            problems.add(f"{file}:{number}", f"unknown id {id_!r}; it is not in images_variant_{split}.txt")
    for id_, (number, _) in variant.items():
        if id_ not in ids:
            problems.add(f"images_variant_{split}.txt:{number}", f"id {id_!r} is missing from {file}")
