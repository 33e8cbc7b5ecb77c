"""What the stages of the made-up study passed to `finish`, as it stands in their manifests."""

from tests.report.fake_world import N_FEATURES, N_IMAGES


def blurred() -> dict:
    """The numbers of input space: two placements, only one of which takes features away."""
    of_peak = {
        "n_pairs": 480,
        "n_qualified": 17,
        "n_matched": 431,
        "n_compared": 15,
        "share_qualified": 0.0354,
    }
    of_peak |= {"area_share": 0.0278, "fall_median": 0.0371, "control_fall_median": 0.0123}
    of_peak |= {"matched_fall_median": 0.0382}
    of_mask = of_peak | {"n_qualified": 311, "share_qualified": 0.648, "fall_median": 0.734}
    for name, value in (("mean_delta", -0.823), ("effect_minus_control", -1.23)):
        key = f"{name}_label_margin"
        of_peak |= {key: None, f"{key}_ci95": None}
        of_mask |= {key: value, f"{key}_ci95": [value - 0.12, value + 0.04]}
    own = {"fall_median": 0.0371, "qualified_share": 0.0354, "control_fall_median": 0.0123}
    placements = {"peak": {"cell": of_peak}, "mask": {"mask": of_mask}}
    return own | {"n_features": 10, "n_images": N_IMAGES, "placements": placements}


def results() -> dict:
    """Stage -> what it would pass to `finish`."""
    means = {
        "mean_delta_logit": -0.61,
        "mean_delta_margin": -0.823,
        "mean_delta_confidence": -0.0912,
    }
    only = {
        "feature_space": {
            "control_direction_mean_delta_margin": -0.0412,
            "control_auroc_mean_delta_margin": -0.0512,
            "control_feature_mean_delta_margin": -0.214,
            "ablated_own_class_margin": -1.41,
            "own_class_minus_direction_margin": -1.23,
            "own_class_minus_auroc_margin": -1.13,
            "own_class_minus_feature_margin": -1.03,
        },
    }
    spaces = {}
    for name, more in only.items():
        spaces[name] = {"n_features": 10, "n_images": N_IMAGES}
        for key, value in (means | more).items():
            spaces[name] |= {key: value, f"{key}_ci95": [value - 0.11, value + 0.02]}
    spaces["feature_space"] |= {"n_own_class": 17, "own_class_margin_mean": -0.711}
    spaces["feature_space"] |= {"own_class_margin_median": -0.377, "label_margin_mean": -0.022}
    spaces["feature_space"] |= {"label_margin_median": 0.0044}
    rows = [
        {"accuracy": a, "mean_per_class_accuracy": a - 0.01, "cross_entropy": c, "margin": 5.2 - c}
        for a, c in ((0.875, 0.41), (0.85, 0.47), (0.125, 2.1))
    ]
    carried = {name: [0.2, 0.4, 0.6, 0.8] for name in ("share", "leak", "tracking", "isolated")}
    faithful = {"faithfulness": {"zero": 0.42, "mean": 0.7, "set_to": 0.94}}
    one = {name: values[:1] for name, values in carried.items()}
    truth = {"n_pairs": 8, "twin_accuracy": 0.95, "m": [1, 4, 16, 32], "ceiling": [0.1, 0.2, 0.3, None]}
    truth |= {"sae": carried | faithful | {"transfer": [None] * 4}, "supervised": one | faithful}
    return {
        "classifier": {"arch": {"name": "atto", "depths": [2, 2, 6, 2]}, "test_accuracy": 0.875}
        | {"test_mean_per_class_accuracy": 0.865}
        | {"test_coarser": {"family": {"accuracy": 0.912, "mean_per_class_accuracy": 0.903}}},
        "activations": {"site": "stage4"},
        "sae": {"variant": "topk", "n_channels": 320, "n_features": N_FEATURES, "l0": 8.0, "fvu": 0.112}
        | {"pca_fvu": 0.243, "dead_fraction": 0.109},
        "analysis": {"n_features_alive": 57, "n_class_selective": 17, "n_excluded_by_q": 0},
        "ablation": {
            **spaces,
            "ground_truth": truth,
            "input_space": blurred(),
            "all_features": {"attribution": {"spearman": 0.83, "spearman_ci95": [0.61, 0.93]}},
            "splice": dict(zip(("clean", "spliced", "mean_ablated"), rows, strict=True))
            | {"kl": 0.05, "accuracy_recovered": 0.967, "ce_recovered": 0.964},
        },
    }
