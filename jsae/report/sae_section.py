"""Page data of the overview's section on the SAE: its numbers, curves, density, Pareto plots and splice."""

from jsae.report import figures, pareto
from jsae.report.formatting import wilson
from jsae.report.panels import panels, titles
from jsae.report.reading import Study

_NUMBERS = (
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


def sae_section(study: Study) -> tuple[dict, dict]:
    """(page data, figures by name)."""
    val = "val (trained on)" if study.facts.get("val_in_train") else "val"
    drawn = panels(study.curves["sae"], "sae", val=val)
    density = _density(study)
    if density:
        drawn["density"] = density
    swept = study.tables["sweep"].to_pylist() if "sweep" in study.tables else []
    drawn |= {f"sweep-{name}": figure for name, figure in pareto.plots(swept).items()}
    results = study.results["sae"]
    numbers = [(text, results.get(key)) for key, text in _NUMBERS if results.get(key) is not None]
    last = next((row for row in reversed(study.curves["sae"]) if "train/loss" in row), None)
    if last:
        numbers.insert(0, ("loss of the last logged training step", last["train/loss"]))
    return {
        "curves": titles(drawn, "sae"),
        "numbers": numbers,
        "sweep": [name for name in drawn if name.startswith("sweep-")],
        "splice": splice_rows(study),
        "kl": (study.results["ablation"].get("splice") or {}).get("kl"),
        "counts": counts(study),
    }, drawn


def splice_rows(study: Study) -> list[dict] | None:
    """The splice table's rows, clean first, with the Wilson interval of each accuracy."""
    splice = study.results["ablation"].get("splice")
    if not splice:
        return None
    names = {
        "clean": "clean",
        "spliced": "replaced by the SAE's reconstruction",
        "mean_ablated": "replaced by their mean",
    }
    return [
        {"name": text, "ci95": wilson(row.get("accuracy"), study.facts["n_test"])}
        | {k: row.get(k) for k in ("accuracy", "mean_per_class_accuracy", "cross_entropy", "margin")}
        for key, text in names.items()
        if (row := splice.get(key))
    ]


def counts(study: Study) -> dict | None:
    """How many features there are of each sort."""
    if not study.features:
        return None
    total = len(study.features["feature"])
    sums = {key: sum(map(bool, study.features[key])) for key in ("alive", "eligible", "class_selective")}
    return sums | {
        "total": total,
        "dead": total - sums["alive"],
        "ablated": len(study.ablated),
    }


def _density(study: Study):
    """Histogram of the density of the features that fire on test; empty without data."""
    columns = study.features
    if not columns:
        return ""
    pairs = [(d, s) for d, s in zip(columns["density"], columns["class_selective"], strict=True) if d]
    if not pairs:
        return ""
    title = "How many features fire how often"
    return figures.density_histogram(title, [d for d, _ in pairs], [bool(s) for _, s in pairs])
