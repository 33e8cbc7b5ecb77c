"""What takes a patch's place, by hand, and the sweep over it."""

import jax.numpy as jnp
import numpy as np
import pytest

from jsae.ablation import fill_sweep, fills, input_space
from jsae.ablation.feature_space import MEASURES, TARGETS
from jsae.analysis.tables import documentation, make
from tests.ablation.toy import ToySAE

STRIDE, GRID = 4, (2, 3)
PIXELS = np.random.default_rng(0).normal(size=(6, 9, 12, 3)).astype(np.float32)  # a row beyond the grid


def forward(images):
    b = len(images)
    cells = jnp.square(images[:, :8]).reshape(b, 2, STRIDE, 3, STRIDE, 3).mean((2, 4))
    return 3 * cells.sum((1, 2)), cells


SAE = ToySAE(jnp.eye(3), jnp.eye(3), 0.1)
PAIRS = {
    "features": np.array([0, 0, 0, 2, 2, 2], np.int32),
    "images": np.array([0, 1, 2, 0, 1, 2], np.int32),
    "peaks": np.array([[0, 0], [1, 1], [0, 2], [0, 1], [1, 2], [1, 0]]),
    "labels": np.array([0, 1, 2, 0, 1, 2]),
    "top_classes": np.array([0, 0, 0, 2, 2, 2]),
    "grid": GRID,
    "batch_size": 4,
}


def filled(fill):
    blurs = [fills.blur_matrix(n, 2.0) for n in PIXELS.shape[1:3]]
    order = fills.cell_order(6, 0)
    return np.asarray(
        fills.filled(jnp.asarray(PIXELS), fills.FILLS.index(fill), *blurs, order, GRID, STRIDE)
    ), order


def test_the_mean_colour_is_the_images_own():
    found, _ = filled("mean")
    np.testing.assert_allclose(found[2, 5, 7], PIXELS[2].mean((0, 1)), atol=1e-6)  # float32
    assert (found == found[:, :1, :1]).all()


def test_shuffled_cells_are_the_images_own_and_none_stays():
    found, order = filled("shuffle")
    assert sorted(order) == list(range(6)) and (order != np.arange(6)).all()
    for cell, source in enumerate(order):
        (y, x), (sy, sx) = divmod(cell, 3), divmod(source, 3)
        mine, theirs = (
            array[:, 4 * a : 4 * a + 4, 4 * b : 4 * b + 4]
            for array, a, b in ((found, y, x), (PIXELS, sy, sx))
        )
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(found[:, 8], PIXELS[:, 8])


def test_an_unknown_fill_is_told_the_valid_ones():
    with pytest.raises(ValueError, match="no fill 'grey'; valid are blur, mean, shuffle"):
        fill_sweep.settings(("blur", "grey"), (1.0,), (1,))
    with pytest.raises(ValueError, match="no fill 'grey'"):
        input_space.measure(
            forward, SAE, None, stride_px=STRIDE, sigma_px=1.0, size_cells=1, fill="grey", **PAIRS
        )


def test_sigma_is_swept_for_the_blur_only():
    points = fill_sweep.settings(("blur", "mean"), (1.0, 2.0), (1, 3))
    assert [tuple(point.values()) for point in points] == [
        ("blur", 1.0, 1),
        ("blur", 2.0, 1),
        ("blur", 1.0, 3),
        ("blur", 2.0, 3),
        ("mean", 0.0, 1),
        ("mean", 0.0, 3),
    ]


def test_each_row_is_a_measurement_of_its_own():
    points = fill_sweep.settings(fills.FILLS, (1.5,), (1,))
    found = fill_sweep.measure(
        *(points, forward, SAE, lambda which: PIXELS[which]),
        stride_px=STRIDE,
        n_active={0: 25, 2: 3},
        n_bootstrap=50,
        seed=0,
        **PAIRS,
    )
    rows = make(found, fill_sweep.SCHEMA).to_pylist()
    assert [(row["fill"], row["feature"]) for row in rows] == [(f, i) for f in fills.FILLS for i in (0, 2)]
    assert [row["sigma_px"] for row in rows] == [1.5, 1.5, None, None, None, None]
    top = TARGETS.index("top_class"), MEASURES.index("margin")
    for row, point in zip(rows[::2], points, strict=True):
        alone = input_space.measure(
            forward, SAE, lambda which: PIXELS[which], stride_px=STRIDE, seed=0, **point, **PAIRS
        )
        own, control = alone.deltas[:3, :, *top].astype(float).T
        assert row["delta_margin"] == pytest.approx(own.mean(), rel=1e-6)
        assert row["control_delta_margin"] == pytest.approx(control.mean(), rel=1e-6)
        assert row["effect_minus_control"] == pytest.approx((own - control).mean(), rel=1e-6)
        assert row["feature_fall"] == pytest.approx(alone.falls[:3, 0].mean(), rel=1e-6)
        assert row["delta_margin_low"] <= row["delta_margin"] <= row["delta_margin_high"]
        assert row["size_px"] == STRIDE and row["n_images"] == 3
    assert all(row["delta_margin"] is None and row["effect_minus_control"] is None for row in rows[1::2])
    assert len({row["delta_margin"] for row in rows[::2]}) == 3
    assert all(documentation(make(found, fill_sweep.SCHEMA)).values())


def test_the_first_images_of_each_feature():
    rows = fill_sweep.first_of_each(np.array([3, 5, 3, 3, 5, 9]), [5, 3], 2)
    np.testing.assert_array_equal(rows, [1, 4, 0, 2])
