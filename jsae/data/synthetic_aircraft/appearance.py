"""What varies from image to image and says nothing about the variant: pose, shape, livery, light, sky, noise.

Every number is drawn for every image, in one fixed order, whether or not the variant has the part it belongs
to. So the same generator gives the same appearance to every variant.
"""

import colorsys
import math

import numpy as np

_RANGES = {
    # pose; angles in degrees, lengths as a share of the image side
    "yaw": (-18.0, 18.0),
    "elevation": (18.0, 30.0),
    "pitch": (-12.0, 12.0),
    "length": (0.74, 0.9),
    "shift_x": (-0.03, 0.03),
    "shift_y": (-0.07, 0.07),
    # proportions, as a share of the fuselage's length
    "radius": (0.092, 0.112),
    "span": (0.44, 0.52),
    "chord": (0.21, 0.25),
    "sweep": (0.04, 0.20),
    "dihedral": (0.0, 0.06),
    "wing_x": (0.07, 0.12),
    "fin_height": (0.24, 0.30),
    "nacelle": (0.9, 1.15),
    "blade_angle": (0.0, 120.0),
    # livery
    "stripe": (0.0, 1.0),
    "belly": (0.0, 1.0),
    "radome": (0.0, 1.0),
    "stripe_angle": (-40.0, -10.0),
    # light and sky
    "light_angle": (-60.0, 60.0),
    "ambient": (0.5, 0.75),
    "gain": (0.85, 1.1),
    "warmth": (-0.08, 0.08),
    "noise": (1.0, 4.0),
    "cloud_cover": (0.0, 1.0),
    "cloud_grey": (0.6, 0.95),
    "horizon": (0.0, 1.0),
    "horizon_y": (0.55, 0.95),
    "horizon_tilt": (-8.0, 8.0),
}

# ranges of saturation and value of the livery; the hue is free
_COLOURS = {
    "fuselage": ((0.0, 0.5), (0.4, 1.0)),
    "wing": ((0.0, 0.5), (0.4, 1.0)),
    "accent": ((0.3, 0.8), (0.4, 1.0)),
    "engine": ((0.0, 0.5), (0.4, 1.0)),
    "stripe_colour": ((0.3, 0.8), (0.3, 1.0)),
    "belly_colour": ((0.0, 0.5), (0.4, 0.9)),
}

# (hue, saturation, value) at the top and at the horizon; hue and value vary around them
_SKIES = (
    ((0.60, 0.70, 0.75), (0.56, 0.25, 0.95)),  # clear day
    ((0.58, 0.15, 0.60), (0.58, 0.08, 0.85)),  # overcast
    ((0.66, 0.55, 0.40), (0.07, 0.60, 0.95)),  # dusk
    ((0.62, 0.70, 0.30), (0.60, 0.50, 0.55)),  # late evening
    ((0.53, 0.45, 0.85), (0.12, 0.20, 0.97)),  # haze
)


def sample(rng: np.random.Generator) -> dict:
    """Draws the appearance of one image.

    Args:
        rng: only `random()` is called, the generator method whose stream numpy keeps stable.

    Returns:
        name -> float, except `flip` (bool), `sky` (index of a kind of sky) and colours ((r, g, b) in 0..1).
    """
    params = {name: low + (high - low) * rng.random() for name, (low, high) in _RANGES.items()}
    params["flip"] = bool(rng.random() < 0.5)
    for name, (saturation, value) in _COLOURS.items():
        params[name] = colorsys.hsv_to_rgb(rng.random(), _between(rng, saturation), _between(rng, value))
    params["ground"] = colorsys.hsv_to_rgb(  # dull brown to green
        _between(rng, (0.06, 0.42)), _between(rng, (0.1, 0.4)), _between(rng, (0.25, 0.65))
    )
    params["sky"] = math.floor(rng.random() * len(_SKIES))
    for name, (hue, saturation, value) in zip(("sky_top", "sky_low"), _SKIES[params["sky"]], strict=True):
        hue += 0.06 * (rng.random() - 0.5)
        value = min(1.0, value * (0.4 + 0.7 * rng.random()))
        params[name] = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return params


def _between(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()
