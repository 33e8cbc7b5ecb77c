"""summary.json: the headline numbers of a study, put together from what each stage passed to `finish`.

Every key is always there. A number that is not known (the stage was skipped or has not run, the
quantity is not defined) is null, never NaN.
"""

import math
from typing import Any

from etils import epath

from jsae.runtime import artifacts, stages

_SAE_KEYS = ("variant", "n_channels", "n_features", "l0", "fvu", "pca_fvu", "dead_fraction")
_PIXEL_MAPS = tuple(
    f"{prefix}{area}_auc" for prefix in ("", "activation_map_") for area in ("insertion", "deletion")
)
_TWINS = ("n_pairs", "twin_accuracy", "m")
_COMPARED = ("supervised", "sae", "frozen_decoder", "rotation", "channels", "pca", "random_matched")
_CARRIED = ("share", "leak", "tracking", "isolated")  # lists over m
_PUT_TO = ("zero", "mean", "set_to")
_MANIPULATION = ("fall_median", "qualified_share", "control_fall_median")
_EXPERIMENTS = ("planted", "seeds")  # each with its own WORKDIR/NAME/results.json
_OF_THE_ABLATED = (
    *(f"mean_delta_{measure}" for measure in ("logit", "margin", "confidence")),
    *(f"control_{kind}_mean_delta_margin" for kind in ("direction", "auroc", "feature")),
    "ablated_own_class_margin",
    *(f"own_class_minus_{kind}_margin" for kind in ("direction", "auroc", "feature")),
)
_FEATURE_SPACE = (
    *("n_own_class", "own_class_margin_mean", "own_class_margin_median"),
    *("label_margin_mean", "label_margin_median", "n_features", "n_images"),
    *_OF_THE_ABLATED,
    *(f"{mean}_ci95" for mean in _OF_THE_ABLATED),
)
# Of each stage: seconds of all attempts, those of them that were lost when an attempt was cut short, MiB.
_COSTS = (
    "seconds",
    "compile_seconds",
    "attempts",
    "lost_work_seconds",
    "peak_memory_mib",
    "peak_device_memory_mib",
)
# The device named is the first of these stages' that is complete: training is what costs.
_DEVICE_FROM = ("sae", "classifier", "ablation", "analysis", "activations", "report")


def complete_manifests(config: Any, workdir: str | epath.Path) -> dict[str, dict]:
    """Stage name -> its manifest, {} for a stage that is not complete."""
    manifests = {}
    for name in stages.STAGES:
        manifest = stages.read_manifest(config, workdir, name) or {}
        done = manifest.get("status") == "complete"
        manifests[name] = manifest if done and name not in stages.skipped(config) else {}
    return manifests


def summarise(config: Any, workdir: str | epath.Path) -> dict:
    """The content of summary.json as a nested dict of numbers, strings, pairs and None."""
    manifests = complete_manifests(config, workdir)
    results = {name: manifest.get("results") or {} for name, manifest in manifests.items()}
    classifier, ablation = results["classifier"], results["ablation"]
    arch = classifier.get("arch")  # the classifier stage keeps the whole description, a dict
    site = None
    if "classifier" not in stages.skipped(config):
        site = results["activations"].get("site", classifier.get("site"))
    made_by = next((manifests[name] for name in _DEVICE_FROM if manifests[name]), {})
    summary = {
        "classifier": {"arch": arch.get("name") if isinstance(arch, dict) else arch, "site": site}
        | _picked(classifier, ("test_accuracy", "test_mean_per_class_accuracy")),
        "sae": _picked(results["sae"], _SAE_KEYS)
        | _picked(ablation.get("splice"), ("accuracy_recovered", "ce_recovered")),
        "analysis": _picked(
            results["analysis"], ("n_features_alive", "n_class_selective", "n_excluded_by_q")
        ),
        "pixel_maps": _picked(results["analysis"].get("pixel_maps"), _PIXEL_MAPS),
        "ablation": {
            "feature_space": _picked(ablation.get("feature_space"), _FEATURE_SPACE),
            "input_space": _picked(ablation.get("input_space"), ("n_features", "n_images", *_MANIPULATION)),
        },
        "ground_truth": _ground_truth(ablation, epath.Path(workdir)),
        "device": _picked(made_by.get("device"), ("kind", "count")),
    }
    return _known(
        summary | {key: {name: manifest.get(key) for name, manifest in manifests.items()} for key in _COSTS}
    )


def _ground_truth(ablation: dict, workdir: epath.Path) -> dict | None:
    """What counterfactual pairs say, and the experiments beside them; None where nothing is drawn."""
    found = ablation.get("ground_truth")
    if found is None:
        return None
    of_dictionary = {}
    for name in _COMPARED:
        numbers = found.get(name) or {}
        faithfulness = _picked(numbers.get("faithfulness"), _PUT_TO)
        of_dictionary[name] = _picked(numbers, _CARRIED) | {"faithfulness": faithfulness}
    return {
        **_picked(found, _TWINS),
        **of_dictionary,
        "input_space": _picked(ablation.get("input_space"), _MANIPULATION),
        **{name: _experiment(workdir / name / "results.json") for name in _EXPERIMENTS},
    }


def _experiment(path: epath.Path) -> dict | None:
    """The results of an experiment that is made beside the stages; None if it was not run."""
    return artifacts.read_json(path) if path.exists() else None


def _picked(found: dict | None, keys: tuple[str, ...]) -> dict:
    return {key: (found or {}).get(key) for key in keys}


def _known(value: Any) -> Any:
    """The same tree with NaN and infinity, also inside a pair, replaced by None."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_known(item) for item in value]
        return None if any(item is None for item in items) else items
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_summary(config: Any, workdir: str | epath.Path) -> dict:
    """Write workdir/summary.json and return its content."""
    summary = summarise(config, workdir)
    artifacts.write_json(epath.Path(workdir) / "summary.json", summary)
    return summary
