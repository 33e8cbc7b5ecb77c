"""A folder of class folders as a `Source`; one in FGVC layout is read as fgvc_aircraft."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from jsae.data.fgvc_aircraft import locate
from jsae.data.fgvc_aircraft import source as fgvc_source
from jsae.data.image_folder import files
from jsae.data.image_folder.builder import ImageFolder, ImageFolderConfig
from jsae.data.source import Record, Request, Source, name_of, prepare, stamp, warn_of_empty_classes
from jsae.runtime import logs


def make(request: Request) -> Source:
    """The source of a folder. Raises FileNotFoundError if it is none, or what files.read_folder raises."""
    given = request.directory
    folder = pathlib.Path(given).expanduser() if given else None
    if folder is None or not folder.is_dir():
        what = f"config.data.dir={given!r} is no folder" if given else "config.data.dir is empty"
        raise FileNotFoundError(f"{what}, but data.kind=image_folder needs one. It can be\n{files.LAYOUTS}")
    folder = folder.resolve()
    if locate.has_lists(folder):
        return fgvc_source.make(request)
    how: dict[str, Any] = {
        "seed": request.seed,
        "val_share": request.shares["val"],
        "test_share": request.shares["test"],
    }
    listing = files.read_folder(folder, **how)
    for text in listing.notes:
        logs.note(text)
    warn_of_empty_classes("class", listing.class_names, (photo.label for photo in listing.photos["train"]))
    paths = {photo.id: photo.path for photos in listing.photos.values() for photo in photos}
    digest = hashlib.sha256(repr(listing.class_names).encode())
    for split, photos in listing.photos.items():
        for photo in photos:
            digest.update(f"{split}\0{photo.id}\0{photo.label}\0{stamp(photo.path)}\n".encode())
    identity = {"folder": str(folder), "content": digest.hexdigest()}

    def open_() -> dict[str, Sequence]:
        config = ImageFolderConfig(
            name=name_of(identity), description="A local folder.", folder=str(folder), **how
        )
        return prepare(ImageFolder, config, request.cache_dir)

    def parse(item: dict[str, Any]) -> Record:
        return Record(id=item["id"].decode(), image=item["image"], labels=(int(item["label"]),))

    return Source(
        identity=identity,
        class_names={"class": listing.class_names},
        open=open_,
        parse=parse,
        where=lambda id_: str(paths[id_]),
        banner_px=request.banner_px,
        fit=request.fit,
    )
