"""Page data of one feature's page: what it sees, and what it does."""

import re

import numpy as np

from jsae import metrics
from jsae.report import pictures
from jsae.report.figures import strips
from jsae.report.figures.histograms import value_histogram
from jsae.report.formatting import is_known
from jsae.report.pages.render import template_text
from jsae.report.results import Results
from jsae.tables import interval

_MAX_BARS = 10
_MAX_NEAREST = 6
_MAX_CLASSES = 8
# Columns that the template names have a place there; any other one is listed by its name.
_PLACED = {"alive", "top_class", *re.findall(r"feature\.(\w+)", template_text("feature.html"))}
_KINDS = {
    "decoder": ("Most similar direction", "cosine of the decoder rows"),
    "coactivation": ("Most often active together", "shared vectors over the root of the product of both"),
}
SCOPES = {"map": "removed at every grid position", "peak": "removed at its peak only"}
TARGETS = {
    "own_class": "its top class, on images of that class",
    "top_class": "its top class",
    "label": "the label",
    "prediction": "the clean prediction",
}
MEASURES = ("margin", "logit", "confidence", "log_confidence")


def feature_data(results: Results, feature: int, image_page: dict[int, str]) -> dict:
    """Everything a feature's page shows.

    Args:
      results: of the study.
      feature: one of `results.chosen`.
      image_page: image -> the page that describes it, for those that one does.
    """
    row = results.feature(feature)
    position = results.chosen.index(feature)
    survey = results.survey
    histogram = ""
    if survey.histograms is not None and row["max"]:
        title = f"Values of feature {feature} on the test vectors where it fires"
        histogram = value_histogram(title, survey.histograms[feature], row["max"])
    return {
        "feature": row,
        "previous": results.chosen[position - 1] if position else None,
        "next": results.chosen[position + 1] if position + 1 < len(results.chosen) else None,
        "patches": [
            patch
            | {
                "map": pictures.map_text(survey.maps.get((patch["image"], feature))),
                "page": image_page.get(patch["image"]),
            }
            for patch in results.patches(feature)
        ],
        "purity_by_chance": results.purity_by_chance,
        "bars": class_bars(results, feature),
        "histogram": histogram,
        "nearest": nearest(results, feature),
        "twin": results.twin.get(feature),
        "more": {name: row[name] for name in row if name not in _PLACED},
        "docs": results.docs,
        "main_effect": results.main_effect(feature, target="own_class", scope="map"),
        "scopes": {
            text: groups
            for scope, text in SCOPES.items()
            if (groups := by_target(results.rows("feature_space", feature, scope=scope)))
        },
        "blurred": results.rows("input_space", feature, target="top_class", measure="margin"),
        "all_features": next(iter(results.rows("all_features", feature)), None),
        "targets": {name: text for name, text in TARGETS.items() if name != "own_class"},
        "measures": MEASURES[:-1],  # of the table of all features, which is on every page
        "by_class": by_class(results, feature),
        "two_spaces": two_spaces(results, feature),
    }


def class_bars(results: Results, feature: int) -> dict | None:
    """Mean pooled activation of the strongest classes, with what shuffled labels would give.

    The null is the mean over all images; its range is where 95% of shuffled labels put a class of that size,
    normal, images drawn without replacement.
    """
    names, sizes = results.facts["class_names"], results.facts["class_sizes"]
    means = results.class_means(feature) if names else None
    if means is None or not np.isfinite(means).any():
        return None
    known = np.isfinite(means)
    null = float(np.average(means[known], weights=sizes[known])) if sizes[known].any() else None
    order = np.argsort(-np.where(known, means, -np.inf), kind="stable")[:_MAX_BARS]
    largest = max(float(np.nanmax(means)), null or 0.0)
    rows = []
    for c in (int(c) for c in order if known[c]):
        band = _band(results, feature, null, int(sizes[c]))
        bar = strips.class_bar(float(means[c]), largest, band or (None if null is None else (null, null)))
        rows.append({"name": names[c], "value": float(means[c]), "band": band, "bar": bar})
    return {"rows": rows, "null": null, "n_more": len(means) - len(rows)}


def _band(results: Results, feature: int, null: float | None, size: int) -> tuple[float, float] | None:
    """The range of a class mean under shuffled labels, None where the spread over images is not known."""
    if results.survey.pooled_sd is None or null is None or not size:
        return None
    n = int(np.sum(results.facts["class_sizes"]))
    share = (n - size) / (n - 1) if n > 1 else 0.0
    half = metrics.Z95 * float(results.survey.pooled_sd[feature]) * (share / size) ** 0.5
    return max(null - half, 0.0), null + half


def nearest(results: Results, feature: int) -> list[tuple[str, str, list[dict]]]:
    """Groups of similar features from nearest.parquet: title, what the number is, rows."""
    groups = {kind: [] for kind in sorted(_KINDS)}
    for row in sorted(results.rows("nearest", feature), key=lambda row: row["rank"]):
        group = groups[row["kind"]]
        if is_known(row["value"]) and len(group) < _MAX_NEAREST:
            has_page = row["other"] in results.chosen
            name = results.feature(row["other"])["top_class_name"] if has_page else None
            group.append(row | {"page": has_page, "name": name})
    return [(*_KINDS[kind], rows) for kind, rows in groups.items() if rows]


def by_target(rows: list[dict]) -> dict[str, list[dict]]:
    """The target in words -> its rows of feature_space.parquet, by measure."""
    groups = {
        text: sorted(
            (row for row in rows if row["target"] == target), key=lambda row: MEASURES.index(row["measure"])
        )
        for target, text in TARGETS.items()
    }
    return {text: group for text, group in groups.items() if group}


def by_class(results: Results, feature: int) -> dict | None:
    """Change of the label's margin by class of the image, the largest changes first, as a forest plot.

    An interval is the mean ± 1.96 standard errors over the images of the class.
    """
    names = results.facts["class_names"]
    rows = [
        row
        for row in results.rows("all_features_by_class", feature)
        if is_known(row["label_margin"]) and row["n_active"]
    ]
    if not rows or not names:
        return None
    rows.sort(key=lambda row: (-abs(row["label_margin"]), row["class"]))
    drawn = rows[:_MAX_CLASSES]
    for row in drawn:
        mean, error = row["label_margin"], row["label_margin_se"]
        half = metrics.Z95 * error if is_known(error) else float("nan")
        row |= interval("label_margin", mean, mean - half, mean + half) | {"name": names[row["class"]]}
    return {"rows": drawn, "axis": strips.forest(drawn, "label_margin"), "n_more": len(rows) - len(drawn)}


def two_spaces(results: Results, feature: int) -> dict | None:
    """The top class's margin: feature removed at its peak, then each placement whose blur has an effect."""
    removed = results.main_effect(feature, scope="peak")
    names = {"name": "feature removed at its peak"}
    rows = [] if removed is None else [names | removed | {"control": removed["control_direction_mean_delta"]}]
    for row in results.rows("input_space", feature, target="top_class", measure="margin"):
        names = {
            "name": f"blurred: {row['placement']}, area of the {row['area']}",
            "n_active": row["n_qualified"],
        }
        rows.append(row | names | {"control": row["control_mean_delta"]})
    rows = [row for row in rows if is_known(row["mean_delta"])]
    if not rows:
        return None
    return {"rows": rows, "axis": strips.forest(rows, "mean_delta", "control")}
