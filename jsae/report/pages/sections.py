"""Page data of the overview's sections on the classifier, the SAE and the effects.

A section is (page data, figures by name); parts whose table does not exist are empty or None.
"""

import pyarrow as pa

from jsae import metrics
from jsae.report.figures import classifier as classifier_figures
from jsae.report.figures import histograms, pareto
from jsae.report.figures.lines import Series, learning_curves, line_panel
from jsae.report.figures.strips import forest
from jsae.report.formatting import is_known
from jsae.report.results import Results
from jsae.tables import ENDS, documentation, interval

_MAX_CONFUSIONS = 12
_MAX_FOREST = 40
_MAX_ROWS = 60  # of a table of any columns; those behind are left to its file
_SAE_NUMBERS = (
    ("fvu", "fvu: share of the variance of the test vectors that it does not explain"),
    ("pca_fvu", "the same of PCA with round(l0) components, fitted on train"),
    ("l0", "l0: mean number of features active on a test vector"),
    ("dead_fraction", "dead features: share that never fires in one pass over train"),
    ("density_mean", "mean density: share of test vectors on which a feature fires"),
    ("gamma", "gamma: norm of the activations' mean over that of their spread (arXiv 2605.31518)"),
    ("n_vectors_train", "vectors of train"),
    ("n_vectors_test", "vectors of test"),
    ("steps", "training steps"),
    ("refused_steps", "steps refused because their result was not finite"),
)
_SPLICED = (
    ("clean", "clean"),
    ("spliced", "replaced by the SAE's reconstruction"),
    ("mean_ablated", "replaced by their mean"),
)
_MEANS = (
    ("mean_delta_logit", "logit of the label"),
    ("mean_delta_margin", "margin of the label"),
    ("control_direction_mean_delta_margin", "control: margin, direction of the covariance"),
    ("control_auroc_mean_delta_margin", "control: margin, direction of equal class AUROC"),
    ("control_feature_mean_delta_margin", "control: margin, matched feature"),
    ("mean_delta_confidence", "confidence in the label"),
    ("ablated_own_class_margin", "margin of the top class, on images of that class, class-selective only"),
    ("own_class_minus_direction_margin", "the same minus the direction of the covariance"),
    ("own_class_minus_auroc_margin", "the same minus the direction of equal class AUROC"),
    ("own_class_minus_feature_margin", "the same minus the matched feature"),
)
_ORDERS = {
    "attribution": "by attribution, largest first",
    "strength": "by strength, largest first",
    "random": "at random",
}
_HIDDEN = ("auroc_train", "random_feature", "random_pointing")  # columns of parts.parquet left to its file


def with_wilson(row: dict, n: int | None) -> dict:
    """The row with the 95% Wilson interval of its accuracy, a share of `n` images; None where unknown."""
    low, high = metrics.wilson(row["accuracy"], n) or (None, None)
    return row | interval("accuracy", row["accuracy"], low, high)


def classifier_section(results: Results) -> tuple[dict, dict]:
    """Curves, confusions, classes (weakest first) and calibration."""
    curves, drawn = _curves(results, "classifier")
    names = results.facts["class_names"]
    cells = [row for row in results.all_rows("confusion") if row["n_images"]]
    bins = [with_wilson(r, r["n_images"]) for r in results.all_rows("calibration") if r["n_images"]]
    classes = [with_wilson(row, row["n_images"]) for row in results.all_rows("per_class")]
    classes.sort(key=lambda row: (row["accuracy"] if is_known(row["accuracy"]) else 2.0, row["label"]))
    mistakes = [cell for cell in cells if cell["label"] != cell["prediction"]]
    mistakes.sort(key=lambda cell: (-cell["n_images"], cell["label"], cell["prediction"]))
    if cells and len(names) > 1:
        drawn["confusion"] = classifier_figures.confusion("Confusion matrix of the test images", cells, names)
    if bins:
        drawn["calibration"] = classifier_figures.reliability("Accuracy against confidence", bins)
    finished = results.finished("classifier")
    return {
        "curves": curves,
        "classes": classes,
        "mistakes": mistakes[:_MAX_CONFUSIONS] if names else [],
        "bins": bins,
        "ece": finished.get("test_ece"),
        "pixel_baseline": finished.get("pixel_baseline_test_accuracy"),
        "n_parameters": finished.get("n_parameters"),
        "n_steps": finished.get("n_steps"),
        "coarser": finished.get("test_coarser") or {},
    }, drawn


def _curves(results: Results, stage: str) -> tuple[dict, dict]:
    """(titles, figures) of the learning curves, by name."""
    val = "val (trained on)" if stage == "sae" and results.facts["val_in_train"] else "val"
    found = learning_curves(results.curves[stage], val=val)
    titles, drawn = ({f"{stage}-{name}": pair[i] for name, pair in found.items()} for i in (0, 1))
    return titles, drawn


