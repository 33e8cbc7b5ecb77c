"""A feature as a card for a notebook: HTML with the pictures inside, no files, no script.

study = jsae.load("runs/demo")
study.show(12)
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from jsae.report import pictures
from jsae.report.figures import strips
from jsae.report.formatting import estimate, shown
from jsae.report.pages import render
from jsae.report.pages.features import COLUMNS, RARE

_WITHOUT_CONTROL = "not among the features that were ablated beside a control"
_NOT_ABLATED = "no stage of this study has removed it"


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
    maps: Sequence[np.ndarray] | None,
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
    for i, patch in enumerate(patches if images is not None else []):
        heat = "" if maps is None else strips.heat_squares(maps[i], largest)
        pictured.append(patch | {"src": pictures.data_uri(images[i]), "heat": heat})
    page = {
        "feature": row,
        "columns": _columns(row, effect, all_features),
        "patches": pictured,
        "n_patches": len(patches),
        "grid": grid,
    }
    return FeatureCard(row["feature"], render.render("card.html", page).decode())


def _columns(row: dict, effect: dict | None, all_features: dict | None) -> list[tuple[str, str, Markup]]:
    """(head, explanation, value as HTML) of each number."""
    known = {name: (head, what, reason) for name, head, what, reason in COLUMNS}
    columns = []
    for name in ("purity16", "selectivity_excess", "auroc", "density"):
        head, what, reason = known[name]
        columns.append((head, what, shown(row[name], reason)))
    columns.append(("max", "largest value on test, in the units of the activations", shown(row["max"])))
    if effect is not None:
        removed = estimate(effect, "mean_delta", RARE)
        difference = estimate(effect, "effect_minus_direction", RARE)
    elif all_features is not None:
        removed = estimate(all_features, "map_top_class_margin", RARE)
        difference = shown(None, _WITHOUT_CONTROL)
    else:
        removed = difference = shown(None, _NOT_ABLATED)
    for name, value in (("removed", removed), ("effect_minus_direction", difference)):
        head, what, _ = known[name]
        columns.append((f"{head} [95%]", what, value))
    return columns
