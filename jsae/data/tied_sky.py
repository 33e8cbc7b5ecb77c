"""A drawn set whose sky gives the class away in training: a shortcut that is planted, and known.

With config.data.tied="sky" everything behind the aircraft is tinted in one of two colours. In train and val
the colour is that of the class, and any two twins (classes that differ in one part) have different ones. In
test the tie is broken: half of each class's images have either colour. "sky_untied" deals the colours in all
splits as in test; both settings have the same test images. The pixels of the aircraft stay as they are drawn.

Pairs of twins (jsae.data.twins) are drawn without a tint.
"""

import numpy as np

from jsae.data.synthetic_aircraft import drawing
from jsae.data.synthetic_aircraft.builder import AIRCRAFT_BIT

TIES = ("", "sky", "sky_untied")
_COLOURS = np.array([[40, 70, 170], [240, 150, 60]], np.float32)  # of value 0 and 1: night blue, orange
_TINT = 0.6  # share of the colour in a tinted pixel


def value_of_class(label: int) -> int:
    """The value that is tied to a class, 0 or 1: whether the number of its parts is odd.

    Twins differ in one part, so in this too.
    """
    return len(drawing.VARIANTS[label].parts) % 2


def value_of(tied: str, label: int, split: str, index: int) -> int:
    """The value of an image, 0 or 1: that of its class, or, untied and in test, of every other one of it.

    Images come in blocks of one of each class (`drawing.label_of`); where nothing is tied, the values of all
    classes change from block to block.
    """
    is_tied = tied == "sky" and split != "test"
    return (value_of_class(label) + (0 if is_tied else index // len(drawing.VARIANTS))) % 2


def tint(image: np.ndarray, masks: np.ndarray, value: int) -> np.ndarray:
    """The image, uint8 [S, S, 3], tinted by value where `masks` uint16 [S, S] show no aircraft."""
    tinted = (1 - _TINT) * image + _TINT * _COLOURS[value][None, None, :]
    on_aircraft = (masks >> AIRCRAFT_BIT & 1).astype(bool)[:, :, None]
    return np.where(on_aircraft, image, np.rint(tinted).astype(np.uint8))
