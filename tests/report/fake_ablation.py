"""Random tables of the ablation, in the documented layout."""

import numpy as np
import pyarrow as pa

from tests.report.fake_world import CLASSES, N_FEATURES, N_IMAGES

TARGETS = ("label", "prediction", "top_class")
MEASURES = ("logit", "margin", "confidence", "log_confidence")
_KEYS = ("feature", "scope", "target", "measure", "n_active", "share_active")


def _with_interval(rng, row: dict, value: str, low: str, high: str, centre: float) -> None:
    row[value] = centre
    row[low], row[high] = centre - float(rng.uniform(0.05, 0.3)), centre + float(rng.uniform(0.05, 0.3))


def feature_space_table(features=range(0, 10)) -> pa.Table:
    rng = np.random.default_rng(4)
    rows = []
    for feature in features:
        effect = float(rng.normal(-0.8, 0.5))
        for scope in ("map", "peak"):
            for target in TARGETS:
                for measure in MEASURES:
                    row = {"feature": feature, "scope": scope, "target": target, "measure": measure}
                    row |= {"n_active": 31, "share_active": 31 / N_IMAGES, "n_control_feature": 29}
                    _with_interval(
                        rng, row, "mean_delta", "ci95_low", "ci95_high", effect * rng.uniform(0.5, 1)
                    )
                    for control in ("direction", "feature"):
                        row[f"control_{control}_mean_delta"] = float(rng.normal(0, 0.1))
                        stem = f"effect_minus_{control}"
                        _with_interval(rng, row, stem, f"{stem}_low", f"{stem}_high", effect)
                        row[f"p_{control}"] = float(10 ** rng.uniform(-7, 0))
                        row[f"q_{control}"] = float(10 ** rng.uniform(-6, 0))
                        row[f"control_{control}_flip_rate"] = float(rng.uniform(0, 0.1))
                    row["flip_rate"] = float(rng.uniform(0, 0.3))
                    if feature == 3:  # fires too rarely: nothing is stated
                        row |= {k: None for k in row if k not in _KEYS} | {"n_active": 7}
                    rows.append(row)
    return pa.Table.from_pylist(rows)


def input_space_table() -> pa.Table:
    rng = np.random.default_rng(5)
    rows = []
    for feature in (0, 1, 2, 5):
        for target in TARGETS:
            for measure in MEASURES:
                row = {"feature": feature, "target": target, "measure": measure, "n_images": 31}
                _with_interval(rng, row, "mean_delta", "ci95_low", "ci95_high", float(rng.normal(-0.5, 0.2)))
                stem = "effect_minus_control"
                _with_interval(rng, row, stem, f"{stem}_low", f"{stem}_high", float(rng.normal(-0.4, 0.2)))
                names = ("control_mean_delta", "p", "q", "feature_fall", "control_feature_fall")
                names += (
                    "energy_matched_share",
                    "control_on_aircraft_share",
                    "flip_rate",
                    "control_flip_rate",
                )
                rows.append(row | {name: float(rng.uniform()) for name in names})
    return pa.Table.from_pylist(rows)


def agreement_table() -> pa.Table:
    rng = np.random.default_rng(6)
    x = rng.normal(-0.5, 0.4, 10)
    y = 0.6 * x + rng.normal(0, 0.1, 10)
    columns = {"feature": range(10), "n_images": [31] * 10}
    return pa.table(
        {k: list(v) for k, v in columns.items()} | {"input_delta_margin": y, "feature_delta_margin": x}
    )


def atlas_table() -> pa.Table:
    rng = np.random.default_rng(8)
    stems = [f"{s}_{t}_{m}" for s in ("map", "peak", "keep_only") for t in TARGETS for m in MEASURES]
    stems += [f"{s}_flip_rate" for s in ("map", "peak", "keep_only")] + ["attribution_margin"]
    rows = []
    for feature in range(N_FEATURES):
        row = {"feature": feature, "top_class": feature % len(CLASSES), "n_active": 31, "share_active": 0.775}
        for stem in stems:
            _with_interval(rng, row, stem, f"{stem}_low", f"{stem}_high", float(rng.normal(-0.3, 0.2)))
        rows.append(row)
    return pa.Table.from_pylist(rows)


def atlas_classes_table() -> pa.Table:
    rng = np.random.default_rng(9)
    rows = [
        {"feature": f, "class": c, "n_images": 5, "n_active": 4}
        | {"label_margin": float(rng.normal(0, 0.3)), "label_margin_se": float(rng.uniform(0.01, 0.1))}
        for f in range(N_FEATURES)
        for c in range(len(CLASSES))
    ]
    return pa.Table.from_pylist(rows)


def cumulative_table() -> pa.Table:
    rows = []
    for order, fall in (("attribution", 0.5), ("random", 0.05)):
        for m in range(9):
            row = {"order": order, "m": m, "n_images": N_IMAGES, "mean_removed": float(m)}
            row |= {"mean_margin": 2 - fall * m, "accuracy": max(0.9 - fall * m / 5, 0.0)}
            for name, value in (("margin", row["mean_margin"]), ("accuracy", row["accuracy"])):
                row |= {f"{name}_ci95_low": value - 0.04, f"{name}_ci95_high": value + 0.03}
            rows.append(row)
    return pa.Table.from_pylist(rows)


def sigma_sweep_table() -> pa.Table:
    rows = [
        {"feature": f, "fill": fill, "sigma_px": sigma, "size_px": 32, "n_images": 20}
        | {"delta_margin": -(sigma or 3) / 20 - f, "control_delta_margin": -0.012, "feature_fall": 0.5}
        for f in (0, 1)
        for fill, sigma in (("blur", 2.0), ("blur", 8.0), ("mean", None))
    ]
    return pa.Table.from_pylist(rows)


def known_answer_table() -> pa.Table:
    rows = [
        {
            "part": "tail",
            "feature": 7,
            "auroc": 0.912,
            "auroc_low": 0.871,
            "auroc_high": 0.944,
            "found": True,
        },
        {"part": "<b>nose</b>", "feature": 9, "auroc": 0.613, "auroc_low": 0.551, "auroc_high": 0.668}
        | {"found": False},
    ]
    return pa.Table.from_pylist(rows)


def baselines_table() -> pa.Table:
    rng = np.random.default_rng(11)
    rows = []
    for name in ("sae", "random directions", "PCA"):
        row = {"dictionary": name, "n_features": N_FEATURES, "fvu": None if name == "PCA" else 0.112}
        stem = "effect_minus_control"
        _with_interval(rng, row, stem, f"{stem}_low", f"{stem}_high", float(rng.normal(-0.4, 0.2)))
        rows.append(row)
    return pa.Table.from_pylist(rows)
