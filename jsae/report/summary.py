"""summary.json: the headline numbers of a study, put together from what each stage passed to `finish`.

Every key is always there. A number that is not known (the stage was skipped or has not run, the
quantity is not defined) is null, never NaN.
"""

import math

from etils import epath

from jsae.runtime import artifacts, stages

_SAE_KEYS = ("variant", "n_channels", "n_features", "l0", "fvu", "pca_fvu", "dead_fraction")
_EFFECT_MEANS = (
    "mean_delta_logit",
    "mean_delta_margin",
    "mean_delta_confidence",
    "control_mean_delta_margin",
    "control_feature_mean_delta_margin",
    "mean_effect_minus_control_margin",
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


def complete_manifests(config, workdir) -> dict:
    """Stage name -> its manifest, None for a stage that is not complete."""
    manifests = {}
    for name in stages.STAGES:
        manifest = stages.read_manifest(config, workdir, name)
        done = manifest is not None and manifest.get("status") == "complete"
        done = done and name not in stages.skipped(config)
        manifests[name] = manifest if done else None
    return manifests


def summarise(config, workdir) -> dict:
    """The content of summary.json as a nested dict of numbers, strings, pairs and None."""
    manifests = complete_manifests(config, workdir)
    results = {name: (manifest or {}).get("results") or {} for name, manifest in manifests.items()}
    classifier, sae, ablation = results["classifier"], results["sae"], results["ablation"]
    splice = ablation.get("splice") or {}
    made_by = next((manifests[name] for name in _DEVICE_FROM if manifests[name]), None) or {}
    summary = {
        "classifier": {
            "arch": _name(classifier.get("arch")),
            "site": None
            if "classifier" in stages.skipped(config)
            else results["activations"].get("site", classifier.get("site")),
            "test_accuracy": classifier.get("test_accuracy"),
            "test_mean_per_class_accuracy": classifier.get("test_mean_per_class_accuracy"),
        },
        "sae": {key: sae.get(key) for key in _SAE_KEYS}
        | {key: splice.get(key) for key in ("accuracy_recovered", "ce_recovered")},
        "analysis": {key: results["analysis"].get(key) for key in ("n_features_alive", "n_class_selective")},
        "ablation": {
            "feature_space": _effects(ablation.get("feature_space")),
            "input_space": _effects(ablation.get("input_space")),
            "agreement": {
                key: (ablation.get("agreement") or {}).get(key) for key in ("spearman", "spearman_ci95")
            },
        },
        "device": {key: (made_by.get("device") or {}).get(key) for key in ("kind", "count")},
    }
    summary |= {
        key: {name: (manifest or {}).get(key) for name, manifest in manifests.items()} for key in _COSTS
    }
    return _known(summary)


def _name(arch) -> str | None:
    """An architecture's name; the classifier stage keeps the whole description, a dict."""
    return arch.get("name") if isinstance(arch, dict) else arch


def _effects(found: dict | None) -> dict:
    found = found or {}
    keys = ["n_features", "n_images"]
    for mean in _EFFECT_MEANS:
        keys += [mean, f"{mean}_ci95"]
    return {key: found.get(key) for key in keys}


def _known(value):
    """The same tree with NaN and infinity, also inside a pair, replaced by None."""
    if isinstance(value, dict):
        return {key: _known(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_known(item) for item in value]
        return None if any(item is None for item in items) else items
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_summary(config, workdir) -> dict:
    """Write workdir/summary.json and return its content."""
    summary = summarise(config, workdir)
    artifacts.write_json(epath.Path(workdir) / "summary.json", summary)
    return summary
