"""Page data of index.html, the overview: the answers, the two models, the effects, what to doubt."""

import math

from jsae.analysis.features import MAX_Q, MIN_AUROC
from jsae.report.formatting import is_known, number
from jsae.report.pages.sections import classifier_section, effects_section, sae_section, with_wilson
from jsae.report.pages.sentences import doubts, headlines
from jsae.report.results import Results
from jsae.runtime import stages


def index_data(results: Results) -> dict:
    """Everything index.html shows; numbers stay numbers, `figures` holds the SVG by name."""
    classifier, figures = classifier_section(results)
    sae, sae_figures = sae_section(results)
    effects, effect_figures = effects_section(results)
    return {
        "has_classifier": results.facts["site"] != stages.IMPORTED,
        "summary": results.summary,
        "headlines": headlines(results.summary, n_selective(results)),
        "cards": cards(results),
        "classifier": classifier,
        "sae": sae,
        "effects": effects,
        "figures": figures | sae_figures | effect_figures,
        "purity_by_chance": results.purity_by_chance,
        "costs": results.costs,
        "made_by": next((row for row in reversed(results.costs) if row["versions"]), None),
        "doubts": doubts(results),
        "pages": frozenset(results.chosen),
        "split_sizes": split_sizes(results),
    }


def split_sizes(results: Results) -> dict[str, int]:
    """Split -> images or rows in it, of those whose activations were extracted, and of test."""
    n_cells = math.prod(results.facts["grid"] or (0,))
    names = {"train": "train", "val": "val", "test": "test"}
    if results.facts["val_in_train"]:
        names["val"] = "val (which train holds, too)"
    found = {
        name: n // n_cells
        for split, name in names.items()
        if n_cells and (n := results.finished["activations"].get(f"n_vectors_{split}"))
    }
    n_test = results.facts["n_test"]
    return found if n_test is None else found | {"test": n_test}


def n_selective(results: Results) -> int | None:
    """How many of the ablated features are class-selective, None where the analysis is not known."""
    if not results.features or not results.ablated:
        return None
    return sum(bool(results.feature(feature)["class_selective"]) for feature in results.ablated)


def cards(results: Results) -> list[dict]:
    """Label, value, note (what it is to be compared with) and interval or None of each card."""
    classifier, sae, analysis = (results.summary[key] for key in ("classifier", "sae", "analysis"))
    n_classes = len(results.facts["class_names"])
    accuracy = with_wilson({"accuracy": classifier["test_accuracy"]}, results.facts["n_test"])
    chance = []
    if is_known(classifier["test_mean_per_class_accuracy"]):
        chance.append(f"mean per class {number(classifier['test_mean_per_class_accuracy'])}")
    if n_classes:
        chance.append(f"chance {number(1.0 / n_classes)}, {n_classes} classes")
    sizes = ""
    if is_known(sae["n_features"]) and is_known(sae["n_channels"]):
        sizes = f"of F = {number(sae['n_features'])} features, C = {number(sae['n_channels'])} channels"
    pca, n_alive = sae["pca_fvu"], analysis["n_features_alive"]
    selective = f"of {number(n_alive)} alive; auroc ≥ {MIN_AUROC}, q ≤ {MAX_Q}" if is_known(n_alive) else ""
    found = (
        ("classifier accuracy (test)", accuracy["accuracy"], "; ".join(chance)),
        ("active features per vector, l0", sae["l0"], sizes),
        (
            "variance not explained, fvu",
            sae["fvu"],
            f"PCA with as many components {number(pca)}" if is_known(pca) else "PCA not known",
        ),
        (
            "accuracy recovered",
            sae["accuracy_recovered"],
            "0: activations replaced by their mean; 1: untouched",
        ),
        ("dead features (train)", sae["dead_fraction"], "share of F, one pass"),
        ("class-selective features", analysis["n_class_selective"], selective),
    )
    rows = [{"label": label, "value": value, "note": note, "ci95": None} for label, value, note in found]
    if is_known(accuracy["accuracy_low"]):
        rows[0]["ci95"] = (accuracy["accuracy_low"], accuracy["accuracy_high"])
    return rows
