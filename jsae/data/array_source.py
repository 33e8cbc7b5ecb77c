"""Images of an .npy or .npz file as a `Source`."""

import functools

from jsae.data import arrays
from jsae.data.source import Record, Request, Source


def make(request: Request) -> Source:
    """The source of a file of images; its identity is the files' sizes and times, and the drawn splits.

    Raises ValueError if the file holds activations, and what arrays.read raises.
    """
    read = arrays.read(request.directory, seed=request.seed, shares=request.shares)
    if read.images is None:
        raise ValueError(
            f"{read.path} holds activations, not images, so there is nothing to classify. "
            "Set config.activations.site=arrays to analyse them as they are (configs/arrays.py)"
        )
    row_of = {read.ids[row]: row for rows in read.rows.values() for row in rows.tolist()}

    def parse(row: int) -> Record:
        return Record(
            id=read.ids[row], image=functools.partial(read.image, row), labels=(int(read.labels[row]),)
        )

    return Source(
        identity=read.identity,
        class_names={"class": read.class_names},
        open=lambda: {split: rows.tolist() for split, rows in read.rows.items()},
        parse=parse,
        where=lambda id_: f"{read.path}: images[{row_of[id_]}]",
        banner_px=request.banner_px,
        fit=request.fit,
    )
