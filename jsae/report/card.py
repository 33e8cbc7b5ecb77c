"""A feature as a card for a notebook: HTML with the pictures inside, no files, no script.

study = jsae.load("runs/demo")
study.show(12)
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jsae.report import pictures
from jsae.report.figures import strips
from jsae.report.pages import render


@dataclasses.dataclass(frozen=True)
class FeatureCard:
    """What `Study.show` returns; a notebook displays it, `html` is its text."""

    feature: int
    html: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return f"FeatureCard({self.feature}), which a notebook displays; .html is its text"


def make_card(
    row: dict,
    patches: list[dict],
    *,
    images: Sequence[np.ndarray] | None,
    maps: np.ndarray | Sequence[np.ndarray] | None,
    grid: tuple[int, int],
    effect: dict | None,
    all_features: dict | None = None,
) -> FeatureCard:
    """The card of one feature.

    Args:
      row: the feature's row of features.parquet.
      patches: rows of top_patches.parquet, best first.
      images: uint8 [S, S, 3] of each patch, or None without images.
      maps: float [H, W] of each patch in raw units, or None.
      grid: (H, W).
      effect: the row of feature_space.parquet for the margin of the top class, removed at every position, or
        None if it is not among the features ablated there.
      all_features: its row of all_features.parquet, which has the same effect of every feature, without a
        control.
    """
    largest = max((patch["value"] for patch in patches), default=1.0) or 1.0
    pictured = []
    for i, (patch, image) in enumerate(zip(patches, [] if images is None else images, strict=False)):
        heat = "" if maps is None else strips.heat_squares(maps[i], largest)
        pictured.append(patch | {"src": pictures.data_uri(image), "heat": heat})
    page = {
        "feature": row,
        "effect": effect,
        "all_features": all_features,
        "patches": pictured,
        "n_patches": len(patches),
        "grid": grid,
    }
    return FeatureCard(row["feature"], render.render("card.html", page).decode())
