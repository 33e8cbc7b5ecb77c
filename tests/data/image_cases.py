"""Image files of every kind that common tools write, and what becomes of them.

python tests/data/image_cases.py   # prints it
"""

import io
import struct
import warnings
import zlib

import numpy as np
from PIL import Image, ImageCms, PngImagePlugin

from jsae.data import decode

RED, WHITE, BLUE = (200, 30, 40), (255, 255, 255), (0, 0, 255)
W, H = 6, 4


def encoded(image: Image.Image, suffix: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, suffix, **options)
    return file.getvalue()


def solid(mode: str, colour, size=(W, H)) -> Image.Image:
    return Image.new(mode, size, colour)


def noise(size=(64, 64)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8))


def palette(colours: int, **options) -> bytes:
    image = solid("P", 0)
    image.putpalette([*RED, *(0, 0, 0) * (colours - 1)])
    return encoded(image, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, bit_depth: int, colour_type: int, rows: bytes, chunks=(), interlaced=0
) -> bytes:
    """A PNG file made by hand, for what Pillow does not write."""
    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, interlaced)
    body = b"".join(chunk(*each) for each in chunks)
    end = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + end


def deep_png(colour_type: int, sample: tuple) -> bytes:
    """16 bits a channel."""
    return png(W, H, 16, colour_type, (b"\0" + struct.pack(f">{len(sample)}H", *sample) * W) * H)


