"""A made-up study: random tables in the documented layout, drawn images, manifests of complete stages.

python tests/report/fake_study.py FOLDER   # writes FOLDER/report/index.html to look at
"""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from etils import epath

from jsae.report import survey
from jsae.report.build import build
from jsae.report.reading import read_study
from jsae.report.summary import summarise
from jsae.runtime import artifacts, stages

CONFIG = {
    "seed": 0,
    "data": {"kind": "synthetic_aircraft"},
    "classifier": {},
    "activations": {"site": "stage4"},
    "sae": {"variant": "topk"},
    "analysis": {},
    "ablation": {},
    "report": {"n_features": 12, "n_images": 30, "twin": ""},
}
MARKUP = "<script>alert('a')</script> & \"Co\" F-16A/B"
CLASSES = ("Arrow 100", "Arrow 200", "Boreal 7", "Cirrus Ünïted", MARKUP, "Dart", "Eider Mk IV", "Falke")
N_FEATURES, N_IMAGES, GRID, IMAGE_PX = 64, 40, (3, 3), 96
LARGEST = 3.0  # value that maps are relative to
TARGETS = ("label", "prediction", "top_class")
MEASURES = ("logit", "margin", "confidence", "log_confidence")
LABELS = np.arange(N_IMAGES) % len(CLASSES)


