"""The drawn aircraft as a `Source`: drawn at the size they are used in, so neither cut nor resized."""

import hashlib
import pathlib
from collections.abc import Sequence
from typing import Any

from jsae.data import decode, tied_sky
from jsae.data.source import Record, Request, Source, prepare
from jsae.data.synthetic_aircraft import drawing
from jsae.data.synthetic_aircraft.builder import SyntheticAircraft, SyntheticAircraftConfig


def make(request: Request) -> Source:
    """The source of a drawn set.

    An image is what the code of this folder draws, not its last bits, which the processor has a part in:
    another brush is another data set.
    """
    code = hashlib.sha256()
    for path in sorted(pathlib.Path(drawing.__file__).parent.glob("*.py")):
        if path.name != pathlib.Path(__file__).name:  # it draws nothing
            code.update(path.read_bytes())
    sizes = {f"n_{split}": n for split, n in request.sizes.items()}
    drawn = sizes | {"seed": request.seed, "image_size": request.image_size}
    config = SyntheticAircraftConfig(name="", description="Drawn here.", **drawn)
    config.name += f"-{code.hexdigest()[:8]}"
    if request.tied:  # the drawings are the same, and what is made of them in `parse` is not
        tie = hashlib.sha256(pathlib.Path(tied_sky.__file__).read_bytes()).hexdigest()
        drawn |= {"tied": request.tied, "tie": tie}

    def open_() -> dict[str, Sequence]:
        return prepare(SyntheticAircraft, config, request.cache_dir)

    def parse(item: dict[str, Any]) -> Record:
        id_, label, masks = item["id"].decode(), int(item["label"]), item["part_masks"]
        image = item["image"]
        if request.tied:
            split, index = id_.rsplit("-", 1)
            value = tied_sky.value_of(request.tied, label, split, int(index))
            image = lambda: tied_sky.tint(decode.decode_rgb(item["image"]), masks, value)  # noqa: E731
        return Record(
            id=id_,
            image=image,
            labels=(label,),
            masks=masks,
            content=f"{drawn} {code.hexdigest()} {id_}".encode(),
        )

    return Source(
        identity=drawn | {"code": code.hexdigest()},
        class_names={"variant": tuple(variant.name for variant in drawing.VARIANTS)},
        open=open_,
        parse=parse,
        where=lambda id_: f"drawing {id_}",
        part_names=tuple(drawing.PART_NAMES),
    )
