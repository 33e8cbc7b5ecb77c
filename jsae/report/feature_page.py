"""Page data of one feature's page: what it sees. What it does is in `jsae.report.feature_effects`."""

import numpy as np

from jsae.report import figures, pictures, strips
from jsae.report.feature_effects import effects_data
from jsae.report.formatting import is_known
from jsae.report.purity import purity_by_chance
from jsae.report.reading import Study
from jsae.report.sentences import in_words

_MAX_BARS = 10
_MAX_NEAREST = 6
# Columns of features.parquet that have a place of their own on the page; any other one is listed by its name.
_PLACED = frozenset(
    (
        *("feature", "alive", "eligible", "n_active_images", "density", "density_train"),
        *("max", "mean", "mean_active", "top_class", "top_class_name", "class_selective"),
        *("purity16", "polysemanticity", "auroc", "auroc_p", "auroc_q"),
        *("selectivity", "selectivity_null", "selectivity_excess", "selectivity_z"),
        *("label_entropy", "label_entropy_null", "label_entropy_excess", "label_entropy_z"),
        *("part", "part_auroc", "part_auroc_train", "part_pointing", "erf_share", "uniform_share"),
    )
)
_KINDS = {
    "decoder": ("Most similar direction", "cosine of the decoder rows"),
    "coactivation": ("Most often active together", "shared vectors over the root of the product of both"),
}


def feature_data(study: Study, feature: int, image_page: dict[int, str]) -> dict:
    """Everything a feature's page shows.

    Args:
      study: the tables.
      feature: one of `study.chosen`.
      image_page: image -> the page that describes it, for those that one does.
    """
    row = study.feature(feature)
    position = study.chosen.index(feature)
    survey = study.survey
    histogram = ""
    if survey.histograms is not None and row["max"]:
        title = f"Values of feature {feature} on the test vectors where it fires"
        histogram = figures.value_histogram(title, survey.histograms[feature], row["max"])
    return {
        "facts": study.facts,
        "feature": row,
        "previous": study.chosen[position - 1] if position else None,
        "next": study.chosen[position + 1] if position + 1 < len(study.chosen) else None,
        "patches": patches(study, feature, image_page),
        "purity16_chance": purity_by_chance(study.facts["class_sizes"]),
        "bars": class_bars(study, feature),
        "histogram": histogram,
        "nearest": nearest(study, feature),
        "twin": study.twin.get(feature),
        "more": [
            (name, row[name]) for name in row if name not in _PLACED and not isinstance(row[name], list)
        ],
        "in_words": in_words(study, row),
    } | effects_data(study, feature)


def patches(study: Study, feature: int, image_page: dict[int, str]) -> list[dict]:
    """The top patches, best first, with the map as base64 ("" if not known)."""
    found = []
    for row in study.patches(feature):
        found.append(
            row
            | {
                "map": pictures.map_text(study.survey.maps.get((row["image"], feature))),
                "right": row["label"] == row["prediction"],
                "page": image_page.get(row["image"]),
            }
        )
    return found


def class_bars(study: Study, feature: int) -> dict | None:
    """Mean pooled activation of the strongest classes, with what shuffled labels would give.

    The null is the mean over all images; its range is where 95% of shuffled labels put a class of that size,
    normal, images drawn without replacement.
    """
    means = study.class_means(feature)
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
    rows = []
    for c in (int(c) for c in order if known[c]):
        band = _band(study, feature, null, None if sizes is None else int(sizes[c]))
        bar = strips.class_bar(float(means[c]), largest, band or (None if null is None else (null, null)))
        rows.append(
            {"name": study.facts["class_names"][c], "value": float(means[c]), "band": band, "bar": bar}
        )
    return {"rows": rows, "null": null, "n_more": len(means) - len(rows)}


def _band(study: Study, feature: int, null, size: int | None) -> tuple[float, float] | None:
    """The range of a class mean under shuffled labels, None where the spread over images is not known."""
    if study.survey.pooled_sd is None or null is None or not size:
        return None
    n = int(np.sum(study.facts["class_sizes"]))
    share = (n - size) / (n - 1) if n > 1 else 0.0
    half = 1.959964 * float(study.survey.pooled_sd[feature]) * (share / size) ** 0.5
    return max(null - half, 0.0), null + half


def nearest(study: Study, feature: int) -> list[dict]:
    """Groups of similar features from nearest.parquet: title, what the number is, rows."""
    groups: dict[str, list] = {}
    for row in sorted(study.rows("nearest", feature), key=lambda row: (row["kind"], row["rank"])):
        if is_known(row["value"]) and len(groups.get(row["kind"], ())) < _MAX_NEAREST:
            page = row["other"] in study.chosen
            name = study.feature(row["other"])["top_class_name"] if page else None
            groups.setdefault(row["kind"], []).append(row | {"page": page, "name": name})
    return [
        dict(
            zip(
                ("title", "what"),
                _KINDS.get(kind.removesuffix("_cosine"), (kind.replace("_", " "), "")),
                strict=True,
            )
        )
        | {"rows": rows}
        for kind, rows in groups.items()
    ]
