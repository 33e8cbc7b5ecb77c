"""Page data of index.html: cards, curves, plots and tables of a `Study`."""

from jsae.report import figures
from jsae.report.feature_page import purity_by_chance
from jsae.report.formatting import is_known, number, wilson
from jsae.report.reading import Study
from jsae.report.sentences import doubts, headlines
from jsae.runtime import stages

# Panels of the learning curves in this order; a panel holds the keys */name of its names.
_PANELS = (
    ("loss", ("loss",)),
    ("cross-entropy", ("cross_entropy",)),
    ("accuracy", ("accuracy", "mean_per_class_accuracy")),
    ("fvu (share of variance not explained)", ("fvu",)),
    ("l0 (active features a vector)", ("l0",)),
    ("dead features", ("dead_fraction", "dead")),
)
_SHORT = {"mean_per_class_accuracy": "mean per class"}
_MAX_THUMBNAILS = 4


def index_data(study: Study) -> dict:
    """Everything index.html shows; numbers stay numbers, figures are SVG."""
    return {
        "facts": study.facts,
        "has_classifier": study.facts["site"] != stages.IMPORTED,
        "summary": study.summary,
        "headlines": headlines(study.summary),
        "cards": cards(study),
        "curves": {stage: panels(rows) for stage, rows in study.curves.items()},
        "splice": splice_rows(study),
        "means": mean_effects(study.summary),
        "forest": forest(study),
        "agreement": agreement_plot(study),
        "density": density_plot(study),
        "counts": counts(study),
        "rows": feature_rows(study),
        "purity16_chance": purity_by_chance(study.facts["class_sizes"]),
        "costs": study.costs,
        "doubts": doubts(study),
    }


def cards(study: Study) -> list[dict]:
    """Label, value, note (what it is to be compared with) and interval or None of each card."""
    classifier, sae, analysis = (study.summary[key] for key in ("classifier", "sae", "analysis"))
    n_classes = len(study.facts["class_names"])
    chance = f"chance {number(1.0 / n_classes)}, {n_classes} classes" if n_classes else ""
    per_class = classifier["test_mean_per_class_accuracy"]
    mean_text = f"mean per class {number(per_class)}; " if is_known(per_class) else ""
    pca = sae["pca_fvu"]
    found = [
        {
            "label": "classifier accuracy (test)",
            "value": classifier["test_accuracy"],
            "ci95": wilson(classifier["test_accuracy"], study.facts["n_test"]),
            "note": mean_text + chance,
        },
        {
            "label": "features active a vector, l0",
            "value": sae["l0"],
            "note": f"of F = {number(sae['n_features'])} features, C = {number(sae['n_channels'])} channels"
            if is_known(sae["n_features"]) and is_known(sae["n_channels"])
            else "",
        },
        {
            "label": "variance not explained, fvu",
            "value": sae["fvu"],
            "note": f"PCA with as many components {number(pca)}" if is_known(pca) else "PCA not known",
        },
        {
            "label": "accuracy recovered",
            "value": sae["accuracy_recovered"],
            "note": "0: activations replaced by their mean; 1: untouched",
        },
        {"label": "dead features (train)", "value": sae["dead_fraction"], "note": "share of F, one pass"},
        {
            "label": "class-selective features",
            "value": analysis["n_class_selective"],
            "note": f"of {number(analysis['n_features_alive'])} alive; auroc ≥ 0.8, q ≤ 0.05"
            if is_known(analysis["n_features_alive"])
            else "",
        },
    ]
    return [{"ci95": None} | card for card in found]


def panels(rows: list[dict]) -> list:
    """Small multiples of a metrics.jsonl: one figure for each known quantity, a line for each split."""
    drawn = []
    for title, names in _PANELS:
        series = []
        for key in sorted({key for row in rows for key in row}):
            split, _, name = key.rpartition("/")
            if name in names:
                pairs = [(row["step"], row[key]) for row in rows if is_known(row.get(key))]
                label = split if name == names[0] else f"{split}, {_SHORT.get(name, name)}"
                series.append((label or name, [x for x, _ in pairs], [y for _, y in pairs]))
        figure = figures.line_panel(title, series) if series else ""
        if figure:
            drawn.append({"title": title, "figure": figure})
    return drawn


