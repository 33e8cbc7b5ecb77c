"""Which family a variant belongs to: the coarser class of every class, found from the photos' labels."""

import numpy as np

from jsae.data.fgvc_aircraft.lists import ListError, Lists, Photo


def parents(lists: Lists) -> dict[str, dict[str, np.ndarray]]:
    """{level: {coarser level: int32 [classes of level]}}, positions in the coarser level's class names.

    -1 for a class without photos. Levels go from variant to manufacturer, as far as the folder has lists.
    Raises ListError naming a class whose photos belong to two classes of a coarser level.
    """
    levels = list(lists.class_names)
    photos = [photo for split in lists.photos.values() for photo in split]
    labels = {level: np.array([photo.labels[level] for photo in photos], np.int32) for level in levels}
    return {
        fine: {coarse: _parent(lists, photos, labels, fine, coarse) for coarse in levels[i + 1 :]}
        for i, fine in enumerate(levels)
    }


def _parent(lists: Lists, photos: list[Photo], labels: dict, fine: str, coarse: str) -> np.ndarray:
    parent = np.full(len(lists.class_names[fine]), -1, np.int32)
    parent[labels[fine]] = labels[coarse]
    other = np.flatnonzero(parent[labels[fine]] != labels[coarse])
    if len(other):
        photo = photos[other[0]]
        label = photo.labels[fine]
        names = lists.class_names[coarse]
        raise ListError(
            f"{lists.folder}: {fine} {lists.class_names[fine][label]!r} belongs to two classes of {coarse}: "
            f"{names[photo.labels[coarse]]!r} (image {photo.id!r}) and {names[parent[label]]!r}"
        )
    return parent
