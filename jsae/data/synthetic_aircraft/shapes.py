"""An aircraft as flat polygons in 3-D, listed from back to front.

Axes, in lengths of the fuselage: x towards the nose (-0.5 tail, 0.5 nose), y up, z towards the viewer. The
camera looks from the side and above (elevation 18 to 30 degrees) and up to 20 degrees from ahead or behind,
so that one fixed order of painting is right for every pose: far side, fuselage, near side.

Proportions are those of a drawing, not of an aircraft: parts are large enough to be seen at 96 pixels.
Colours come from the livery, never from the variant. What marks a part is fine and both dark and light (dark
edges, panes on a light band, tyres around light hubs), so that its mean colour does not give it away.
"""

import dataclasses
import itertools
import math

import numpy as np

from jsae.data.synthetic_aircraft.variants import NOSES, PART_NAMES

BODY = 1
"""Owner of the polygons that belong to no part; part p owns with id p + 2, the background is 0."""

_DARK = (0.10, 0.11, 0.14)
_LIGHT = (0.95, 0.95, 0.92)
_NOSE_X = 0.25  # the nose part is the fuselage ahead of this
_STRIPS = np.linspace(
    -math.pi, math.pi, 21
)  # angles around the fuselage; 0 faces the viewer, pi/2 is the top
# (x, radius as a share of the largest)
_TAIL_PROFILE = (
    (-0.5, 0.12),
    (-0.42, 0.39),
    (-0.36, 0.57),
    (-0.3, 0.73),
    (-0.22, 0.89),
    (-0.15, 0.97),
    (-0.05, 1.0),
)
_NOSE_PROFILES = {
    "pointed_nose": ((0.18, 1.0), (0.27, 0.80), (0.36, 0.48), (0.45, 0.18), (0.5, 0.04)),
    "round_nose": ((0.30, 1.0), (0.36, 0.96), (0.41, 0.83), (0.44, 0.66), (0.46, 0.42), (0.47, 0.05)),
}
_TURN = np.linspace(0, 2 * math.pi, 16, endpoint=False)
_RING = np.stack([0 * _TURN, np.sin(_TURN), np.cos(_TURN)], 1)  # [16, 3], a circle around the x axis
_WHEEL = np.stack([np.cos(_TURN), np.sin(_TURN), 0 * _TURN], 1)  # [16, 3], a circle around the z axis


@dataclasses.dataclass
class Polygon:
    """A filled polygon or its edge or both.

    Attributes:
        corners: [n, 3].
        fill, edge: RGB in 0..1, or None.
        owner: id of what it belongs to (see BODY).
        kind: "convex" corners in order; "hull" of corners in any order, as the camera sees them; "strip"
            between two curves of n/2 corners, the second one backwards, filled quad by quad.
    """

    corners: np.ndarray
    fill: tuple | None
    edge: tuple | None
    owner: int
    kind: str = "convex"


def owner_of(part: str) -> int:
    """Id under which a part's polygons are painted."""
    return PART_NAMES.index(part) + 2