def images() -> np.ndarray:
    """uint8 [N, S, S, 3]: a sky gradient with a slanted bar, a different one each."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:IMAGE_PX, :IMAGE_PX] / IMAGE_PX
    found = []
    for _ in range(N_IMAGES):
        angle, offset = rng.uniform(-0.6, 0.6), rng.uniform(0.35, 0.65)
        sky = np.stack([0.45 + 0.3 * y, 0.62 + 0.2 * y, 0.9 - 0.1 * y], -1)
        body = np.abs(y - offset - angle * (x - 0.5)) < 0.05 + 0.03 * np.sin(6 * x)
        found.append(np.where((body & (np.abs(x - 0.5) < 0.4))[..., None], rng.uniform(0, 1, 3), sky))
    return (255 * np.stack(found)).astype(np.uint8)


def features_table() -> pa.Table:
    rng = np.random.default_rng(2)
    rows = []
    for feature in range(N_FEATURES):
        alive, density = feature % 9 != 4, float(10 ** rng.uniform(-4, -0.3))
        eligible = alive and density > 1e-3
        means = rng.exponential(0.2, len(CLASSES)) + 2.0 * (np.arange(len(CLASSES)) == feature % len(CLASSES))
        numbers = {k: float(rng.uniform()) if alive else None for k in _SELECTIVITY}
        top = feature % len(CLASSES) if alive else None
        rows.append(
            {
                "feature": feature,
                "alive": alive,
                "eligible": eligible,
                "n_active_images": int(density * N_IMAGES) + 20 * eligible if alive else 0,
                "density": density if alive else 0.0,
                "density_train": density * 1.03 if alive else 0.0,
                "max": float(rng.uniform(2, 9)) if alive else 0.0,
                "mean": density,
                "mean_active": float(rng.uniform(0.5, 2)) if alive else None,
                "top_class": top,
                "top_class_name": None if top is None else CLASSES[top],
                "class_mean": means if alive else 0 * means,
                "class_max": 2 * means,
                **numbers,
                "auroc": float(rng.uniform(0.6, 1)) if eligible else None,
                "auroc_p": float(10 ** rng.uniform(-9, -1)) if eligible else None,
                "auroc_q": float(10 ** rng.uniform(-8, -1)) if eligible else None,
                "class_selective": bool(eligible and rng.uniform() < 0.4),
                "polysemanticity": float(rng.uniform()) if alive else None,
            }
        )
    return pa.Table.from_pylist(rows)


_SELECTIVITY = ["purity16"]
_SELECTIVITY += [f"selectivity{end}" for end in ("", "_null", "_excess", "_z")]
_SELECTIVITY += [f"label_entropy{end}" for end in ("", "_null", "_excess", "_z")]


def patches_table() -> pa.Table:
    rng = np.random.default_rng(3)
    rows = []
    for feature in (f for f in range(N_FEATURES) if f % 9 != 4):
        for rank, image in enumerate(rng.permutation(N_IMAGES)[:16]):
            label = int(LABELS[image])
            prediction = label if rng.uniform() < 0.8 else int(rng.integers(len(CLASSES)))
            rows.append(
                {
                    "feature": feature,
                    "rank": rank,
                    "image": int(image),
                    "image_id": f"{image:07d}",
                    "y": int(rng.integers(GRID[0])),
                    "x": int(rng.integers(GRID[1])),
                    "value": float(9.0 * 0.9**rank),
                    "label": label,
                    "label_name": CLASSES[label],
                    "prediction": prediction,
                    "prediction_name": CLASSES[prediction],
                }
            )
    return pa.Table.from_pylist(rows)


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


_KEYS = ("feature", "scope", "target", "measure", "n_active", "share_active")


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


def per_class_table() -> pa.Table:
    rows = [
        {"label": c, "class_name": name, "n_images": 5, "accuracy": 0.2 * (c % 6), "precision": 0.9}
        | {"most_taken_for": CLASSES[c - 1] if c % 6 < 5 else None, "n_taken_for": 5 - c % 6}
        for c, name in enumerate(CLASSES)
    ]
    return pa.Table.from_pylist(rows)


def confusion_table() -> pa.Table:
    right = [{"label": c, "prediction": c, "n_images": c % 6} for c in range(len(CLASSES))]
    wrong = [{"label": c, "prediction": c - 1, "n_images": 5 - c % 6} for c in range(1, len(CLASSES))]
    return pa.Table.from_pylist(right + wrong)


def calibration_table() -> pa.Table:
    rows = [{"low": 0.0, "high": 0.5, "n_images": 0, "confidence": None, "accuracy": None}]
    rows += [{"low": 0.5, "high": 0.75, "n_images": 11, "confidence": 0.617, "accuracy": 0.544}]
    rows += [{"low": 0.75, "high": 1.0, "n_images": 29, "confidence": 0.893, "accuracy": 0.931}]
    return pa.Table.from_pylist(rows)


def nearest_table() -> pa.Table:
    rows = [
        {
            "feature": f,
            "kind": kind,
            "rank": rank,
            "other": (f + 1 + rank) % N_FEATURES,
            "value": 0.737 - rank / 9,
        }
        for f in range(N_FEATURES)
        for kind in ("decoder", "coactivation")
        for rank in range(3)
    ]
    return pa.Table.from_pylist(rows)


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


def localisation_table() -> pa.Table:
    rng = np.random.default_rng(10)
    rows = [
        {"feature": f, "part": part, "n_images": 12, "auroc_train": float(rng.uniform(0.4, 0.9))}
        | {"auroc": float(rng.uniform(0.4, 0.9)), "pointing": float(rng.uniform())}
        for f in range(N_FEATURES)
        for part in ("tail", "wing", "aircraft")
    ]
    return pa.Table.from_pylist(rows)


def receptive_table() -> pa.Table:
    return pa.table(
        {"feature": list(range(9)), "n_patches": [8] * 9, "erf_share": [0.1 + f / 20 for f in range(9)]}
    )


def monosemanticity_table() -> pa.Table:
    values = [None if f % 9 == 4 else 0.2 + f / 200 for f in range(N_FEATURES)]
    columns = {"feature": list(range(N_FEATURES)), "monosemanticity": values}
    return pa.table(columns | {"monosemanticity_random": [0.04] * N_FEATURES})


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


def results() -> dict:
    """Stage -> what it would pass to `finish`."""
    means = {
        "mean_delta_logit": -0.61,
        "mean_delta_margin": -0.823,
        "mean_delta_confidence": -0.0912,
        "control_mean_delta_margin": -0.0312,
        "control_feature_mean_delta_margin": -0.214,
        "mean_effect_minus_control_margin": -1.23,
    }
    space = {"n_features": 10, "n_images": N_IMAGES}
    for key, value in means.items():
        space |= {key: value, f"{key}_ci95": [value - 0.11, value + 0.02]}
    rows = [
        {"accuracy": a, "mean_per_class_accuracy": a - 0.01, "cross_entropy": c, "margin": 5.2 - c}
        for a, c in ((0.875, 0.41), (0.85, 0.47), (0.125, 2.1))
    ]
    return {
        "classifier": {"arch": {"name": "atto", "depths": [2, 2, 6, 2]}, "test_accuracy": 0.875}
        | {"test_mean_per_class_accuracy": 0.865}
        | {"test_coarser": {"family": {"accuracy": 0.912, "mean_per_class_accuracy": 0.903}}},
        "activations": {"site": "stage4"},
        "sae": {"variant": "topk", "n_channels": 320, "n_features": N_FEATURES, "l0": 8.0, "fvu": 0.112}
        | {"pca_fvu": 0.243, "dead_fraction": 0.109},
        "analysis": {"n_features_alive": 57, "n_class_selective": 17},
        "ablation": {
            "feature_space": space,
            "input_space": space,
            "agreement": {"spearman": 0.83, "spearman_ci95": [0.61, 0.93]},
            "splice": dict(zip(("clean", "spliced", "mean_ablated"), rows, strict=True))
            | {"kl": 0.05, "accuracy_recovered": 0.967, "ce_recovered": 0.964},
        },
    }


def make_workdir(workdir, *, without=()) -> epath.Path:
    """Write manifests, tables and curves of all stages but the report and those in `without`."""
    workdir = epath.Path(workdir)
    for position, (name, found) in enumerate(results().items()):
        if name in without:
            continue
        manifest = {"stage": name, "status": "complete", "digest": name, "upstream": None, "results": found}
        manifest |= {"seconds": 12.345 * (position + 1), "compile_seconds": 3.21, "config": {}}
        manifest |= {"device": {"kind": "cpu", "count": 1}, "versions": {}, "git_revision": None}
        artifacts.write_json(workdir / name / "manifest.json", manifest)
    tables = {
        "analysis/features.parquet": features_table,
        "analysis/top_patches.parquet": patches_table,
        "ablation/feature_space.parquet": feature_space_table,
        "ablation/input_space.parquet": input_space_table,
        "ablation/agreement.parquet": agreement_table,
        "classifier/per_class.parquet": per_class_table,
        "classifier/confusion.parquet": confusion_table,
        "classifier/calibration.parquet": calibration_table,
        "analysis/nearest.parquet": nearest_table,
        "analysis/localisation.parquet": localisation_table,
        "analysis/receptive.parquet": receptive_table,
        "analysis/monosemanticity.parquet": monosemanticity_table,
        "ablation/atlas.parquet": atlas_table,
        "ablation/atlas_classes.parquet": atlas_classes_table,
        "ablation/cumulative.parquet": cumulative_table,
        "ablation/sigma_sweep.parquet": sigma_sweep_table,
        "ablation/known_answer.parquet": known_answer_table,
    }
    for path, table in tables.items():
        if path.split("/")[0] not in without:
            artifacts.write_table(workdir / path, table(), {})
    rng = np.random.default_rng(7)
    for name in ("classifier", "sae"):
        if name in without:
            continue
        lines = []
        for step in range(0, 1000, 10):
            fall = float(np.exp(-step / 200))
            row = {
                "step": step,
                "train/loss": 0.05 + 4 * fall + 0.05 * float(rng.uniform()),
                "train/step_per_s": 9.0,
            }
            if name == "sae":
                row |= {"train/fvu": 0.1 + 0.8 * fall, "train/l0": 8.0, "train/dead_fraction": 0.3 * fall}
            if step % 100 == 0:
                row |= {"eval/loss": 0.2 + 3.5 * fall}
                row |= (
                    {"eval/accuracy": 0.9 - fall} if name == "classifier" else {"eval/fvu": 0.12 + 0.8 * fall}
                )
            lines.append(json.dumps(row))
        (workdir / name / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return workdir


def facts(**changes) -> dict:
    """What `run` would find out about data and site."""
    return {
        "data_kind": "synthetic_aircraft",
        "arch": "atto",
        "site": "stage4",
        "grid": GRID,
        "image_px": IMAGE_PX,
        "n_test": N_IMAGES,
        "n_skipped": 0,
        "class_names": CLASSES,
        "class_sizes": np.bincount(LABELS),
    } | changes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Repeating:
    """A stand-in for an SAE: feature f is channel f % C above f / 50."""

    w_dec: Any

    def encode(self, acts):
        features = np.arange(N_FEATURES)
        kept = acts[..., features % acts.shape[-1]] - (features / 50).astype(np.float32)[None, None, None]
        return kept * (kept > 0)


SAE = Repeating(np.eye(8, dtype=np.float32)[np.arange(N_FEATURES) % 8])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """A stand-in for the rest of the classifier: class c reads channel c."""

    weights: Any

    def __call__(self, acts):
        return acts.mean((1, 2)) @ self.weights


HEAD = Head(np.eye(8, dtype=np.float32))


def read_acts(start: int, stop: int) -> np.ndarray:
    """A stand-in for an activation store: float32 [stop - start, H, W, 8]."""
    return np.concatenate(
        [
            np.random.default_rng(i).exponential(1.5, (1, *GRID, 8)).astype(np.float32)
            for i in range(start, stop)
        ]
    )


def make_report(workdir, out, **changes) -> int:
    """Build the report of a made-up workdir into the folder `out`; the number of feature pages."""
    out = epath.Path(out)
    study = read_study(CONFIG, workdir, summarise(CONFIG, workdir), n_pages=12, facts=facts(**changes))
    with_images = changes.get("data_kind") != "arrays"
    if study.features:
        study = dataclasses.replace(study, survey=look(study, with_images), twin={1: (40, 0.875)})
    return build(
        study,
        lambda path, data: artifacts.write_bytes(out / path, data),
        images=images() if with_images else None,
        image_ids=[f"{i:07d}" for i in range(N_IMAGES)],
    )


def look(study, with_images=True):
    """The survey of the made-up activations."""
    return survey.take(
        read_acts,
        SAE,
        np.full(N_FEATURES, LARGEST),
        n_images=N_IMAGES,
        maps=survey.wanted_maps({f: study.patches(f) for f in study.chosen}),
        images=survey.spread(N_IMAGES, 12) if with_images else [],
        logits_from=HEAD if with_images else None,
        labels=LABELS,
    )


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    make_report(make_workdir(target), stages.folder(CONFIG, target, "report"))
    print(target / "report" / "index.html")
