"""Page data of the first section: whether the instrument is valid, and what the SAE carries beside its nulls.

All of it comes from summary.json's `ground_truth`, which only a drawn study has.
"""

from typing import Any

from markupsafe import Markup

from jsae.report.figures.lines import Series, line_panel
from jsae.report.formatting import is_known
from jsae.report.results import Results

NAMES = {  # as summary.json has them -> as the page has them
    "sae": "SAE",
    "frozen_decoder": "SAE with a frozen random decoder",
    "rotation": "random rotation",
    "channels": "channels",
    "pca": "PCA",
    "random_matched": "random active features of the same size",
    "supervised": "one direction that knows the part",
}
SCORES = ("share", "leak", "tracking", "isolated")
_DOSE = 0.01  # of the planted directions' variance, at which the instrument is judged
_M = 4


def ground_truth_section(results: Results) -> tuple[dict | None, dict[str, Markup]]:
    """(page data, figures); None and no figure for a study that is not drawn."""
    found = results.summary.get("ground_truth")
    if not found or not found["m"]:
        return None, {}
    figures = {}
    for score in ("isolated", "share"):
        lines = [
            Series(name, found["m"], found[key][score])
            for key, name in NAMES.items()
            if len(found[key][score] or ()) == len(found["m"])
        ]
        figure = line_panel(score, lines, "features, m", dots=True, linear=True, log_x=True)
        if figure:
            figures[f"counterfactual-{score}"] = figure
    return {
        "m": _M,
        "n_pairs": found["n_pairs"],
        "twin_accuracy": found["twin_accuracy"],
        "rows": [_row(found, key, name) for key, name in NAMES.items()],
        "faithfulness": [(name, found[key]["faithfulness"]) for key, name in NAMES.items()],
        "planted": _planted(found.get("planted")),
        "seeds": found.get("seeds"),
        "input_space": found.get("input_space"),
    }, figures


def _row(found: dict[str, Any], key: str, name: str) -> dict:
    """The scores of a dictionary at m = 4; of one direction there is but m = 1."""
    i = 0 if key == "supervised" else found["m"].index(_M)
    known = {score: (found[key][score] or {i: None})[i] for score in SCORES}
    return {"name": name, "m": found["m"][i]} | known


def _planted(planted: dict[str, dict] | None) -> list[dict]:
    """Share and leak of each dictionary at the dose of 1%; [] where directions were not planted."""
    rows = []
    for name, found in (planted or {}).items():
        at = [i for i, dose in enumerate(found["dose"]) if is_known(dose) and abs(dose - _DOSE) < 1e-9]
        rows += [
            {"name": name.replace("_", " "), "share": found["share"][i], "leak": found["leak"][i]} for i in at
        ]
    return rows
