"""Page data of the overview's section on effects: means, forest plot, agreement, joint removal, baselines."""

from jsae.report import figures, strips
from jsae.report.any_table import shown_table
from jsae.report.figures import Series
from jsae.report.fill_figures import fill_section
from jsae.report.formatting import is_known, number
from jsae.report.reading import Study

_MAX_FOREST = 40
_FINDS = (
    *("part", "n_images", "feature", "auroc", "pointing", "random_auroc", "centre_auroc"),
    *("position_auroc", "mean_difference_auroc", "probe_auroc", "found"),
)
_DOES = (
    *("part", "feature", "with_delta_margin", "without_delta_margin", "difference", "control_difference"),
    *("mean_difference_difference", "probe_difference", "specific"),
)
_ORDERS = {
    "attribution": "by attribution, largest first",
    "strength": "by strength, largest first",
    "random": "at random",
}


def effects_section(study: Study) -> tuple[dict, dict]:
    """(page data, figures by name)."""
    fills = fill_section(study.tables["sigma_sweep"].to_pylist()) if "sigma_sweep" in study.tables else None
    drawn = {"agreement": _agreement(study)} | _cumulative(study) | (fills or {}).get("figures", {})
    return {
        "means": mean_effects(study.summary),
        "forest": forest(study),
        "cumulative": [name for name in drawn if name.startswith("cumulative-")],
        "cumulative_rows": _cumulative_ends(study),
        "fills": fills,
        "known_answer": _known_answer(study),
        "baselines": shown_table(study.tables.get("baselines")),
        "attribution": (study.results["ablation"].get("atlas") or {}).get("attribution") or {},
    }, {name: figure for name, figure in drawn.items() if figure}


def _known_answer(study: Study) -> dict | None:
    """What finds each part and, where that was measured, what removing it does; None without masks."""
    table = study.tables.get("known_answer", study.tables.get("parts"))
    finds = shown_table(table, first=_FINDS)
    if finds is None:
        return None
    names = table.column_names
    return {
        "finds": finds,
        "does": shown_table(table, first=_DOES) if "difference" in names else None,
        "n_found": sum(map(bool, table["found"].to_pylist())) if "found" in names else None,
    }


def mean_effects(summary: dict) -> list[dict]:
    """Means over the ablated features, each with its interval, feature space beside input space."""
    texts = (
        ("mean_delta_logit", "logit of the label"),
        ("mean_delta_margin", "margin of the label"),
        ("control_mean_delta_margin", "control: margin, direction of equal norm or matched patch"),
        ("control_feature_mean_delta_margin", "control: margin, matched feature"),
        ("mean_delta_confidence", "confidence in the label"),
        (
            "mean_effect_minus_control_margin",
            "margin of the top class, effect − control, class-selective only",
        ),
    )
    spaces = [summary["ablation"][space] for space in ("feature_space", "input_space")]
    return [
        {"name": text, "cells": [(space[key], space[key + "_ci95"]) for space in spaces]}
        for key, text in texts
    ]


def forest(study: Study) -> dict | None:
    """Rows of the forest plot: removal at every position, margin of the top class, sorted by difference."""
    rows, n_known = [], 0
    for feature in study.ablated:
        effect = study.effect(feature, "map", "top_class", "margin")
        if effect and is_known(effect["mean_delta"]):
            n_known += 1
            if len(rows) < _MAX_FOREST:
                name = study.feature(feature)["top_class_name"] if study.features else None
                rows.append({"name": name, "page": feature in study.chosen, **effect})
    if not rows:
        return None
    rows.sort(key=lambda row: (row["effect_minus_direction"] or 0.0, row["feature"]))
    keys = ("mean_delta", "ci95_low", "ci95_high", "control_direction_mean_delta")
    scale = strips.strip_scale(row[k] for row in rows for k in keys)
    for row in rows:
        row["strip"] = strips.strip(scale, *(row[k] for k in keys))
    return {"rows": rows, "axis": strips.strip_axis(scale), "n_known": n_known}


def _agreement(study: Study):
    """Input-space against feature-space margin effects, a dot a feature; empty without data."""
    rows = study.tables["agreement"].to_pylist() if "agreement" in study.tables else []
    points, pages = [], set(study.chosen)
    for row in rows:
        x, y = row["feature_delta_margin"], row["input_delta_margin"]
        if is_known(x) and is_known(y):
            feature = row["feature"]
            link = f"features/feature-{feature}.html" if feature in pages else None
            points.append((x, y, f"feature {feature}: {number(x)} and {number(y)}", link))
    if not points:
        return ""
    title = "Margin effect of blurring the patch against that of removing the feature"
    return figures.scatter(title, points, "Δ margin, feature removed at its peak", "Δ margin, patch blurred")


def _cumulative(study: Study) -> dict:
    """Margin and accuracy while more and more features of an image are removed, a line an order."""
    rows = study.tables["cumulative"].to_pylist() if "cumulative" in study.tables else []
    drawn = {}
    for name, value, ends in (
        ("margin", "mean_margin", "margin_ci95"),
        ("accuracy", "accuracy", "accuracy_ci95"),
    ):
        series = []
        for order in dict.fromkeys(row["order"] for row in rows):
            here = sorted((row for row in rows if row["order"] == order), key=lambda row: row["m"])
            columns = [[r.get(k) for r in here] for k in ("m", value, f"{ends}_low", f"{ends}_high")]
            series.append(Series(_ORDERS.get(order, order).split(",")[0], *columns))
        title = "mean margin of the label" if name == "margin" else name
        drawn[f"cumulative-{name}"] = (
            figures.line_panel(title, series, "features removed from each image", share=name == "accuracy")
            if series
            else ""
        )
    return drawn


def _cumulative_ends(study: Study) -> list[dict]:
    """The rows of cumulative.parquet for none, half and all of the features removed."""
    rows = study.tables["cumulative"].to_pylist() if "cumulative" in study.tables else []
    most = max((row["m"] for row in rows), default=0)
    wanted = {0, most // 2, most}
    kept = [row | {"text": _ORDERS.get(row["order"], row["order"])} for row in rows if row["m"] in wanted]
    return [row for i, row in enumerate(kept) if row["m"] or i == 0]
