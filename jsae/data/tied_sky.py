"""A drawn set whose sky gives the class away in training: a shortcut that is planted, and known.

Everything behind the aircraft is tinted in one of two colours, which config.data.tied deals:

    sky           in train and val the colour is that of the class; any two twins (classes that differ in one
                  part) have different ones
    sky_mostly    the same, but for one image in ten, which has the other colour: a network can learn from
                  these what the parts are for
    sky_untied    half of each class's images have either colour

In test the tie is broken: all three settings have the same test images, those of sky_untied. The pixels of
the aircraft stay as they are drawn.

Pairs of twins (jsae.data.twins) are drawn without a tint.
"""

import numpy as np

from jsae.data.synthetic_aircraft import drawing
from jsae.data.synthetic_aircraft.builder import AIRCRAFT_BIT

TIES = ("", "sky", "sky_mostly", "sky_untied")
_COLOURS = np.array([[40, 70, 170], [240, 150, 60]], np.float32)  # of value 0 and 1: night blue, orange
_EXCEPTION_EVERY = 10  # blocks of sky_mostly
_TINT = 0.6  # share of the colour in a tinted pixel


def value_of_class(label: int) -> int:
    """The value that is tied to a class, 0 or 1: whether the number of its parts is odd.

    Twins differ in one part, so in this too.
    """
    return len(drawing.VARIANTS[label].parts) % 2


def value_of(tied: str, label: int, split: str, index: int) -> int:
    """The value of an image, 0 or 1: that of its class, or, untied and in test, of every other one of it.

    Images come in blocks of one of each class (`drawing.label_of`); in a block all have the value of their
    class, or all the other one.
    """
    block = index // len(drawing.VARIANTS)
    if tied == "sky_untied" or split == "test":
        other = block % 2
    else:
        other = int(tied == "sky_mostly" and block % _EXCEPTION_EVERY == _EXCEPTION_EVERY - 1)
    return (value_of_class(label) + other) % 2


def tint(image: np.ndarray, masks: np.ndarray, value: int) -> np.ndarray:
    """The image, uint8 [S, S, 3], tinted by value where `masks` uint16 [S, S] show no aircraft."""
    tinted = (1 - _TINT) * image + _TINT * _COLOURS[value][None, None, :]
    on_aircraft = (masks >> AIRCRAFT_BIT & 1).astype(bool)[:, :, None]
    return np.where(on_aircraft, image, np.rint(tinted).astype(np.uint8))
