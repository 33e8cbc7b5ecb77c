"""Which folders are splits, and whether the folder that was given is the right one."""

import os
import pathlib

from jsae.data import drawn_splits
from jsae.data.drawn_splits import SPLITS
from jsae.data.image_folder import disk


def given_splits(folder: pathlib.Path, left: disk.LeftOut) -> dict[str, pathlib.Path]:
    """{split: its folder}, in the order of SPLITS; {} where the folders are classes.

    Raises FolderError for splits beside other images, two folders for one split, splits without train or
    behind a link that leads nowhere, and a folder that is one level too high.
    """
    found = disk.folders(folder)
    there = drawn_splits.named(path.name for path in found)
    there = dict(sorted(there.items(), key=lambda item: SPLITS.index(item[1])))
    others = [path for path in found if path.name not in there and disk.holds_images(path)]
    nested = any(disk.folders(path) for path in found if path.name in there)
    if not there or (others and not nested):  # no split, or folders of images that happen to be called so
        _check_level(folder, left)
        return {}
    if others:
        raise disk.FolderError(
            f"{folder}: {', '.join(there)} look like splits, but "
            f"{disk.listed(path.name for path in others)} lie beside them; expected either\n{disk.LAYOUTS}"
        )
    try:
        drawn_splits.check_names(there)
    except ValueError as error:
        raise disk.FolderError(f"{folder}: {error}") from None
    if "train" not in there.values():
        raise disk.FolderError(f"{folder}: holds {', '.join(there)} but no train; expected\n{disk.LAYOUTS}")
    for path in found:
        if path.name in there and disk.leads_nowhere(path):
            raise disk.FolderError(f"{path} is a link that leads nowhere ({os.readlink(path)})")
    beside = [path.name for path in found if path.name not in there]
    if beside:
        left.notes.append(
            f"{folder}: beside {', '.join(there)} nothing else holds images: {disk.listed(beside)}"
        )
    for path, _ in disk.entries(folder):
        left.hidden(path.name)
    by_split = {there[path.name]: path for path in found if path.name in there}
    return {split: by_split[split] for split in SPLITS if split in by_split}


def _check_level(folder: pathlib.Path, left: disk.LeftOut) -> None:
    """Raise FolderError if splits or classes lie further down; note it if splits lie beside the folder."""
    at, inside = folder, [path for path in disk.folders(folder) if disk.holds_images(path)]
    while True:
        for path in inside:
            if (path / "variants.txt").exists() or (path / "data" / "variants.txt").exists():
                raise disk.FolderError(
                    f"{folder} holds the FGVC-Aircraft layout; give config.data.dir={path}"
                )
            below = disk.folders(path)
            named = drawn_splits.named(sub.name for sub in below)
            if "train" in named.values() and any(disk.folders(sub) for sub in below if sub.name in named):
                raise disk.FolderError(f"{folder} holds one folder with splits; give config.data.dir={path}")
        if len(inside) != 1 or any(disk.is_image(path.name) for path, _ in disk.entries(inside[0])):
            break
        at, inside = inside[0], [path for path in disk.folders(inside[0]) if disk.holds_images(path)]
    if at != folder and len(inside) > 1:
        raise disk.FolderError(
            f"{folder}: all images lie in one folder, {at}, which holds "
            f"{disk.listed(path.name for path in inside)}. If these are the classes, give "
            f"config.data.dir={at}; if they are one class, join them in one folder"
        )
    if drawn_splits.named([folder.name]):
        try:
            beside = drawn_splits.named(path.name for path in disk.folders(folder.parent) if path != folder)
        except disk.FolderError:
            return  # no business of ours
        if beside:
            left.notes.append(
                f"{folder} looks like one split of {folder.parent}, which holds {disk.listed(beside)} as "
                "well; splits are drawn from it alone"
            )
