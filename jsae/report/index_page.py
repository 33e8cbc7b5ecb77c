"""Page data of index.html, the overview: the answers, the two models, the effects, what to doubt."""

import math

from jsae.report.classifier_section import classifier_section
from jsae.report.downloads import csv_tables
from jsae.report.effects_section import effects_section
from jsae.report.formatting import is_known, number, wilson
from jsae.report.purity import purity_by_chance
from jsae.report.reading import Study
from jsae.report.sae_section import sae_section
from jsae.report.sentences import doubts, headlines
from jsae.runtime import stages


def index_data(study: Study) -> dict:
    """Everything index.html shows; numbers stay numbers, `figures` holds the SVG by name."""
    classifier, drawn = classifier_section(study)
    sae, more = sae_section(study)
    effects, still_more = effects_section(study)
    return {
        "facts": study.facts,
        "has_classifier": study.facts["site"] != stages.IMPORTED,
        "summary": study.summary,
        "headlines": headlines(study.summary, n_selective(study)),
        "cards": cards(study),
        "classifier": classifier,
        "sae": sae,
        "effects": effects,
        "figures": drawn | more | still_more,
        "purity16_chance": purity_by_chance(study.facts["class_sizes"]),
        "costs": study.costs,
        "made_by": next((row for row in reversed(study.costs) if row["versions"]), None),
        "doubts": doubts(study),
        "tables": list(csv_tables(study)),
        "pages": frozenset(study.chosen),
        "split_sizes": split_sizes(study),
    }


def split_sizes(study: Study) -> list[tuple[str, int]]:
    """(split, images or rows in it) of those whose activations were extracted, and of test."""
    cells = math.prod(study.facts["grid"] or (0,))
    found = {
        split: n // cells
        for split in ("train", "val", "test")
        if cells and (n := study.results["activations"].get(f"n_vectors_{split}"))
    }
    if study.facts["n_test"] is not None:
        found["test"] = study.facts["n_test"]
    val = "val (which train holds, too)" if study.facts.get("val_in_train") else "val"
    return [(val if split == "val" else split, n) for split, n in found.items()]


def n_selective(study: Study) -> int | None:
    """How many of the ablated features are class-selective, None where the analysis is not known."""
    if not study.features or not study.ablated:
        return None
    return sum(bool(study.feature(feature)["class_selective"]) for feature in study.ablated)


def cards(study: Study) -> list[dict]:
    """Label, value, note (what it is to be compared with) and interval or None of each card."""
    classifier, sae, analysis = (study.summary[key] for key in ("classifier", "sae", "analysis"))
    n_classes = len(study.facts["class_names"])
    chance = f"chance {number(1.0 / n_classes)}, {n_classes} classes" if n_classes else ""
    per_class = classifier["test_mean_per_class_accuracy"]
    mean_text = f"mean per class {number(per_class)}; " if is_known(per_class) else ""
    pca = sae["pca_fvu"]
    sizes_known = is_known(sae["n_features"]) and is_known(sae["n_channels"])
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
            if sizes_known
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