def sae_section(results: Results) -> tuple[dict, dict]:
    """Its numbers, curves, density, the plots of a sweep, and what splicing it in changes."""
    curves, drawn = _curves(results, "sae")
    columns = results.features
    if any(columns.get("density", ())):
        firing = [i for i, density in enumerate(columns["density"]) if density]
        drawn["density"] = histograms.density_histogram(
            "How many features fire how often",
            *([columns[name][i] for i in firing] for name in ("density", "class_selective")),
        )
    swept = {f"sweep-{name}": figure for name, figure in pareto.plots(results.all_rows("sweep")).items()}
    finished = results.finished("sae")
    numbers = [(text, finished[key]) for key, text in _SAE_NUMBERS if finished.get(key) is not None]
    losses = [row["train/loss"] for row in results.curves["sae"] if "train/loss" in row]
    if losses:
        numbers.insert(0, ("loss of the last logged training step", losses[-1]))
    splice = results.finished("ablation").get("splice") or {}
    counts = None
    if columns:
        counts = {name: sum(map(bool, columns[name])) for name in ("alive", "eligible", "class_selective")}
        counts |= {"total": len(columns["feature"]), "ablated": len(results.ablated)}
    return {
        "curves": curves,
        "numbers": numbers,
        "sweep": list(swept),
        "splice": [
            with_wilson(splice[key], results.facts["n_test"]) | {"name": text}
            for key, text in _SPLICED
            if key in splice
        ],
        "kl": splice.get("kl"),
        "counts": counts,
    }, drawn | swept


def effects_section(results: Results) -> tuple[dict, dict]:
    """Means over features, forest plot, many features at once, parts and other dictionaries."""
    rows = results.all_rows("cumulative")
    most = max((row["m"] for row in rows), default=0)
    ends = [row | {"text": _ORDERS[row["order"]]} for row in rows if row["m"] in (0, most // 2, most)]
    space = results.summary["ablation"]["feature_space"]
    blurred = results.finished("ablation").get("input_space") or {}
    finished = results.finished("ablation").get("all_features") or {}
    return {
        "means": [(text, [(space[key], space[f"{key}_ci95"])]) for key, text in _MEANS],
        "blurred": blurred,
        "placements": [
            {"placement": placement, "area": area} | numbers | _ends(numbers)
            for placement, areas in (blurred.get("placements") or {}).items()
            for area, numbers in areas.items()
        ],
        "forest": _forest(results),
        "cumulative_rows": [row for i, row in enumerate(ends) if row["m"] or i == 0],
        "attribution": finished.get("attribution") or {},
        "mediation": any_table(results.tables.get("mediation"), hidden=("random_size_ratio",)),
        "parts": any_table(results.tables.get("parts"), hidden=_HIDDEN),
        "baselines": any_table(results.tables.get("baselines")),
    }, _cumulative(rows)


def _ends(numbers: dict) -> dict:
    """NAME_low and NAME_high of every NAME_ci95."""
    stems = [name.removesuffix("_ci95") for name in numbers if name.endswith("_ci95")]
    return {
        f"{s}_{end}": (numbers[f"{s}_ci95"] or (None, None))[i] for s in stems for i, end in enumerate(ENDS)
    }


def _forest(results: Results) -> dict | None:
    """Rows of the forest plot: removal at every position, margin on the own class, sorted by difference."""
    effects = [results.main_effect(feature, target="own_class", scope="map") for feature in results.ablated]
    known = [row for row in effects if row and is_known(row["mean_delta"])]
    if not known:
        return None
    rows = known[:_MAX_FOREST]
    rows.sort(key=lambda row: (row["effect_minus_direction"] or 0.0, row["feature"]))
    for row in rows:
        row["name"] = results.feature(row["feature"])["top_class_name"] if results.features else None
    axis = forest(rows, "mean_delta", "control_direction_mean_delta")
    return {"rows": rows, "axis": axis, "n_known": len(known)}


def _cumulative(rows: list[dict]) -> dict:
    """Margin and accuracy while more and more features of an image are removed, one line per order."""
    drawn = {}
    for name, column, title in (
        ("margin", "mean_margin", "mean margin of the label"),
        ("accuracy", "accuracy", "accuracy"),
    ):
        series = []
        for order in dict.fromkeys(row["order"] for row in rows):
            line = sorted((row for row in rows if row["order"] == order), key=lambda row: row["m"])
            values = [[row[key] for row in line] for key in ("m", column, f"{column}_low", f"{column}_high")]
            series.append(Series(_ORDERS[order].split(",")[0], *values))
        x_label = "features removed from each image"
        figure = line_panel(title, series, x_label, share=name == "accuracy")
        if figure:
            drawn[f"cumulative-{name}"] = figure
    return drawn


def any_table(table: pa.Table | None, *, hidden: tuple[str, ...] = ()) -> dict | None:
    """A short table for the template `any_table`, None for no table, without the `hidden` columns.

    A number NAME with NAME_low and NAME_high becomes one cell with its interval. What a column means is read
    from the Parquet schema.

    Returns:
      columns: dicts name, doc, has_interval; rows: dicts; n_rows, before those left to the file.
    """
    if table is None or not len(table):
        return None
    names, docs = table.column_names, documentation(table)
    left_out = {*hidden, *(f"{name}_{end}" for name in names for end in ENDS)}
    heads = [
        {"name": name, "doc": docs[name], "has_interval": f"{name}_low" in names}
        for name in names
        if name not in left_out and not pa.types.is_list(table.schema.field(name).type)
    ]
    return {"columns": heads, "rows": table.slice(0, _MAX_ROWS).to_pylist(), "n_rows": len(table)}
