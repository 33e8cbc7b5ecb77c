"""Twins of a drawn set, and drawings of any set of parts."""

import numpy as np
import pytest

from jsae.data.synthetic_aircraft import drawing
from jsae.data.twins import Twins, twins_of

TWINS = Twins(seed=0, image_px=48)


def same(a, b):
    return all(
        np.array_equal(getattr(a, name), getattr(b, name)) for name in ("image", "part_masks", "parts")
    )


def test_pairs_differ_in_one_part_and_are_all_there():
    variants = [variant.parts for variant in drawing.VARIANTS]
    by_hand = {
        (next(iter(b - a)), i, j)
        for i, a in enumerate(variants)
        for j, b in enumerate(variants)
        if len(b) == len(a) + 1 and a < b
    }
    assert {tuple(pair) for pair in TWINS.pairs} == by_hand and len(TWINS.pairs) == 9
    assert len({pair.part for pair in TWINS.pairs}) == 7


def test_the_drawing_of_an_index_in_its_own_class_is_the_image_of_the_set():
    for index in (0, 7):
        of_set = drawing.draw(0, "test", index, 48)
        assert same(TWINS.draw(of_set.label, "test", index), of_set)


def test_any_parts_are_drawn_and_those_of_a_variant_are_the_variant():
    variant = drawing.VARIANTS[3]
    assert same(TWINS.draw_parts(variant.parts, "train", 5), TWINS.draw(3, "train", 5))
    more = TWINS.draw_parts([*variant.parts, "winglets"], "train", 5)
    assert more.label is None and more.parts.sum() == len(variant.parts) + 1
    winglets = more.part_masks[TWINS.part_names.index("winglets")]
    assert winglets.any()
    assert more.params == TWINS.draw(3, "train", 5).params  # pose, livery, light and sky stay
    changed = (more.image != TWINS.draw(3, "train", 5).image).any(-1)
    grown = np.pad(winglets, 3)  # antialiasing and outlines reach over the mask's edge
    near = np.max([np.roll(grown, (y, x), (0, 1)) for y in range(-2, 3) for x in range(-2, 3)], axis=0)
    assert changed.any() and not (changed & ~near[3:-3, 3:-3]).any()


def test_parts_that_make_no_aircraft_are_named():
    with pytest.raises(ValueError, match="exactly one of low_wing"):
        TWINS.draw_parts({"t_tail", "pointed_nose"}, "train", 0)
    with pytest.raises(ValueError, match=r"unknown parts \['rotor'\]"):
        TWINS.draw_parts({"rotor"}, "train", 0)


def test_combinations_are_no_class_and_differ_in_the_part_of_their_pair():
    variants = {variant.parts for variant in drawing.VARIANTS}
    found = TWINS.combinations(2)
    assert len(found) == len(set(found)) == 2 * len(TWINS.pairs)
    assert list(dict.fromkeys(each.pair for each in found)) == list(TWINS.pairs)
    for pair, without, with_part in found:
        assert with_part - without == {pair.part} and without < with_part
        assert not {without, with_part} <= variants
        TWINS.draw_parts(without, "test", 1)  # an aircraft
    n_engines = sum(each.pair == TWINS.pairs[2] for each in TWINS.combinations(99))
    assert TWINS.pairs[2].part == "outer_engines" and n_engines == 4  # they go with wing engines


def test_masks_are_packed_as_a_split_keeps_them():
    example = TWINS.draw(0, "val", 2)
    masks = TWINS.masks(example)
    assert masks.dtype == np.uint16 and masks.shape == (48, 48)
    for part in range(len(TWINS.part_names)):
        np.testing.assert_array_equal(masks >> part & 1, example.part_masks[part])
    np.testing.assert_array_equal(masks >> 15, example.aircraft_mask)


def test_only_drawn_data_have_twins():
    assert twins_of({"kind": "synthetic_aircraft", "seed": 3, "image_size": 48}) == Twins(3, 48)
    assert twins_of({"kind": "fgvc_aircraft"}) is None
