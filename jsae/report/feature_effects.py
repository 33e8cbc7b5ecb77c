"""Page data of what one feature does: effects and controls, by class, and input beside feature space."""

from jsae.report import strips
from jsae.report.fill_figures import fill_section
from jsae.report.formatting import is_known
from jsae.report.reading import Study

SCOPES = (("map", "removed at every grid position"), ("peak", "removed at its peak only"))
TARGETS = (("top_class", "its top class"), ("label", "the label"), ("prediction", "the clean prediction"))
MEASURES = (
    ("margin", "margin"),
    ("logit", "logit"),
    ("confidence", "confidence"),
    ("log_confidence", "log confidence"),
)
_ATLAS_SCOPES = ("map", "peak", "keep_only")
_MAX_CLASSES = 8


def effects_data(study: Study, feature: int) -> dict:
    """The part of a feature's page that `feature.html` shows under "What it does"."""
    return {
        "scopes": effect_tables(study, feature),
        "input_rows": input_table(study, feature),
        "atlas": atlas_table(study, feature),
        "by_class": by_class(study, feature),
        "two_spaces": two_spaces(study, feature),
        "blur": _blur(study, feature),
        "ablated": bool(study.rows("feature_space", feature) or study.rows("input_space", feature)),
    }


def effect_tables(study: Study, feature: int) -> list[dict]:
    """Feature-space effects: a table for each scope, a group of rows for each target."""
    found = {(r["scope"], r["target"], r["measure"]): r for r in study.rows("feature_space", feature)}
    tables = []
    for scope, text in SCOPES:
        groups = []
        for target, target_text in TARGETS:
            rows = [
                row | {"name": name, "reason": _reason(row["n_active"])}
                for measure, name in MEASURES
                if (row := found.get((scope, target, measure)))
            ]
            if rows:
                groups.append({"target": target_text, "rows": rows})
        if groups:
            first = groups[0]["rows"][0]
            sizes = {"n": first["n_active"], "share": first["share_active"]}
            tables.append(
                {"text": text, "groups": groups, "n_control": first.get("n_control_feature")} | sizes
            )
    return tables


def input_table(study: Study, feature: int) -> list[dict]:
    """Input-space effects, a group of rows for each target."""
    n_active = study.feature(feature)["n_active_images"]
    found = {(row["target"], row["measure"]): row for row in study.rows("input_space", feature)}
    groups = []
    for target, text in TARGETS:
        rows = [
            row | {"name": name, "reason": _reason(n_active)}
            for measure, name in MEASURES
            if (row := found.get((target, measure)))
        ]
        if rows:
            groups.append({"target": text, "rows": rows})
    return groups


def atlas_table(study: Study, feature: int) -> dict | None:
    """Effects from the atlas, which has every feature but no control: rows by target and measure."""
    row = next(iter(study.rows("atlas", feature)), None)
    if row is None:
        return None

    def cell(stem: str) -> tuple:
        return row.get(stem), (row.get(f"{stem}_low"), row.get(f"{stem}_high"))

    groups = [
        {
            "target": text,
            "rows": [
                {"name": name, "cells": [cell(f"{scope}_{target}_{measure}") for scope in _ATLAS_SCOPES]}
                for measure, name in MEASURES
                if measure != "log_confidence"  # in atlas.csv: there is such a table on every page
            ],
        }
        for target, text in TARGETS
    ]
    flips = [cell(f"{scope}_flip_rate") for scope in _ATLAS_SCOPES]
    return {
        "groups": groups,
        "flips": flips,
        "n": row["n_active"],
        "attribution": cell("attribution_margin"),
        "reason": _reason(row["n_active"]),
    }


def by_class(study: Study, feature: int) -> dict | None:
    """Change of the label's margin by class of the image, the largest changes first, as a forest plot.

    An interval is the mean ± 1.96 standard errors over the images of the class.
    """
    rows = [
        r for r in study.rows("atlas_classes", feature) if is_known(r.get("label_margin")) and r["n_active"]
    ]
    names = study.facts["class_names"]
    if not rows or not names:
        return None
    found = []
    for row in sorted(rows, key=lambda r: (-abs(r["label_margin"]), r["class"]))[:_MAX_CLASSES]:
        mean, error = row["label_margin"], row.get("label_margin_se")
        half = 1.959964 * error if is_known(error) else None
        ends = (None, None) if half is None else (mean - half, mean + half)
        found.append({"name": names[row["class"]], "mean": mean, "ends": ends, "n": row["n_images"]} | row)
    scale = strips.strip_scale(v for row in found for v in (row["mean"], *row["ends"]))
    for row in found:
        row["strip"] = strips.strip(scale, row["mean"], *row["ends"])
    return {"rows": found, "axis": strips.strip_axis(scale), "n_more": len(rows) - len(found)}


def two_spaces(study: Study, feature: int) -> dict | None:
    """The top class's margin, feature removed at its peak beside patch blurred, each with its control."""
    found = []
    row = study.effect(feature, "peak", "top_class", "margin")
    if row and is_known(row["mean_delta"]):
        found.append(
            ("feature removed at its peak", row, row["control_direction_mean_delta"], row["n_active"])
        )
    row = next(
        (
            r
            for r in study.rows("input_space", feature)
            if (r["target"], r["measure"]) == ("top_class", "margin")
        ),
        None,
    )
    if row and is_known(row["mean_delta"]):
        found.append(("patch under its peak blurred", row, row["control_mean_delta"], row["n_images"]))
    if not found:
        return None
    scale = strips.strip_scale(
        v
        for _, row, control, _ in found
        for v in (row["mean_delta"], row["ci95_low"], row["ci95_high"], control)
    )
    rows = [
        {
            "name": name,
            "mean": row["mean_delta"],
            "ends": (row["ci95_low"], row["ci95_high"]),
            "control": control,
            "n": n,
            "strip": strips.strip(scale, row["mean_delta"], row["ci95_low"], row["ci95_high"], control),
        }
        for name, row, control, n in found
    ]
    same = next(
        (r for r in study.rows("agreement", feature) if is_known(r["input_delta_margin"])),
        None,
    )
    return {"rows": rows, "axis": strips.strip_axis(scale), "same": same}


def _blur(study: Study, feature: int) -> dict:
    """Figures of the feature's rows of sigma_sweep.parquet by name, {} where it has none."""
    return (fill_section(study.rows("sigma_sweep", feature), "Δ margin") or {}).get("figures", {})


def _reason(n_active: int | None) -> str:
    """Why a number of an effect's row may be unknown."""
    if is_known(n_active) and n_active < 20:
        return f"stated for features that fire on at least 20 test images; this one fires on {n_active}"
    return "not defined here: one class only, or too few images have a matching control"
