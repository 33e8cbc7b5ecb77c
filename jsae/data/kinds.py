"""What `config.data.kind` may be: one line per kind of data, (Request) -> Source."""

from collections.abc import Callable

from jsae.data import array_source
from jsae.data.fgvc_aircraft import source as fgvc_source
from jsae.data.image_folder import source as folder_source
from jsae.data.source import Request, Source
from jsae.data.synthetic_aircraft import source as drawn_source

KINDS: dict[str, Callable[[Request], Source]] = {
    "synthetic_aircraft": drawn_source.make,
    "fgvc_aircraft": fgvc_source.make,
    "image_folder": folder_source.make,
    "arrays": array_source.make,
}
