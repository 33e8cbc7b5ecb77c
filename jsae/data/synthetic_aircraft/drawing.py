"""Draws one image of the data set with the masks of its parts: a pure function of (seed, split, index).

Polygons are filled without antialiasing on a canvas four times as large that holds colour and owner; each
pixel of the image is then the mean of 4x4 canvas pixels, and belongs to a part if the part owns at least half
of them. Masks show what is visible: what another part hides is not in them. A propeller's swept disc is
translucent, so its mask overlaps others. Masks are the same in OpenCV 4.10 and 5.0: fillConvexPoly and
polylines give the same pixels in both, while fillPoly does not. Image values may differ by a rounding.

The order of classes: images come in blocks of L, each block a permutation of all classes that depends on
(seed, split, block). So any first n images are balanced to within one, and neighbours tell nothing about
each other.
"""

import dataclasses
import math
from collections.abc import Iterable

import cv2
import numpy as np

from jsae.data.synthetic_aircraft import appearance, sky
from jsae.data.synthetic_aircraft.shapes import Aircraft
from jsae.data.synthetic_aircraft.variants import PART_NAMES, VARIANTS, Variant

__all__ = [
    "PART_NAMES",
    "SPLITS",
    "VARIANTS",
    "Example",
    "Variant",
    "draw",
    "draw_parts",
    "draw_variant",
    "label_of",
]

SPLITS = ("train", "val", "test")
_SUPERSAMPLING = 4
_FULL = 240  # of a canvas mask: a multiple of 16, so that the rounded mean of 4x4 pixels is exact
_FRACTION_BITS = 4  # of the fixed-point coordinates given to OpenCV


@dataclasses.dataclass(frozen=True)
class Example:
    """One drawn image.

    Attributes:
        image: uint8 [S, S, 3], RGB.
        label: index into VARIANTS; None where no variant has these parts.
        part_masks: bool [P, S, S], the visible pixels of each part of PART_NAMES.
        aircraft_mask: bool [S, S]; covers every part mask.
        parts: bool [P], which parts the variant has.
        params: the appearance (numbers and colours), which does not depend on the variant.
    """

    image: np.ndarray
    label: int | None
    part_masks: np.ndarray
    aircraft_mask: np.ndarray
    parts: np.ndarray
    params: dict


def label_of(seed: int, split: str, index: int) -> int:
    """Class of an image, balanced over every block of len(VARIANTS) images."""
    block, place = divmod(index, len(VARIANTS))
    order = np.argsort(_generator(seed, split, block, stream=0).random(len(VARIANTS)), kind="stable")
    return int(order[place])


def draw(seed: int, split: str, index: int, size: int = 96) -> Example:
    """Draws image `index` of a split.

    Args:
        seed: of the data set, >= 0.
        split: one of SPLITS.
        index: >= 0; there is no last one.
        size: side of the image in pixels, >= 16.

    Raises:
        ValueError: on a split, index, seed or size out of range.
    """
    return draw_variant(label_of(seed, split, index), seed, split, index, size)


def draw_variant(label: int, seed: int, split: str, index: int, size: int = 96) -> Example:
    """Draws image `index` as if its class were `label`; pose, livery, light and sky stay the same."""
    return draw_parts(VARIANTS[label].parts, seed, split, index, size)


def draw_parts(parts: Iterable[str], seed: int, split: str, index: int, size: int = 96) -> Example:
    """Draws image `index` of an aircraft made of these parts, be it a variant or not.

    Pose, livery, light, sky and noise are those of the image in every set of parts, so two drawings of one
    index differ in their parts alone.

    Raises ValueError on parts that make no aircraft (`Variant`), and as `draw` does.
    """
    if size < 16:
        raise ValueError(f"synthetic_aircraft: size is {size}, expected at least 16 pixels")
    variant = Variant("parts asked for", frozenset(parts))
    label = next((n for n, known in enumerate(VARIANTS) if known.parts == variant.parts), None)
    rng = _generator(seed, split, index, stream=1)
    params = appearance.sample(rng)
    background = sky.paint(rng, params, size)
    noise = rng.standard_normal((size, size, 3), dtype=np.float32)

    aircraft = Aircraft(variant.parts, params)
    canvas = _rasterise(aircraft, params, size)
    owners = np.ascontiguousarray(canvas[:, :, 3])
    colour = (
        cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)[:, :, :3].astype(np.float32) / 255.0
    )
    opaque = _coverage_of(owners, slice(1, None))
    image = background * (1.0 - opaque[:, :, None]) + colour
    present = np.array([name in variant.parts for name in PART_NAMES])
    masks = np.zeros((len(PART_NAMES), size, size), bool)
    for part in np.flatnonzero(present):
        masks[part] = _coverage_of(owners, part + 2) >= 0.5
    aircraft_mask = opaque >= 0.5
    if aircraft.propeller is not None:
        disc = np.zeros(owners.shape, np.uint8)
        corners = _fixed_point(_project(aircraft.propeller, params, size))
        cv2.fillConvexPoly(disc, corners, _FULL, cv2.LINE_8, _FRACTION_BITS)
        swept = _coverage(disc)
        image = image + (0.9 - image) * (0.45 * swept[:, :, None])
        masks[PART_NAMES.index("nose_propeller")] |= swept >= 0.5
        aircraft_mask |= swept >= 0.5

    warmth = np.array([1.0 + params["warmth"], 1.0, 1.0 - params["warmth"]], np.float32) * params["gain"]
    image = image * warmth[None, None, :] * 255.0 + params["noise"] * noise
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return Example(image, label, masks, aircraft_mask, present, params)