class Aircraft:
    """The polygons of one aircraft, from its parts and its appearance.

    Attributes:
        polygons: in painting order.
        propeller: corners [n, 3] of the disc that the propeller sweeps, or None.
    """

    def __init__(self, parts: frozenset[str], params: dict):
        self.parts = parts
        self.params = params
        self.polygons: list[Polygon] = []
        self.propeller: np.ndarray | None = None
        yaw, elevation, light = (math.radians(params[name]) for name in ("yaw", "elevation", "light_angle"))
        level = math.cos(elevation)
        self._to_camera = (-math.sin(yaw) * level, math.sin(elevation), math.cos(yaw) * level)
        self._to_light = (0.0, math.cos(light), math.sin(light))

        self._far_side()
        self._fuselage()
        self._fin()
        self._near_side()

    def _far_side(self):
        if "fixed_gear" in self.parts:
            self._wheel(0.0, -0.25, -0.13, 0.055)
        self._wings(side=-1)
        if "tail_engines" in self.parts:
            self._nacelle("tail_engines", -0.20, 0.07, -0.15)
        if "conventional_tail" in self.parts:
            self._stabiliser(0.05, side=-1)

    def _near_side(self):
        if "conventional_tail" in self.parts:
            self._stabiliser(0.05, side=1)
        if "tail_engines" in self.parts:
            self._nacelle("tail_engines", -0.20, 0.07, 0.15)
        if "fixed_gear" in self.parts:
            self._wheel(0.33, -0.20, 0.0, 0.042)
            self._wheel(0.0, -0.25, 0.13, 0.055)
        self._wings(side=1)
        if "nose_propeller" in self.parts:
            self._propeller()

    def _wings(self, side: int):
        """Wings of one side, lowest first, with their engines, struts and winglets."""
        radius, tip = self.params["radius"], side * self.params["span"]
        low, high, above = -0.65 * radius, radius, 2.1 * radius
        part, heights = {
            "low_wing": ("low_wing", (low,)),
            "high_wing": ("high_wing", (high,)),
            "biplane": ("biplane", (low, above)),
        }[next(name for name in ("low_wing", "high_wing", "biplane") if name in self.parts)]

        for height in heights:
            if height == heights[0]:
                self._wing_engines(height, side)
            if height == above:
                for along in (0.1, 0.75):
                    ends = ((low, along), (low, along + 0.12), (above, along + 0.12), (above, along))
                    self._add([self._on_wing(h, a, 0.72 * tip) for h, a in ends], _LIGHT, part)
            root = side * 0.5 * radius if height == low else 0.0
            colour = self._lit("wing", (0, 1, 0))
            plan = ((0, root), (0, tip), (1, tip), (1, root))
            self._add([self._on_wing(height, a, z) for a, z in plan], colour, part)
            flap = ((0.72, root), (0.72, tip), (1, tip), (1, root))
            flap_colour = self._lit("wing", (0, 1, 0), 0.82)
            self._add([self._on_wing(height, a, z) for a, z in flap], flap_colour, part, edge=False)
        if "winglets" in self.parts:
            front, back = (self._on_wing(heights[-1], along, tip) for along in (-0.05, 1.1))
            top, z = front[1] + 0.15, tip + side * 0.02
            corners = [front, [back[0] - 0.01, top, z], [back[0] - 0.08, top, z], back]
            self._add(corners, self._lit("accent", (0, 0, 1)), "winglets")
            band = [_between(front, corners[1], 0.35), _between(front, corners[1], 0.7)]
            band += [_between(back, corners[2], 0.7), _between(back, corners[2], 0.35)]
            self._add(band, _LIGHT, "winglets")

    def _on_wing(self, height: float, along: float, z: float) -> list[float]:
        """A point of the wing with its root at `height`; along 0 is the leading edge, 1 the trailing edge."""
        p = self.params
        out = abs(z) / p["span"]
        chord = p["chord"] * (1.0 - 0.4 * out)
        return [p["wing_x"] - p["sweep"] * out - along * chord, height + p["dihedral"] * out, z]

    def _wing_engines(self, height: float, side: int):
        for part, z in (("outer_engines", 0.38), ("wing_engines", 0.19)):
            if part in self.parts:
                x, y, _ = self._on_wing(height, 0.0, z)
                self._nacelle(part, x + 0.05, y - 0.035, side * z)

    def _nacelle(self, part: str, x: float, y: float, z: float):
        """An engine: a capsule from x - 0.14 to x + 0.07 with a light lip; outer engines have dark hoops."""
        scale = self.params["nacelle"]

        def ring(offset: float, radius: float) -> np.ndarray:
            return np.array([x + offset * scale, y, z]) + _RING * (radius * 0.055 * scale)

        rings = [ring(-0.14, 0.45), ring(-0.08, 0.85), ring(0.0, 1.0), ring(0.05, 0.95), ring(0.07, 0.85)]
        self._hull(rings, self._lit("engine", (0, 0.3, 1), 0.8), part)
        upper = [points[_RING[:, 1] > 0.2] for points in rings]
        self._hull(upper, self._lit("engine", (0, 1, 0.3), 1.1), part, edge=False)
        if part == "outer_engines":
            for start, radius in ((-0.09, 0.85), (-0.03, 1.0)):
                self._hull([ring(start, radius), ring(start + 0.025, radius)], _DARK, part, edge=False)
        self._hull(rings[-2:], _LIGHT, part)
        if self._to_camera[0] > 0:  # seen from ahead: the intake, else the exhaust
            self._hull([ring(0.07, 0.72)], _DARK, part, edge=False)
        else:
            self._hull(rings[:1], _DARK, part, edge=False)

    def _fuselage(self):
        """A body of revolution in two sections, tail and nose, shaded strip by strip around its axis."""
        p = self.params
        nose = next(name for name in NOSES if name in self.parts)
        profile = np.array(_TAIL_PROFILE + _NOSE_PROFILES[nose])

        def skin(low: float, high: float, x0: float, x1: float) -> np.ndarray:
            """The strip [n, 3] of skin between two angles and two x."""
            bends = profile[:, 0]
            x = np.concatenate([[x0], bends[(bends > x0) & (x1 > bends)], [x1]])
            n = len(x)
            radius = np.interp(x, profile[:, 0], profile[:, 1]) * p["radius"]
            axis = np.interp(x, (-0.5, -0.15, 0.25, 0.5), (0.055, 0.0, 0.0, -0.015))
            patch = np.empty((2 * n, 3))
            for rows, angle in ((slice(0, n), low), (slice(2 * n, n - 1, -1), high)):
                patch[rows, 0] = x
                patch[rows, 1] = axis + radius * math.sin(angle)
                patch[rows, 2] = radius * math.cos(angle)
            return patch

        strips = []  # (low, high, normal) of those that face the camera
        for low, high in itertools.pairwise(_STRIPS):
            normal = (0.0, math.sin((low + high) / 2), math.cos((low + high) / 2))
            if _dot(normal, self._to_camera) > -0.25:
                strips.append((low, high, normal))
        sections = ((BODY, -0.5, _NOSE_X), (owner_of(nose), _NOSE_X, profile[-1, 0]))
        patches = [[skin(low, high, x0, x1) for low, high, _ in strips] for _, x0, x1 in sections]
        for (owner, _, _), section in zip(sections, patches, strict=True):
            for patch in section:  # the edge of all, of which the strips leave the outer half
                self.polygons.append(Polygon(patch, None, _edge_of(p["fuselage"]), owner, "strip"))
        belly = math.radians(p["stripe_angle"] - 8.0)
        for (owner, _, _), section in zip(sections, patches, strict=True):
            for patch, (low, high, normal) in zip(section, strips, strict=True):
                colour = "fuselage"
                if owner != BODY and p["radome"] < 0.35:
                    colour = "accent"
                elif p["belly"] < 0.5 and (low + high) / 2 < belly:
                    colour = "belly_colour"
                self.polygons.append(Polygon(patch, self._lit(colour, normal), None, owner, "strip"))
        if p["stripe"] < 0.6:
            low = math.radians(p["stripe_angle"])
            for owner, x0, x1 in sections:
                fill = self._lit("stripe_colour", (0, 0, 1))
                self.polygons.append(Polygon(skin(low, low + 0.3, x0, x1), fill, None, owner, "strip"))
        self._add(skin(math.radians(28), math.radians(85), 0.265, 0.335), _DARK, nose, False, "strip")

        if "window_row" in self.parts:
            low, high = math.radians(2), math.radians(34)
            self._add(skin(low, high, -0.33, 0.24), _LIGHT, "window_row", False, "strip")
            for left in np.arange(-0.32, 0.21, 0.0715):
                self._add(skin(low, high, left, left + 0.043), _DARK, "window_row", False, "strip")

    def _fin(self):
        part = "t_tail" if "t_tail" in self.parts else "conventional_tail"
        top = 0.06 + self.params["fin_height"]
        fin = [[-0.25, 0.08, 0], [-0.43, top, 0], [-0.55, top, 0], [-0.49, 0.06, 0]]
        self._add(fin, self._lit("accent", (0, 0.2, 1)), part)
        rudder = [[-0.51, top, 0], [-0.55, top, 0], [-0.49, 0.06, 0], [-0.44, 0.06, 0]]
        self._add(rudder, self._lit("accent", (0, 0.2, 1), 0.75), part, edge=False)
        if part == "t_tail":
            for side in (-1, 1):
                self._stabiliser(top, side)

    def _stabiliser(self, height: float, side: int):
        part = "t_tail" if "t_tail" in self.parts else "conventional_tail"
        tip = side * 0.25
        corners = [[-0.36, height, 0], [-0.45, height, tip], [-0.55, height, tip], [-0.54, height, 0]]
        self._add(corners, self._lit("wing", (0, 1, 0)), part)

    def _wheel(self, x: float, y: float, z: float, radius: float):
        leg = [[x - 0.018, -0.06, z * 0.6], [x + 0.018, -0.06, z * 0.6], [x + 0.018, y, z], [x - 0.018, y, z]]
        self._add(leg, _LIGHT, "fixed_gear")
        self._add(_WHEEL * radius + [x, y, z], _DARK, "fixed_gear")
        self._add(_WHEEL * (0.6 * radius) + [x, y, z], _LIGHT, "fixed_gear", edge=False)

    def _propeller(self):
        """Three blades and a spinner; the disc they sweep is blended over the image afterwards.

        The disc is sheared along x until it looks at least 20 degrees open: from the side it would be a line.
        """
        x = 0.48 if "round_nose" in self.parts else 0.5
        seen = self._to_camera[0]
        shear = 0.0 if abs(seen) > 0.34 else math.copysign(0.34, seen) - seen

        def on_disc(angles: np.ndarray, radius: float) -> np.ndarray:
            across, up = np.cos(angles) * radius, np.sin(angles) * radius
            return np.stack([x - shear * across, up - 0.015, across], 1)

        self.propeller = on_disc(_TURN, 0.2)
        self.polygons.append(Polygon(self.propeller, None, _DARK, owner_of("nose_propeller")))
        for blade in range(3):
            angle = math.radians(self.params["blade_angle"] + 120.0 * blade)
            outer = on_disc(angle + np.array([-0.14, 0.14]), 0.2)
            inner = on_disc(angle + np.array([0.7, -0.7]), 0.03)
            self._add(np.concatenate([outer, inner]), _DARK, "nose_propeller", edge=False)
        base, tip = (np.array([x + ahead, -0.015, 0]) for ahead in (-0.03, 0.045))
        self._hull(
            [base + _RING * 0.04, tip + _RING * 0.008], self._lit("accent", (0, 0.5, 1)), "nose_propeller"
        )

    def _add(self, corners, fill: tuple, part: str, edge: bool = True, kind: str = "convex"):
        edge_colour = _edge_of(fill) if edge else None
        self.polygons.append(Polygon(np.array(corners), fill, edge_colour, owner_of(part), kind))

    def _hull(self, rings: list[np.ndarray], fill: tuple, part: str, edge: bool = True):
        self._add(np.concatenate(rings), fill, part, edge, "hull")

    def _lit(self, colour: str, normal: tuple, factor: float = 1.0) -> tuple:
        """A colour of the livery under the light: ambient plus diffuse, on a surface with this normal."""
        facing = max(0.0, _dot(normal, self._to_light)) / math.hypot(*normal)
        light = (self.params["ambient"] + (1.05 - self.params["ambient"]) * facing) * factor
        return tuple(min(1.0, channel * light) for channel in self.params[colour])


def _edge_of(fill: tuple) -> tuple:
    return tuple(0.3 * channel for channel in fill)


def _between(a: list[float], b: list[float], share: float) -> list[float]:
    return [x + share * (y - x) for x, y in zip(a, b, strict=True)]


def _dot(a: tuple, b: tuple) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))
