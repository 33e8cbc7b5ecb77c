"""A feature as a card for a notebook: HTML with the pictures inside, no files, no script.

study = jsae.load("runs/demo")
study.show(12)
"""

import dataclasses

from jsae.report import pages, pictures, strips
from jsae.report.formatting import is_known


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
    row: dict, patches: list[dict], *, images, maps, grid: tuple[int, int], effect: dict | None
) -> FeatureCard:
    """The card of one feature.

    Args:
      row: the feature's row of features.parquet.
      patches: rows of top_patches.parquet, best first.
      images: uint8 [S, S, 3] of each patch, or None without images.
      maps: float [H, W] of each patch in raw units, or None.
      grid: (H, W).
      effect: the row of feature_space.parquet for the margin of the top class, removed at every position, or
        None if it was not ablated.
    """
    largest = max((patch["value"] for patch in patches), default=1.0) or 1.0
    shown = []
    for i, patch in enumerate(patches if images is not None else []):
        heat = "" if maps is None else strips.heat_squares(maps[i], largest)
        shown.append(patch | {"src": pictures.data_uri(images[i]), "heat": heat})
    known = effect if effect is not None and is_known(effect["mean_delta"]) else None
    page = {"feature": row, "patches": shown, "n_patches": len(patches), "effect": known, "grid": grid}
    return FeatureCard(row["feature"], pages.render("card.html", page).decode())
