"""Page data of index.html, the overview: the answers, the two models, the effects, what to doubt."""

import math

from jsae.report.formatting import is_known
from jsae.report.pages.ground_truth import ground_truth_section
from jsae.report.pages.sections import classifier_section, effects_section, sae_section, with_wilson
from jsae.report.results import Results
from jsae.runtime import stages


def index_data(results: Results) -> dict:
    """Everything index.html shows; numbers stay numbers, `figures` holds the SVG by name."""
    classifier, figures = classifier_section(results)
    sae, sae_figures = sae_section(results)
    effects, effect_figures = effects_section(results)
    truth, truth_figures = ground_truth_section(results)
    is_bare = results.facts["site"] == stages.IMPORTED  # activations that were extracted elsewhere
    accuracy = results.summary["classifier"]["test_accuracy"]
    return {
        "is_bare": is_bare,
        "has_effects": not is_bare or bool(results.manifests["ablation"]),
        "summary": results.summary,
        "accuracy": with_wilson({"accuracy": accuracy}, results.facts["n_test"]),
        "classifier": classifier,
        "sae": sae,
        "effects": effects,
        "truth": truth,
        "figures": truth_figures | figures | sae_figures | effect_figures,
        "purity_by_chance": results.purity_by_chance,
        "manifests": {name: found for name, found in results.manifests.items() if name != "report"},
        "known": {
            name: [value for value in results.features.get(name, []) if is_known(value)]
            for name in ("pixel_map_in_cell", "polysemanticity")
        },
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
        if n_cells and (n := results.finished("activations").get(f"n_vectors_{split}"))
    }
    n_test = results.facts["n_test"]
    return found if n_test is None else found | {"test": n_test}
