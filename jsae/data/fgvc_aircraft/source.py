"""FGVC-Aircraft as a `Source`: a folder or archive in its layout, with label levels and perhaps boxes."""

import hashlib
from collections.abc import Sequence
from typing import Any

from jsae.data.fgvc_aircraft import lists, locate
from jsae.data.fgvc_aircraft.builder import FgvcAircraft, FgvcAircraftConfig
from jsae.data.fgvc_aircraft.levels import parents
from jsae.data.source import Record, Request, Source, name_of, prepare, stamp, warn_of_empty_classes


def make(request: Request) -> Source:
    """The source of a folder, archive or download. Its cache is of these lists and files."""
    read = lists.read_lists(locate.resolve(request.directory, request.cache_dir))
    for level, names in read.class_names.items():
        warn_of_empty_classes(level, names, (photo.labels[level] for photo in read.photos["train"]))
    digest = hashlib.sha256()
    for path in sorted(read.folder.glob("*.txt")):
        digest.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    paths = {photo.id: photo.path for photos in read.photos.values() for photo in photos}
    for id_, path in sorted(paths.items()):
        digest.update(f"{id_}\0{path.name}\0{stamp(path)}\n".encode())
    identity = {"folder": str(read.folder), "content": digest.hexdigest()}
    levels = tuple(read.class_names)

    def open_() -> dict[str, Sequence]:
        config = FgvcAircraftConfig(
            name=name_of(identity), description="A local folder.", folder=str(read.folder)
        )
        return prepare(FgvcAircraft, config, request.cache_dir)

    def parse(item: dict[str, Any]) -> Record:
        box = tuple(int(corner) for corner in item["box"]) if read.has_boxes else None
        labels = tuple(int(item[level]) for level in levels)
        return Record(id=item["id"].decode(), image=item["image"], labels=labels, box=box)

    return Source(
        identity=identity,
        class_names=read.class_names,
        open=open_,
        parse=parse,
        where=lambda id_: str(paths[id_]),
        banner_px=request.banner_px,
        fit=request.fit,
        crop=request.crop,
        has_boxes=read.has_boxes,
        has_levels=True,
        parents=parents(read),
    )
