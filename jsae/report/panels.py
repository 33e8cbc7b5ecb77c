"""Learning curves: small multiples of a metrics.jsonl, one figure a quantity, a line a split."""

from markupsafe import Markup

from jsae.report import figures
from jsae.report.formatting import is_known

# Panels in this order: name, title, and the keys */name that it holds.
_PANELS = (
    ("loss", "loss", ("loss",)),
    ("cross-entropy", "cross-entropy", ("cross_entropy",)),
    ("accuracy", "accuracy", ("accuracy", "mean_per_class_accuracy")),
    ("ece", "calibration error (ECE)", ("ece",)),
    ("fvu", "fvu (share of variance not explained)", ("fvu",)),
    ("l0", "l0 (active features a vector)", ("l0",)),
    ("dead", "dead features, share of F", ("dead_fraction",)),
    ("learning-rate", "learning rate", ("learning_rate",)),
)
_SHORT = {"mean_per_class_accuracy": "mean per class"}


def panels(rows: list[dict], stage: str) -> dict[str, Markup]:
    """Figures named STAGE-NAME of the known quantities of a metrics.jsonl."""
    drawn = {}
    for panel, title, names in _PANELS:
        series = []
        for key in sorted({key for row in rows for key in row}):
            split, _, name = key.rpartition("/")
            if name in names:
                pairs = [(row["step"], row[key]) for row in rows if is_known(row.get(key))]
                label = split if name == names[0] else f"{split}, {_SHORT.get(name, name)}"
                series.append((label or name, [x for x, _ in pairs], [y for _, y in pairs]))
        figure = figures.line_panel(title, series, share=panel == "accuracy") if series else ""
        if figure:
            drawn[f"{stage}-{panel}"] = figure
    return drawn
