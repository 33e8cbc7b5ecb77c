"""Bytes of any image file -> a square RGB uint8 image.

Two steps: `decode_rgb` (file format, colour, orientation, banner) and `fit_square` (size), with
`crop_box` between them where only the box of the object is wanted. `fit_box` takes a box through the same
steps. One answer per case:

    orientation    the EXIF tag is applied; a damaged EXIF block is ignored
    transparency   (alpha, transparent palette entry or colour) laid over white
    palette, grey, CMYK, YCbCr, HSV, LAB, 1-bit   converted to RGB; embedded ICC profiles are ignored
    16-bit grey    the high byte (65535 -> 255)
    32-bit integer and float grey    have no fixed range: the image's min..max becomes 0..255
    16-bit colour  the high byte
    several frames the first
    very large     up to twice Pillow's Image.MAX_IMAGE_PIXELS, 179 million; more is refused before decoding
    file name      plays no part: the content decides the format
    damaged        refused, also where a decoder only warns, or fills the rest with grey (second_look.py)
    metadata       huge or broken text, profiles and the like are left out
    a link that leads nowhere    refused (`file_bytes`)
"""

import errno
import io
import os
import pathlib
import struct
import warnings
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps

from jsae.data import second_look

FITS = ("squash", "crop")
CROPS = ("none", "box")

# Pillow warns from half its limit on; what is beyond the limit is refused anyway, what is not is welcome.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


_NOWHERE = b"\0a link that leads nowhere: "  # stands for the bytes of such a file; no image begins like this


class BadImage(ValueError):
    """The bytes are no image that can be used; the message says why."""


def file_bytes(path: pathlib.Path) -> bytes:
    """The bytes of an image file; for a link that leads nowhere, bytes that `decode_rgb` refuses as such.

    Raises OSError, which names the file, where it is there and cannot be read (permission, disk).
    """
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP) and path.is_symlink():
            return _NOWHERE + os.fsencode(os.readlink(path))
        raise


def decode_rgb(data: bytes, *, banner_px: int = 0) -> np.ndarray:
    """Decode an image file and cut `banner_px` rows off its bottom.

    Returns uint8 [height, width, 3]. Raises BadImage if the bytes are empty, damaged, of no known format,
    too large (Pillow's limit) or have no row left above the banner.
    """
    if banner_px < 0:
        raise ValueError(f"banner_px={banner_px} must be >= 0")
    if not data:
        raise BadImage("the file is empty")
    if data.startswith(_NOWHERE):
        raise BadImage(data[1:].decode(errors="backslashreplace"))
    try:
        try:
            rgb = _rgb(data)
        except (ValueError, Image.UnidentifiedImageError):
            bare = second_look.bare_png(data)
            if len(bare) == len(data):
                raise
            rgb = _rgb(bare)
    except MemoryError:
        raise
    except Image.UnidentifiedImageError:
        raise BadImage(
            f"no known image format, or a damaged header (the file starts with {bytes(data[:12])!r})"
        ) from None
    except Image.DecompressionBombError as error:
        raise BadImage(f"too large to decode; scale it down ({error})") from error
    except Exception as error:  # Pillow's decoders raise a dozen types on damaged input
        raise BadImage(f"damaged or unsupported image ({type(error).__name__}: {error})") from error
    return cut_banner(rgb, banner_px)


def cut_banner(rgb: np.ndarray, banner_px: int) -> np.ndarray:
    """The photo [h,w,3] without its last `banner_px` rows. Raises BadImage if no row is left."""
    if rgb.shape[0] <= banner_px:
        raise BadImage(f"has {rgb.shape[0]} rows, the banner alone {banner_px} (data.banner_px)")
    return rgb[: rgb.shape[0] - banner_px]


