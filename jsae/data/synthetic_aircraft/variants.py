"""The parts an aircraft is drawn from, and the variants (classes) made of them.

Three choices are always made: wing (low, high, biplane), tail (T-tail, conventional) and nose (pointed,
round); every option is a part. Seven more parts are present or absent. Every part occurs in 3 to n-3 of the
n variants, so that no part stands for one class.

A *twin* of a variant has the same parts but for a single added or missing one. Swapping one option of a
choice for another (two parts change) does not count. All variants but the last have a twin, and each of the
seven optional parts is what sets some pair of twins apart: a classifier must find the part to tell the two.
"""

import dataclasses

WINGS = ("low_wing", "high_wing", "biplane")
TAILS = ("t_tail", "conventional_tail")
NOSES = ("pointed_nose", "round_nose")
OPTIONAL = (
    "nose_propeller",
    "wing_engines",
    "outer_engines",
    "tail_engines",
    "fixed_gear",
    "window_row",
    "winglets",
)
PART_NAMES = WINGS + TAILS + NOSES + OPTIONAL
"""Part p of every mask array is PART_NAMES[p]; bit p of the stored bitmask."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """A class of the data set: its name and the parts it is made of."""

    name: str
    parts: frozenset[str]

    def __post_init__(self):
        unknown = self.parts - set(PART_NAMES)
        if unknown:
            raise ValueError(
                f"variant {self.name!r}: unknown parts {sorted(unknown)}; valid: {', '.join(PART_NAMES)}"
            )
        for options in (WINGS, TAILS, NOSES):
            if len(self.parts & set(options)) != 1:
                raise ValueError(f"variant {self.name!r}: expected exactly one of {', '.join(options)}")
        if "outer_engines" in self.parts and "wing_engines" not in self.parts:
            raise ValueError(f"variant {self.name!r}: outer_engines go with wing_engines")


def _variant(name: str, parts: str) -> Variant:
    return Variant(name, frozenset(parts.split()))


VARIANTS = (
    _variant("low-twin", "low_wing conventional_tail round_nose window_row wing_engines"),
    _variant("low-twin-winglets", "low_wing conventional_tail round_nose window_row wing_engines winglets"),
    _variant("low-four", "low_wing conventional_tail round_nose window_row wing_engines outer_engines"),
    _variant("low-three", "low_wing conventional_tail round_nose window_row wing_engines nose_propeller"),
    _variant("tailjet", "low_wing t_tail pointed_nose tail_engines window_row"),
    _variant("tailjet-freighter", "low_wing t_tail pointed_nose tail_engines"),
    _variant("tailjet-four", "low_wing t_tail pointed_nose tail_engines wing_engines"),
    _variant("high-twin", "high_wing t_tail round_nose fixed_gear wing_engines"),
    _variant("high-four", "high_wing t_tail round_nose fixed_gear wing_engines outer_engines"),
    _variant("high-single", "high_wing conventional_tail pointed_nose window_row nose_propeller fixed_gear"),
    _variant("high-single-retract", "high_wing conventional_tail pointed_nose window_row nose_propeller"),
    _variant("high-glider", "high_wing conventional_tail pointed_nose winglets"),
    _variant("high-glider-jet", "high_wing conventional_tail pointed_nose winglets tail_engines"),
    _variant("biplane-single", "biplane conventional_tail round_nose nose_propeller fixed_gear"),
    _variant(
        "biplane-single-plates", "biplane conventional_tail round_nose nose_propeller fixed_gear winglets"
    ),
    _variant("biplane-four", "biplane t_tail round_nose wing_engines outer_engines fixed_gear"),
)