def one_bit_png(width: int, height: int) -> bytes:
    return png(width, height, 1, 0, (b"\0" + b"\xff" * (-(-width // 8))) * height)


def animated(suffix: str) -> bytes:
    return encoded(
        solid("RGB", RED), suffix, save_all=True, append_images=[solid("RGB", WHITE)], **LOSSLESS[suffix]
    )


LOSSLESS = {"GIF": {}, "WEBP": {"lossless": True}, "PNG": {}, "TIFF": {}}


def oriented(orientation: int, suffix: str = "JPEG") -> bytes:
    """Stored so that the upright picture is RED with a BLUE left half's top: see test_image_cases."""
    upright = solid("RGB", RED, (32, 16))
    upright.paste(BLUE, (0, 0, 16, 8))
    back = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(back[orientation]) if orientation in back else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if suffix == "JPEG" else {}
    return encoded(stored, suffix, exif=exif, **options)


def icc(image: Image.Image, suffix: str, **options) -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encoded(image, suffix, icc_profile=profile, **options)


def text_png() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 5000)
    return encoded(solid("RGB", RED), pnginfo=info)


RED_ROW = b"\0" + bytes(RED) * W  # of a PNG


def red_png(*chunks, **settings) -> bytes:
    return png(W, H, 8, 2, RED_ROW * H, chunks, **settings)


def with_wrong_checksum(data: bytes, kind: bytes) -> bytes:
    """A PNG whose first chunk of this kind has another checksum."""
    start = data.index(kind) - 4
    end = start + 12 + struct.unpack(">I", data[start : start + 4])[0]
    return data[: end - 1] + bytes([data[end - 1] ^ 1]) + data[end:]


def ended_early(data: bytes, share: float) -> bytes:
    """A JPEG without the rest of its pixels, yet with an end marker, as a camera or a download leaves it."""
    return cut(data, share) + b"\xff\xd9"


def emptied(data: bytes) -> bytes:
    """A file with zeros for 200 bytes in its middle."""
    middle = len(data) // 2
    return data[:middle] + bytes(200) + data[middle + 200 :]


def between_segments(data: bytes, extra: bytes) -> bytes:
    """A JPEG with bytes before its first table."""
    start = data.index(b"\xff\xdb")
    return data[:start] + extra + data[start:]


def cut(data: bytes, share: float) -> bytes:
    return data[: int(len(data) * share)]


def without_adobe_marker(data: bytes) -> bytes:
    """A JPEG without its APP14 segment."""
    start = data.index(b"\xff\xee")
    return data[:start] + data[start + 2 + struct.unpack(">H", data[start + 2 : start + 4])[0] :]


def noisy(suffix: str, **options) -> bytes:
    return encoded(noise(), suffix, **options)


def interlaced_png(passes) -> bytes:
    return png(5, 5, 8, 2, b"".join((b"\0" + bytes(RED) * n) * rows for n, rows in passes), interlaced=1)


def turned_noise() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(), "JPEG", exif=exif)


GREY = (77, 77, 77)
XMP = b"XML:com.adobe.xmp\0\1\0\0\0"
ADAM7_5X5 = ((1, 1), (1, 1), (2, 1), (1, 2), (3, 1), (2, 3), (5, 2))  # columns, rows of each pass
# name, bytes, then the colour and how far it may be off (JPEG and colour tables round), or why it is refused
GOOD = [
    ("RGB png", encoded(solid("RGB", RED)), RED, 0),
    ("RGB jpeg", encoded(solid("RGB", RED), "JPEG", quality=95), RED, 3),
    ("progressive jpeg", encoded(solid("RGB", RED), "JPEG", quality=95, progressive=True), RED, 3),
    ("grey jpeg", encoded(solid("L", 77), "JPEG", quality=95), GREY, 1),
    (
        "CMYK jpeg with Adobe marker",
        encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=95),
        (255, 0, 0),
        4,
    ),
    (
        "CMYK jpeg without Adobe marker",
        without_adobe_marker(encoded(solid("CMYK", (255, 0, 0, 255)), "JPEG", quality=95)),
        (0, 0, 0),
        4,
    ),
    ("YCbCr jpeg", encoded(solid("YCbCr", (128, 128, 128)), "JPEG"), (128,) * 3, 2),
    ("RGB jpeg with ICC profile", icc(solid("RGB", RED), "JPEG", quality=95), RED, 3),
    ("RGB png with ICC profile", icc(solid("RGB", RED), "PNG"), RED, 0),
    ("grey png", encoded(solid("L", 77)), GREY, 0),
    ("grey png with alpha, transparent", encoded(solid("LA", (10, 0))), WHITE, 0),
    ("1-bit png", encoded(solid("1", 1)), WHITE, 0),
    ("palette png", palette(2), RED, 0),
    ("palette png, 1-bit", palette(2, bits=1), RED, 0),
    ("palette png, transparent entry", palette(2, transparency=0), WHITE, 0),
    ("palette png, entries of graded alpha", palette(2, transparency=b"\x80\xff"), (227, 142, 147), 1),
    ("RGBA png, opaque", encoded(solid("RGBA", (*RED, 255))), RED, 0),
    ("RGBA png, transparent", encoded(solid("RGBA", (*RED, 0))), WHITE, 0),
    ("RGBA png, half transparent", encoded(solid("RGBA", (0, 0, 0, 128))), (127,) * 3, 1),
    ("RGB png with a transparent colour", encoded(solid("RGB", RED), transparency=RED), WHITE, 0),
    ("16-bit grey png", encoded(solid("I;16", 0x4D00)), GREY, 0),
    ("16-bit RGB png", deep_png(2, (0xC8FF, 0x1E00, 0x28AA)), RED, 0),
    ("16-bit RGBA png, transparent", deep_png(6, (0xC800, 0x1E00, 0x2800, 0)), WHITE, 0),
    ("16-bit grey png with alpha, opaque", deep_png(4, (0x4D12, 0xFFFF)), GREY, 0),
    ("32-bit integer tiff", encoded(solid("I", 70000), "TIFF"), (0,) * 3, 0),
    ("float tiff", encoded(solid("F", 0.5), "TIFF"), (0,) * 3, 0),
    ("LAB tiff", encoded(solid("LAB", (255, 128, 128)), "TIFF"), WHITE, 3),
    ("CMYK tiff", encoded(solid("CMYK", (0, 255, 255, 0)), "TIFF"), (255, 0, 0), 4),
    ("RGB tiff", encoded(solid("RGB", RED), "TIFF"), RED, 0),
    ("tiff of two pages", animated("TIFF"), RED, 0),
    ("animated gif", animated("GIF"), RED, 0),
    ("gif with a transparent entry", encoded(solid("P", 0), "GIF", transparency=0), WHITE, 0),
    ("animated webp", animated("WEBP"), RED, 0),
    ("webp", encoded(solid("RGB", RED), "WEBP", lossless=True), RED, 0),
    ("RGBA webp, transparent", encoded(solid("RGBA", (*RED, 0)), "WEBP", lossless=True), WHITE, 0),
    ("animated png (apng)", animated("PNG"), RED, 0),
    ("bmp", encoded(solid("RGB", RED), "BMP"), RED, 0),
    ("jpeg 2000", encoded(solid("RGB", RED, (64, 64)), "JPEG2000"), RED, 2),
    ("ppm", encoded(solid("RGB", RED), "PPM"), RED, 0),
    ("ico", encoded(solid("RGB", RED, (16, 16)), "ICO"), RED, 0),
    ("png with long text chunks", text_png(), RED, 0),
    (
        "png with 5 MB of compressed text",
        red_png((b"zTXt", b"C\0\0" + zlib.compress(b"x" * 5_000_000))),
        RED,
        0,
    ),
    ("png with 5 MB of XMP", red_png((b"iTXt", XMP + zlib.compress(b"x" * 5_000_000))), RED, 0),
    ("png with 70 MB of text", red_png((b"tEXt", b"C\0" + b"x" * 70_000_000)), RED, 0),
    (
        "png with an ICC profile of 5 MB",
        red_png((b"iCCP", b"p\0\0" + zlib.compress(b"x" * 5_000_000))),
        RED,
        0,
    ),
    ("png with a broken ICC profile", red_png((b"iCCP", b"p\0\0garbage")), RED, 0),
    ("png with text of a wrong checksum", with_wrong_checksum(red_png((b"tEXt", b"C\0x")), b"tEXt"), RED, 0),
    ("png with short metadata", red_png((b"gAMA", b""), (b"cHRM", b"\0"), (b"pHYs", b"\0")), RED, 0),
    ("png with broken EXIF", red_png((b"eXIf", b"garbage")), RED, 0),
    ("png without an end", red_png()[:-12], RED, 0),
    ("png with more rows than announced", png(W, H, 8, 2, RED_ROW * 9), RED, 0),
    ("png, black", png(W, H, 8, 2, (b"\0" + bytes(3 * W)) * H), (0, 0, 0), 0),
    ("png, interlaced, 5 x 5", interlaced_png(ADAM7_5X5), RED, 0),
    (
        "jpeg with bytes between its segments",
        between_segments(encoded(solid("RGB", RED), "JPEG", quality=95), b"\0" * 5),
        RED,
        3,
    ),
    (
        "jpeg with an ICC profile of 300 kB",
        encoded(solid("RGB", RED), "JPEG", quality=95, icc_profile=b"x" * 300_000),
        RED,
        3,
    ),
    (
        "two pictures in one jpeg (mpo)",
        encoded(solid("RGB", RED), "MPO", quality=95, save_all=True, append_images=[solid("RGB", WHITE)]),
        RED,
        3,
    ),
    ("1 x 1", encoded(solid("RGB", RED, (1, 1))), RED, 0),
    ("1 x 5000", encoded(solid("RGB", RED, (1, 5000))), RED, 0),
    ("5000 x 1", encoded(solid("RGB", RED, (5000, 1))), RED, 0),
    ("12000 x 9000, 1-bit png", one_bit_png(12000, 9000), WHITE, 0),
    ("jpeg with bytes behind its end", encoded(solid("RGB", RED), "JPEG", quality=95) + b"\0" * 999, RED, 3),
]
BAD = [
    ("empty file", b"", "the file is empty"),
    ("text file named .jpg", b"this is no image", "no known image format"),
    ("html error page named .jpg", b"<!DOCTYPE html><title>404</title>", "starts with b'<!DOCTYPE ht'"),
    ("zero bytes", bytes(5000), "no known image format"),
    ("pdf named .jpg", b"%PDF-1.7\n", "no known image format"),
    ("svg", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "no known image format"),
    ("jpeg, its first 10 bytes", noisy("JPEG")[:10], "Truncated File Read"),
    ("jpeg cut in its header", cut(noisy("JPEG"), 0.05), "Truncated File Read"),
    ("jpeg cut in the middle", cut(noisy("JPEG"), 0.5), "truncated"),
    ("jpeg without its last tenth", cut(noisy("JPEG"), 0.9), "truncated"),
    ("png cut in its header", noisy("PNG")[:20], "Truncated File Read"),
    ("png cut in the middle", cut(noisy("PNG"), 0.5), "damaged or unsupported"),
    ("png without its last tenth", cut(noisy("PNG"), 0.9), "damaged or unsupported"),
    ("png with a wrong checksum", noisy("PNG")[:60] + b"\xff\xff" + noisy("PNG")[62:], "damaged or unsupp"),
    ("webp cut in the middle", cut(noisy("WEBP", quality=90), 0.5), "damaged or unsupported"),
    ("gif cut in the middle", cut(noisy("GIF"), 0.5), "truncated"),
    ("tiff cut in the middle", cut(noisy("TIFF"), 0.5), "truncated"),
    ("jpeg that ends early", ended_early(noisy("JPEG"), 0.6), "damaged: Corrupt JPEG data: premature end"),
    ("progressive jpeg that ends early", ended_early(noisy("JPEG", progressive=True), 0.6), "truncated or"),
    ("grey jpeg that ends early", ended_early(encoded(noise().convert("L"), "JPEG"), 0.6), "truncated or"),
    ("CMYK jpeg that ends early", ended_early(encoded(noise().convert("CMYK"), "JPEG"), 0.6), "truncated or"),
    ("turned jpeg that ends early", ended_early(turned_noise(), 0.6), "truncated or damaged"),
    ("jpeg with zeros in its middle", emptied(noisy("JPEG", restart_marker_rows=1)), "truncated or damaged"),
    ("png whose data end early", png(W, H, 8, 2, RED_ROW * 2), "38 bytes of pixels, 76 announced"),
    ("interlaced png without its last pass", interlaced_png(ADAM7_5X5[:-1]), "54 bytes of pixels, 86 ann"),
    ("png whose pixels have a wrong checksum", with_wrong_checksum(red_png(), b"IDAT"), "checksum is wrong"),
    ("20000 x 20000 png (a bomb)", one_bit_png(20000, 20000), "too large to decode; scale it down"),
    ("png of 0 x 0 px", png(0, 0, 8, 2, b""), "damaged"),
    ("png that announces 60000 x 60000 px", png(60000, 60000, 8, 2, b""), "too large to decode"),
]  # fmt: skip


def outcome(data: bytes) -> str:
    try:
        rgb = decode.decode_rgb(data)
    except decode.BadImage as error:
        return f"refused: {error}"
    colour = rgb.reshape(-1, 3)[0].tolist()
    return f"uint8 {list(rgb.shape)}, first pixel {colour}"


def rows():
    """(input, what happens) of every case."""
    for name, data, *_ in GOOD + BAD:
        yield name, outcome(data)
    for suffix in ("JPEG", "PNG", "WEBP"):
        for orientation in range(1, 9):
            yield f"{suffix.lower()}, EXIF orientation {orientation}", outcome(oriented(orientation, suffix))


if __name__ == "__main__":
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    for row in rows():
        print("| {} | {} |".format(*row))
