"""Learning curves: small multiples of a metrics.jsonl, one figure a quantity, a line a split."""

from markupsafe import Markup

from jsae.report import figures
from jsae.report.formatting import is_known

# Panels in this order: name, title, and the keys */name that it holds.
_PANELS = (
    ("loss", "loss", ("loss",)),
    ("cross-entropy", "cross-entropy", ("cross_entropy",)),
    ("accuracy", "accuracy", ("accuracy", "mean_per_class_accuracy")),
    ("ece", "expected calibration error", ("ece",)),
    ("fvu", "variance not explained, fvu", ("fvu",)),
    ("l0", "features active a vector, l0", ("l0",)),
    ("dead", "dead features, share of F", ("dead_fraction",)),
    ("learning-rate", "learning rate", ("learning_rate",)),
)
_SHORT = {"mean_per_class_accuracy": "mean per class"}


def titles(drawn: dict, stage: str) -> dict[str, str]:
    """The titles of the figures named STAGE-NAME among those drawn, by their names."""
    return {
        f"{stage}-{panel}": title[0].upper() + title[1:]
        for panel, title, _ in _PANELS
        if f"{stage}-{panel}" in drawn
    }


def panels(rows: list[dict], stage: str, *, val: str = "val") -> dict[str, Markup]:
    """Figures named STAGE-NAME of the known quantities of a metrics.jsonl; `val` is what eval/* is of."""
    drawn = {}
    for panel, title, names in _PANELS:
        series = []
        found = {key for row in rows for key in row}
        for key in sorted(found, key=lambda key: (not key.startswith("train/"), key)):
            split, _, name = key.rpartition("/")
            split = val if split == "eval" else split
            if name in names:
                pairs = [(row["step"], row[key]) for row in rows if is_known(row.get(key))]
                label = split if name == names[0] else f"{split}, {_SHORT.get(name, name)}"
                series.append((label or name, [x for x, _ in pairs], [y for _, y in pairs]))
        kinds = {"share": panel == "accuracy", "linear": panel == "learning-rate"}
        figure = figures.line_panel(title, series, **kinds) if series else ""
        if figure:
            drawn[f"{stage}-{panel}"] = figure
    return drawn
