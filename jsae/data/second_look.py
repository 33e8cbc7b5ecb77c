"""Where Pillow is too lenient or too strict with JPEG and PNG, and what is done about it.

    JPEG   libjpeg fills what is missing or garbled with grey and only warns, and Pillow drops the warning:
           simplejpeg, which is libjpeg too, raises it. Pillow alone judges a header that it finds odd
    PNG    the checksums of the pixels are not checked: here they are. A compressed stream that ends early,
           and well, leaves the rest black: its length is compared with what the header announces. Text,
           profiles and other metadata that are huge or broken make Pillow refuse the file: `bare_png`
           leaves them out

Damage that no decoder can see stays unseen: changed bits that are still a code, in formats without checksums
(BMP, PPM, plain TIFF, lossy WebP), and in a JPEG where the codes happen to come out even.
"""

import struct
import zlib
from collections.abc import Iterator

import numpy as np
import simplejpeg

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a PNG's colour type
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND")  # eXIf: the orientation
_AT_ONCE = 1 << 20
# Of libjpeg, and no word on the pixels. The last warning is told: one of damage comes behind these.
_HARMLESS = ("Invalid SOS parameters", "Unknown Adobe color transform", "Warning: unknown JFIF revision")


def jpeg(data: bytes, mode: str, *, upright: bool) -> np.ndarray | None:
    """Read every code of a JPEG that Pillow has opened with this mode.

    Returns uint8 [h,w,3] where mode is RGB and the photo `upright`, the same bits that Pillow would give, in
    half its time; else None. Raises OSError if codes are missing or garbled.
    """
    pixels = mode == "RGB" and upright
    size = {} if pixels else {"min_height": 1, "min_width": 1}  # an eighth: the codes are what costs time
    colours = mode if mode in ("RGB", "CMYK") else "GRAY"
    try:
        found = simplejpeg.decode_jpeg(data, colours, **size)
    except ValueError as error:
        try:
            simplejpeg.decode_jpeg(data, colours, strict=False, **size)
        except ValueError:
            return None  # its header is at fault, or of a kind that only Pillow reads: Pillow's word holds
        if str(error).startswith(_HARMLESS):
            return None
        raise OSError(f"its data are truncated or damaged: {error}") from None
    return found if pixels else None


def check_png(data: bytes, *, count_rows: bool) -> None:
    """Raise OSError if a checksum of a PNG's pixels is wrong or, with `count_rows`, if rows are missing."""
    chunks = list(_chunks(data))
    for kind, chunk in chunks:
        if kind == b"IDAT" and zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
            raise OSError("its data are damaged: a checksum is wrong")
    if not count_rows:
        return
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1][8:21])
    expected = 0
    for left, top, right, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + -(-columns * depth * _CHANNELS[colour] // 8))
    stream, found = zlib.decompressobj(), 0
    for kind, chunk in chunks:
        part = chunk[8:-4] if kind == b"IDAT" else b""
        while part and not stream.eof:
            found += len(stream.decompress(part, _AT_ONCE))
            part = stream.unconsumed_tail
    if found < expected:
        raise OSError(f"its data are truncated: {found} bytes of pixels, {expected} announced")


def bare_png(data: bytes) -> bytes:
    """The file without metadata that is not needed for its pixels; other files as they are."""
    if not data.startswith(_SIGNATURE):
        return data
    return _SIGNATURE + b"".join(chunk for kind, chunk in _chunks(data) if kind in _PIXEL_CHUNKS)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(kind, all its bytes) of each chunk of a PNG, the last one perhaps cut."""
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        yield kind, data[at : at + 12 + length]
        at += 12 + length
