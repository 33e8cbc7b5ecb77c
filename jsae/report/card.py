"""A feature as a card for a notebook: HTML with the pictures inside, no files, no script.

study = jsae.load("runs/demo")
study.show(12)
"""

import dataclasses

from jsae.report import features_page, pages, pictures, strips
from jsae.report.formatting import shown, with_interval

_FEW = "it fires on fewer than 20 test images"
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
    images,
    maps,
    grid: tuple[int, int],
    effect: dict | None,
    atlas: dict | None = None,
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
      atlas: its row of atlas.parquet, which has the same effect of every feature, without a control.
    """
    largest = max((patch["value"] for patch in patches), default=1.0) or 1.0
    pictured = []
    for i, patch in enumerate(patches if images is not None else []):
        heat = "" if maps is None else strips.heat_squares(maps[i], largest)
        pictured.append(patch | {"src": pictures.data_uri(images[i]), "heat": heat})
    page = {
        "feature": row,
        "columns": _columns(row, effect, atlas),
        "patches": pictured,
        "n_patches": len(patches),
        "grid": grid,
    }
    return FeatureCard(row["feature"], pages.render("card.html", page).decode())


def _columns(row: dict, effect: dict | None, atlas: dict | None) -> list[tuple]:
    """(head, explanation, value as HTML) of each number."""
    known = {name: (head, what, reason) for name, head, what, reason in features_page.COLUMNS}
    columns = []
    for name in ("purity16", "selectivity_excess", "auroc", "density"):
        head, what, reason = known[name]
        columns.append((head, what, shown(row[name], reason)))
    columns.append(("max", "largest value on test, in the units of the activations", shown(row["max"])))
    found = {"removed": _removed(effect, atlas), "effect_minus_direction": _minus_control(effect, atlas)}
    return columns + [(f"{known[name][0]} [95%]", known[name][1], value) for name, value in found.items()]


def _removed(effect: dict | None, atlas: dict | None):
    if effect is not None:
        return with_interval(effect["mean_delta"], (effect["ci95_low"], effect["ci95_high"]), _FEW)
    if atlas is not None:
        name = "map_top_class_margin"
        return with_interval(atlas[name], (atlas[f"{name}_low"], atlas[f"{name}_high"]), _FEW)
    return shown(None, _NOT_ABLATED)


def _minus_control(effect: dict | None, atlas: dict | None):
    if effect is None:
        return shown(None, _NOT_ABLATED if atlas is None else _WITHOUT_CONTROL)
    name = "effect_minus_direction"
    return with_interval(effect[name], (effect[f"{name}_low"], effect[f"{name}_high"]), _FEW)