def splice_rows(study: Study) -> list[dict] | None:
    """The splice table's rows, clean first, with the Wilson interval of each accuracy."""
    if not study.splice:
        return None
    names = {
        "clean": "clean",
        "spliced": "replaced by the SAE's reconstruction",
        "mean_ablated": "replaced by their mean",
    }
    return [
        {"name": text, "ci95": wilson(row.get("accuracy"), study.facts["n_test"])}
        | {k: row.get(k) for k in ("accuracy", "mean_per_class_accuracy", "cross_entropy", "margin")}
        for key, text in names.items()
        if (row := study.splice.get(key))
    ]


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
    rows = []
    for feature in study.chosen:
        effect = study.effect(feature, "map", "top_class", "margin")
        if effect and is_known(effect["mean_delta"]):
            rows.append({"feature": feature, "name": study.feature(feature)["top_class_name"], **effect})
    if not rows:
        return None
    rows.sort(key=lambda row: (row["effect_minus_direction"] or 0.0, row["feature"]))
    controls = ("control_direction_mean_delta", "control_feature_mean_delta")
    scale = figures.strip_scale(
        row[k] for row in rows for k in ("mean_delta", "ci95_low", "ci95_high", *controls)
    )
    for row in rows:
        label = f"feature {row['feature']}: {number(row['mean_delta'])}"
        row["strip"] = figures.strip(
            label, scale, row["mean_delta"], row["ci95_low"], row["ci95_high"], [row[c] for c in controls[:1]]
        )
    return {"rows": rows, "axis": figures.strip_axis(scale)}


def agreement_plot(study: Study):
    """Input-space against feature-space margin effects, a dot a feature; empty without data."""
    points = []
    for row in study.agreement:
        x, y = row["feature_delta_margin"], row["input_delta_margin"]
        if is_known(x) and is_known(y):
            feature = row["feature"]
            link = f"features/feature-{feature}.html" if feature in study.chosen else None
            points.append((x, y, f"feature {feature}: {number(x)} and {number(y)}", link))
    if not points:
        return ""
    title = "Margin effect of blurring the patch against that of removing the feature"
    return figures.scatter(title, points, "feature removed at its peak", "patch blurred")


def density_plot(study: Study):
    """Histogram of the density of the features that fire on test; empty without data."""
    columns = study.features
    if not columns:
        return ""
    pairs = [(d, s) for d, s in zip(columns["density"], columns["class_selective"], strict=True) if d]
    if not pairs:
        return ""
    title = "How many features fire how often"
    return figures.density_histogram(title, [d for d, _ in pairs], [bool(s) for _, s in pairs])


def counts(study: Study) -> dict | None:
    """How many features there are of each sort."""
    if not study.features:
        return None
    total = len(study.features["feature"])
    sums = {key: sum(map(bool, study.features[key])) for key in ("alive", "eligible", "class_selective")}
    pages = len(study.chosen)
    return sums | {
        "total": total,
        "dead": total - sums["alive"],
        "ablated": len(study.ablated),
        "pages": pages,
        "rest": total - pages,
    }


def feature_rows(study: Study) -> list[dict]:
    """The rows of the feature table, one for each feature with a page."""
    rows = []
    for feature in study.chosen:
        row = study.feature(feature)
        effect = study.effect(feature, "map", "top_class", "margin") or {}
        reason = "this feature was not among the ablated ones"
        if effect:
            reason = "fires on fewer than 20 test images"
        keys = ("", "_low", "_high")
        rows.append(
            row
            | {f"difference{k}": effect.get(f"effect_minus_direction{k}") for k in keys}
            | {"p": effect.get("p_direction"), "q": effect.get("q_direction"), "reason": reason}
            | {"patches": study.patches.get(feature, [])[:_MAX_THUMBNAILS]}
        )
    return rows
