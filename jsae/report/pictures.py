"""Pictures of the report: one small JPEG file per test image, shared by all pages, and maps as text.

Images are read one by one from the memory-mapped cache, so the memory needed does not grow with the set.
"""

import base64
import io

import numpy as np
from PIL import Image

_JPEG_QUALITY = 80
_MAX_SIDE_PX = 160


def jpeg(image: np.ndarray) -> bytes:
    """The JPEG of one uint8 [H, W, 3] image, at most 160 pixels wide and high."""
    picture = Image.fromarray(np.asarray(image))
    picture.thumbnail((_MAX_SIDE_PX, _MAX_SIDE_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def recoded(picture: bytes) -> bytes:
    """A picture of any format as a JPEG of the same size."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(picture)).convert("RGB").save(buffer, "JPEG", quality=85, optimize=True)
    return buffer.getvalue()


def map_text(values: bytes | None) -> str:
    """A map of `jsae.report.survey` as base64, "" for None."""
    return "" if values is None else base64.b64encode(values).decode()


def data_uri(image: np.ndarray) -> str:
    """The JPEG inside a URI, for a notebook that has no files beside it."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(image)).decode()