def crop_box(rgb: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The part of a photo [h,w,3] inside a 1-based inclusive box (xmin, ymin, xmax, ymax), a view.

    The box is clamped to the photo (xmin = 0 occurs in the official list, and boxes reach into the banner
    that has been cut off). Raises BadImage if nothing of it lies inside.
    """
    height, width = rgb.shape[:2]
    xmin, ymin, xmax, ymax = (int(corner) for corner in box)
    left, top, right, bottom = max(xmin - 1, 0), max(ymin - 1, 0), min(xmax, width), min(ymax, height)
    if left >= right or top >= bottom:
        raise BadImage(f"its box {(xmin, ymin, xmax, ymax)} holds nothing of the {width} x {height} photo")
    return rgb[top:bottom, left:right]


def fit_square(rgb: np.ndarray, image_size: int, fit: str) -> np.ndarray:
    """Resize uint8 [h,w,3] to [image_size,image_size,3].

    "squash" scales both sides to image_size; "crop" takes the centre square (the shorter side) first.
    Sides that shrink are averaged over area, sides that grow are interpolated linearly.
    """
    left, top, width, height = _window(rgb.shape[0], rgb.shape[1], fit)
    rgb = rgb[top : top + height, left : left + width]
    small = (min(width, image_size), min(height, image_size))  # cv2 sizes are (width, height)
    if small != (width, height):
        rgb = cv2.resize(rgb, small, interpolation=cv2.INTER_AREA)
    if small != (image_size, image_size):
        rgb = cv2.resize(rgb, (image_size, image_size), interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(rgb)


def fit_box(box: Sequence[float], height: int, width: int, image_size: int, fit: str) -> np.ndarray:
    """A 1-based inclusive box (xmin, ymin, xmax, ymax) of a photo, in px of its fitted square.

    `height` and `width` are the photo's without banner. Returns float32 [4]: x0, y0, x1, y1 with edges in
    0..image_size, clamped (xmin = 0 occurs in the official list, and boxes reach into the banner).
    """
    left, top, w, h = _window(height, width, fit)
    xmin, ymin, xmax, ymax = (float(corner) for corner in box)
    x = np.clip([xmin - 1 - left, xmax - left], 0, w) * (image_size / w)
    y = np.clip([ymin - 1 - top, ymax - top], 0, h) * (image_size / h)
    return np.array([x[0], y[0], x[1], y[1]], np.float32)


def _window(height: int, width: int, fit: str) -> tuple[int, int, int, int]:
    """left, top, width, height of the part of the photo that is kept."""
    if fit not in FITS:
        raise ValueError(f"fit={fit!r} is unknown; valid: {', '.join(FITS)}")
    if fit == "squash":
        return 0, 0, width, height
    side = min(height, width)
    return (width - side) // 2, (height - side) // 2, side, side


def _rgb(data: bytes) -> np.ndarray:
    """uint8 [h,w,3] of an image file. Raises whatever its decoder does, and OSError where it only warns."""
    with Image.open(io.BytesIO(data)) as image:
        if image.format in ("JPEG", "MPO"):
            pixels = second_look.jpeg(data, image.mode, upright=_is_upright(image))
            if pixels is not None:
                return pixels
        image.load()
        if image.format == "PNG":
            last = image.crop((0, image.height - 1, image.width, image.height))
            # rows that are missing are 0: the last one, or where they are interlaced any
            doubtful = bool(image.info.get("interlace")) or not np.asarray(last).any()
            second_look.check_png(data, count_rows=doubtful)
        return to_rgb(image if _is_upright(image) else _upright(image))


_UNREADABLE = (OSError, SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error, UserWarning)


def _is_upright(image: Image.Image) -> bool:
    """Whether the EXIF tag leaves the image as it is stored; a tag that is not readable does."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    except _UNREADABLE:
        return True


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _UNREADABLE:
        return image  # the pixels are fine, only the tag is not readable


def to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 [h,w,3] of a loaded Pillow image of any mode."""
    mode = image.mode
    if mode.startswith("I;16"):
        return _grey_to_rgb((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if mode in ("I", "F"):
        return _grey_to_rgb(_stretch(np.asarray(image, np.float64)))
    if mode in ("LA", "PA", "La", "RGBA", "RGBa") or "transparency" in image.info:
        if mode in ("La", "RGBa"):  # premultiplied alpha has one way out
            image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return np.asarray(Image.alpha_composite(white, image).convert("RGB"))
    if mode == "LAB":
        to_rgb = ImageCms.buildTransform(
            ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB"
        )
        return np.asarray(ImageCms.applyTransform(image, to_rgb))
    return np.asarray(image if mode == "RGB" else image.convert("RGB"))


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _stretch(values: np.ndarray) -> np.ndarray:
    """Float [h,w] -> uint8 by its finite range; non-finite pixels become 0, a constant image 0."""
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(values.shape, np.uint8)
    low, high = values[finite].min(), values[finite].max()
    scaled = (np.where(finite, values, low) - low) * (255.0 / (high - low) if high > low else 0.0)
    return np.round(scaled).astype(np.uint8)