def _generator(seed: int, split: str, number: int, stream: int) -> np.random.Generator:
    if split not in SPLITS:
        raise ValueError(f"synthetic_aircraft: unknown split {split!r}; valid: {', '.join(SPLITS)}")
    if seed < 0 or number < 0:
        raise ValueError(
            f"synthetic_aircraft: seed and index must be >= 0, got seed {seed} and index {number}"
        )
    entropy = np.random.SeedSequence([seed, SPLITS.index(split), number, stream])
    return np.random.Generator(np.random.Philox(entropy))


def _project(points: np.ndarray, params: dict, size: int) -> np.ndarray:
    """Points [n, 3] in fuselage lengths -> canvas coordinates [n, 2] (x right, y down)."""
    yaw, elevation, pitch = (math.radians(params[name]) for name in ("yaw", "elevation", "pitch"))
    across = points[:, 0] * math.cos(yaw) + points[:, 2] * math.sin(yaw)
    towards = points[:, 2] * math.cos(yaw) - points[:, 0] * math.sin(yaw)
    up = points[:, 1] * math.cos(elevation) - towards * math.sin(elevation)
    right = across * math.cos(pitch) - up * math.sin(pitch)
    down = -(across * math.sin(pitch) + up * math.cos(pitch)) + 0.03
    if params["flip"]:
        right = -right
    shift = np.array([params["shift_x"], params["shift_y"]]) + 0.5
    side = size * _SUPERSAMPLING
    return (np.stack([right, down], 1) * params["length"] + shift) * side - 0.5


def _rasterise(aircraft: Aircraft, params: dict, size: int) -> np.ndarray:
    """Paints the polygons: uint8 [4S, 4S, 4], RGB on black and the owner of each canvas pixel."""
    canvas = np.zeros((size * _SUPERSAMPLING, size * _SUPERSAMPLING, 4), np.uint8)
    thickness = max(1, round(0.9 * _SUPERSAMPLING * size / 96))
    corners = _fixed_point(_project(np.concatenate([p.corners for p in aircraft.polygons]), params, size))
    start = 0
    for polygon in aircraft.polygons:
        points = corners[start : start + len(polygon.corners)]
        start += len(polygon.corners)
        faces = [points]
        if polygon.kind == "hull":
            points = cv2.convexHull(points)
            faces = [points]
        elif polygon.kind == "strip":
            faces = [points[[i, i + 1, -i - 2, -i - 1]] for i in range(len(points) // 2 - 1)]
        if polygon.fill is not None:
            paint = (*(255.0 * channel for channel in polygon.fill), polygon.owner)
            for face in faces:
                cv2.fillConvexPoly(canvas, face, paint, cv2.LINE_8, _FRACTION_BITS)
        if polygon.edge is not None:
            paint = (*(255.0 * channel for channel in polygon.edge), polygon.owner)
            cv2.polylines(canvas, [points], True, paint, thickness, cv2.LINE_8, _FRACTION_BITS)
    return canvas


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.rint(points * 2**_FRACTION_BITS).astype(np.int32)


def _coverage_of(owners: np.ndarray, which: int | slice) -> np.ndarray:
    """Share of each image pixel that some owners hold on the canvas: float32 [S, S]."""
    table = np.zeros(256, np.uint8)
    table[which] = _FULL
    return _coverage(cv2.LUT(owners, table))


def _coverage(mask: np.ndarray) -> np.ndarray:
    """Canvas mask (0 or _FULL) -> share of each image pixel that it covers: float32 [S, S]."""
    side = mask.shape[0] // _SUPERSAMPLING
    return cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / _FULL
