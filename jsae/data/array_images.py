"""The images of a user's arrays: shapes and ranges that are understood, and how a row becomes uint8 RGB.

    [N,H,W,3], [N,H,W,4]            RGB, and RGB with alpha, which is laid over white
    [N,H,W], [N,H,W,1]              grey
    [N,3,H,W] (or 1, 4 channels)    asked about; the key layout="NCHW" says yes
    integers                        0..255
    floats, most of 0..1            times 255
    floats, most of 0..255          as they are
    all in another range            an error that says what to do: -1..1, standardised images, 16 bits
    beyond the range by a quarter   clipped: resampling overshoots at edges
    one image further off, or NaN   a damaged image (data.on_bad_image)

Most is the median over 256 rows or fewer: what one damaged image holds does not change the others.
"""

import pathlib

import numpy as np
from PIL import Image

from jsae.data import decode
from jsae.runtime import logs

CHANNELS = (1, 3, 4)
_SAMPLE = 256  # rows that are read to find the range
_OVERSHOOT = 0.25  # of the range
_DARK = 16  # no set of photos in 0..255 stays below this


def check(path: pathlib.Path, images: np.ndarray, layout: str | None) -> np.ndarray:
    """The images as [N,H,W] or [N,H,W,C]. Raises ValueError for other shapes and dtypes."""
    shape = images.shape
    if layout == "NCHW" and images.ndim == 4:
        images = np.moveaxis(images, 1, -1)
    elif images.ndim == 4 and shape[3] not in CHANNELS and shape[1] in CHANNELS and layout is None:
        raise ValueError(
            f"{path}: images has shape {shape}, which looks like [N,C,H,W]; expected [N,H,W,3]: "
            "np.moveaxis(images, 1, -1), or save layout='NCHW' beside it"
        )
    if 0 in shape[1:] or not (images.ndim == 3 or (images.ndim == 4 and images.shape[3] in CHANNELS)):
        flat = "; rows that are flat: images.reshape(len(images), H, W, 3)" if images.ndim == 2 else ""
        raise ValueError(
            f"{path}: images has shape {shape}, expected [N,H,W,3], [N,H,W] if grey, [N,H,W,4] with "
            f"alpha{flat}"
        )
    if images.dtype.kind not in "uif":
        how = ": images * np.uint8(255)" if images.dtype == bool else ""
        raise ValueError(f"{path}: images has dtype {images.dtype}, expected uint8 or a float{how}")
    return images


def scale(path: pathlib.Path, images: np.ndarray) -> float:
    """What pixels are multiplied with to be 0..255: 255 or 1. Raises ValueError for another range."""
    rows = np.unique(np.linspace(0, len(images) - 1, min(len(images), _SAMPLE)).astype(int))
    lows, highs = [], []
    for row in rows.tolist():
        pixels = np.asarray(images[row])
        pixels = pixels[np.isfinite(pixels)]
        if pixels.size and pixels.any():  # a black image says nothing
            lows.append(float(pixels.min()))
            highs.append(float(pixels.max()))
    if not highs:
        return 255.0 if images.dtype.kind == "f" else 1.0
    low, high = float(np.median(lows)), float(np.median(highs))
    largest = 1 if images.dtype.kind == "f" and high <= 1 + _OVERSHOOT else 255
    if images.dtype.kind != "f" and max(highs) <= 1:
        logs.note(f"{path}: the images hold only 0 and 1, of 0..255: nearly black. Were they floats in 0..1?")
    if not _within(low, high, largest) or (images.dtype.kind == "f" and 1 + _OVERSHOOT < high < _DARK):
        shift = max(int(max(highs)).bit_length() - 8, 1)  # 8 for 16 bits, 4 for 12
        raise ValueError(
            f"{path}: images are in {low:g}..{high:g} (medians over {len(highs)} images), expected 0..1 or "
            "0..255. -1..1: (images + 1) / 2. Standardised: images * std + mean. More bits: "
            f"(images >> {shift}).astype(np.uint8)"
        )
    return 255.0 / largest


def to_rgb(pixels: np.ndarray, factor: float) -> np.ndarray:
    """One image [H,W] or [H,W,1|3|4] of any dtype, times `factor`, as uint8 [H,W,3].

    Raises decode.BadImage for pixels that are not finite or out of range.
    """
    if pixels.dtype != np.uint8:
        if not np.isfinite(pixels).all():
            raise decode.BadImage("its pixels are not finite (NaN or infinity)")
        low, high = float(pixels.min(initial=0)), float(pixels.max(initial=0))
        largest = 255 / factor
        if not _within(low, high, largest):
            raise decode.BadImage(
                f"its pixels are in {low:g}..{high:g}; expected 0..{largest:g} in all images"
            )
        pixels = np.round(np.clip(pixels.astype(np.float64) * factor, 0, 255)).astype(np.uint8)
    if pixels.ndim == 3 and pixels.shape[2] == 3:
        return pixels
    grey = pixels.reshape(pixels.shape[:2]) if pixels.ndim == 2 or pixels.shape[2] == 1 else None
    return decode.to_rgb(Image.fromarray(pixels if grey is None else grey))


def _within(low: float, high: float, largest: float) -> bool:
    return low >= -_OVERSHOOT * largest and high <= (1 + _OVERSHOOT) * largest
