"""Page data of one feature's page: pictures, class bars, statistics and effects with their controls."""

import functools

import numpy as np

from jsae.report import figures
from jsae.report.formatting import is_known
from jsae.report.reading import Study
from jsae.report.sentences import in_words

_MAX_BARS = 10
_N_DRAWS = 4000  # random sets of 16 images behind the chance level of purity16
SCOPES = (("map", "removed at every grid position"), ("peak", "removed at its peak only"))
TARGETS = (("top_class", "its top class"), ("label", "the label"), ("prediction", "the clean prediction"))
MEASURES = (
    ("margin", "margin"),
    ("logit", "logit"),
    ("confidence", "confidence"),
    ("log_confidence", "log confidence"),
)


def feature_data(study: Study, feature: int, heat: dict | None) -> dict:
    """Everything a feature's page shows.

    Args:
      study: the tables.
      feature: one of `study.chosen`.
      heat: (image, feature) -> the feature's map float [H, W] in raw units; None draws outlines only.
    """
    row = study.feature(feature)
    position = study.chosen.index(feature)
    return {
        "facts": study.facts,
        "feature": row,
        "previous": study.chosen[position - 1] if position else None,
        "next": study.chosen[position + 1] if position + 1 < len(study.chosen) else None,
        "pictures": pictures(study, feature, heat),
        "has_heat": bool(heat),
        "purity16_chance": purity_by_chance(study.facts["class_sizes"]),
        "bars": class_bars(study, feature),
        "in_words": in_words(study, row),
        "scopes": effect_tables(study, feature),
        "input_rows": input_table(study, feature),
        "ablated": feature in study.ablated,
    }


def pictures(study: Study, feature: int, heat: dict | None) -> list[dict]:
    """The top patches with their overlay, best first; no overlay where the grid is not known."""
    found = []
    largest = max((row["value"] for row in study.patches.get(feature, [])), default=1.0) or 1.0
    for row in study.patches.get(feature, []):
        overlay = ""
        if study.facts["grid"]:
            values = heat.get((row["image"], feature)) if heat else None
            overlay = figures.heat_overlay(values, (row["y"], row["x"]), study.facts["grid"], largest)
        found.append(row | {"overlay": overlay, "right": row["label"] == row["prediction"]})
    return found


def class_bars(study: Study, feature: int) -> dict | None:
    """Mean pooled activation of the strongest classes, with the mean over all images as null level.

    The null level is what every class would have if labels were shuffled (expected value).
    """
    means = study.class_means.get(feature)
    if means is None or not study.facts["class_names"]:
        return None
    sizes = study.facts["class_sizes"]
    known = np.isfinite(means)
    if not known.any():
        return None
    weights = np.where(known, np.ones_like(means) if sizes is None else np.asarray(sizes, float), 0.0)
    null = float(np.nansum(means * weights) / weights.sum()) if weights.sum() else None
    order = np.argsort(-np.where(known, means, -np.inf), kind="stable")[:_MAX_BARS]
    largest = max(float(np.nanmax(means)), null or 0.0)
    rows = [
        {
            "name": study.facts["class_names"][c],
            "value": float(means[c]),
            "bar": figures.class_bar(float(means[c]), largest, null),
        }
        for c in order
        if known[c]
    ]
    return {"rows": rows, "null": null, "n_more": len(means) - len(rows)}


@functools.cache
def _purity_by_chance(sizes: tuple[int, ...]) -> float | None:
    if not sum(sizes):
        return None
    drawn = np.random.default_rng(0).multivariate_hypergeometric(
        sizes, min(16, sum(sizes)), _N_DRAWS
    )  # [n, L]
    return float((drawn.max(axis=1) / drawn.sum(axis=1)).mean())


def purity_by_chance(class_sizes) -> float | None:
    """Mean purity16 of 16 test images drawn at random, from the number of test images of each class."""
    return None if class_sizes is None else _purity_by_chance(tuple(int(n) for n in class_sizes))


def effect_tables(study: Study, feature: int) -> list[dict]:
    """Feature-space effects: a table for each scope, a group of rows for each target."""
    tables = []
    for scope, text in SCOPES:
        groups = []
        for target, target_text in TARGETS:
            rows = [
                found | {"name": name, "reason": _reason(found["n_active"])}
                for measure, name in MEASURES
                if (found := study.effect(feature, scope, target, measure))
            ]
            if rows:
                groups.append({"target": target_text, "rows": rows})
        if groups:
            first = groups[0]["rows"][0]
            tables.append(
                {
                    "text": text,
                    "groups": groups,
                    "n": first["n_active"],
                    "share": first["share_active"],
                    "n_control": first.get("n_control_feature"),
                }
            )
    return tables


def input_table(study: Study, feature: int) -> list[dict]:
    """Input-space effects, a group of rows for each target."""
    n_active = study.feature(feature)["n_active_images"]
    found = {(row["target"], row["measure"]): row for row in study.input_space.get(feature, [])}
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


def _reason(n_active: int | None) -> str:
    """Why a number of an effect's row may be unknown."""
    if is_known(n_active) and n_active < 20:
        return f"stated for features that fire on at least 20 test images; this one fires on {n_active}"
    return "not defined here: one class only, or too few images have a matching control"
