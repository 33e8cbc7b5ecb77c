"""Page data of the overview's section on the classifier: curves, confusions, classes, calibration."""

from jsae.report import classifier_figures
from jsae.report.formatting import is_known, wilson
from jsae.report.panels import panels, titles
from jsae.report.reading import Study

_MAX_CONFUSIONS = 12


def classifier_section(study: Study) -> tuple[dict, dict]:
    """(page data, figures by name); parts whose table does not exist are None."""
    drawn = panels(study.curves["classifier"], "classifier")
    names = list(study.facts["class_names"])
    cells = _rows(study, "confusion")
    cells = [(r["label"], r["prediction"], r["n_images"]) for r in cells if r["n_images"]]
    if cells and len(names) > 1:
        drawn["confusion"] = classifier_figures.confusion("Confusion matrix of the test images", cells, names)
    bins = _rows(study, "calibration")
    if any(row["n_images"] for row in bins):
        drawn["calibration"] = classifier_figures.reliability("Accuracy against confidence", bins)
    results = study.results["classifier"]
    return {
        "curves": titles(drawn, "classifier"),
        "classes": _classes(study),
        "confusions": _confusions(cells, names),
        "bins": [row | {"ci95": wilson(row["accuracy"], row["n_images"])} for row in bins if row["n_images"]],
        "ece": results.get("test_ece"),
        "pixel_baseline": results.get("pixel_baseline_test_accuracy"),
        "n_parameters": results.get("n_parameters"),
        "n_steps": results.get("n_steps"),
        "coarser": results.get("test_coarser") or {},
    }, drawn


def _rows(study: Study, name: str) -> list[dict]:
    return study.tables[name].to_pylist() if name in study.tables else []


def _classes(study: Study) -> list[dict]:
    """Rows of per_class.parquet with the interval of each accuracy, weakest class first."""
    rows = [row | {"ci95": wilson(row["accuracy"], row["n_images"])} for row in _rows(study, "per_class")]
    return sorted(rows, key=lambda row: (row["accuracy"] if is_known(row["accuracy"]) else 2.0, row["label"]))


def _confusions(cells, names: list[str]) -> list[dict]:
    """The most frequent mistakes."""
    wrong = sorted((c for c in cells if c[0] != c[1]), key=lambda c: (-c[2], c[0], c[1]))
    return [
        {"label": names[label], "prediction": names[prediction], "n": count}
        for label, prediction, count in wrong[:_MAX_CONFUSIONS]
        if max(label, prediction) < len(names)
    ]
