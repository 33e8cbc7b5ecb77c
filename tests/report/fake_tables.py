"""Random tables in the layouts that the rooms above declare: no other column can be made here."""

import importlib
import json
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from jsae import study
from jsae.classifier import evaluate
from tests.report.fake_world import CLASSES, GRID, LABELS, N_FEATURES, N_IMAGES

TARGETS = ("label", "prediction", "top_class")  # of feature_space also own_class
MEASURES = ("logit", "margin", "confidence", "log_confidence")


LAYOUTS = {  # the classifier's tables are made by its own function of logits
    name: importlib.import_module(listed.module).TABLE
    for name, listed in study.TABLES.items()
    if listed.stage != "classifier"
}


def fill(name: str, rows: Iterable[dict]) -> pa.Table:
    """Table `name` with what the rows say; other columns are drawn by type, intervals around their numbers.

    A row may say None for all columns but those that it names: {..., "unknown": True}.
    """
    schema = LAYOUTS[name].schema
    rng = np.random.default_rng(list(name.encode()))
    drawn = []
    for row in rows:
        row = dict(row)
        unknown = row.pop("unknown", False)
        assert row.keys() <= set(schema.names), f"{name}: {sorted(row.keys() - set(schema.names))}"
        for field in schema:
            if field.name not in row:
                row[field.name] = None if unknown else _value(field, row, rng)
        drawn.append(row)
    return pa.Table.from_pylist(drawn, schema)


def _value(field: pa.Field, row: dict, rng: np.random.Generator):
    stem, _, end = field.name.rpartition("_")
    if end in ("low", "high") and stem in row:
        width = rng.uniform(0.05, 0.3)
        return None if row[stem] is None else row[stem] + (width if end == "high" else -width)
    if pa.types.is_boolean(field.type):
        return bool(rng.integers(2))
    if pa.types.is_integer(field.type):
        return int(rng.integers(9))
    if pa.types.is_floating(field.type):
        return float(np.float32(rng.uniform()))
    return f"any {field.name}"


def _effects(*more_targets, **columns):
    targets = (*TARGETS, *more_targets)
    return ({"target": target, "measure": measure} | columns for target in targets for measure in MEASURES)


def features_table() -> pa.Table:
    rng = np.random.default_rng(2)
    rows = []
    for feature in range(N_FEATURES):
        alive, density = feature % 9 != 4, float(10 ** rng.uniform(-4, -0.3))
        eligible = alive and density > 1e-3
        means = rng.exponential(0.2, len(CLASSES)) + 2.0 * (np.arange(len(CLASSES)) == feature % len(CLASSES))
        row = {"feature": feature, "alive": alive, "eligible": eligible}
        row |= {"class_mean": (means * alive).tolist(), "class_max": (2 * means).tolist()}
        row |= {"class_selective": bool(eligible and rng.uniform() < 0.4)}
        if alive:
            top = feature % len(CLASSES)
            row |= {"n_active_images": int(density * N_IMAGES) + 20 * eligible, "density": density}
            row |= {"max": float(rng.uniform(2, 9)), "top_class": top, "top_class_name": CLASSES[top]}
        else:
            row |= {"n_active_images": 0, "density": 0.0, "density_train": 0.0, "max": 0.0, "mean": 0.0}
        if alive and not eligible:
            row |= dict.fromkeys(("auroc", "auroc_train", "auroc_train_q"))
        rows.append(row | {"unknown": not alive})
    return fill("features", rows)


def top_patches_table() -> pa.Table:
    rng = np.random.default_rng(3)
    rows = []
    for feature in (f for f in range(N_FEATURES) if f % 9 != 4):
        for rank, image in enumerate(rng.permutation(N_IMAGES)[:16].tolist()):
            label = int(LABELS[image])
            prediction = label if rng.uniform() < 0.8 else int(rng.integers(len(CLASSES)))
            row = {"feature": feature, "rank": rank, "image": image, "image_id": f"{image:07d}"}
            row |= {"y": int(rng.integers(GRID[0])), "x": int(rng.integers(GRID[1])), "value": 9 * 0.9**rank}
            row |= {"label": label, "label_name": CLASSES[label]}
            rows.append(row | {"prediction": prediction, "prediction_name": CLASSES[prediction]})
    return fill("top_patches", rows)


def nearest_table() -> pa.Table:
    return fill(
        "nearest",
        (
            {"feature": f, "kind": kind, "rank": rank, "other": (f + 1 + rank) % N_FEATURES}
            for f in range(N_FEATURES)
            for kind in ("decoder", "coactivation")
            for rank in range(3)
        ),
    )


def localisation_table() -> pa.Table:
    named = ("tail", "wing", "foreground")
    return fill("localisation", ({"feature": f, "part": p} for f in range(N_FEATURES) for p in named))


def parts_table() -> pa.Table:
    return fill("parts", ({"part": part, "feature": f} for part, f in (("tail", 7), ("<b>nose</b>", 9))))


def pixel_maps_table() -> pa.Table:
    known = {"qualified": True, "map": "pixel_map"}
    return fill("pixel_maps", ({"feature": f, "cell_mass": 0.1 + f / 20} | known for f in range(9)))


def monosemanticity_table() -> pa.Table:
    return fill("monosemanticity", ({"feature": f, "unknown": f % 9 == 4} for f in range(N_FEATURES)))


def feature_space_table() -> pa.Table:
    rng = np.random.default_rng(4)
    rows = []
    for feature in range(10):
        for scope in ("map", "peak"):
            for row in _effects("own_class", feature=feature, scope=scope):
                effect = float(rng.normal(-0.8, 0.5))
                known = {"n_active": 31, "mean_delta": effect, "effect_minus_direction": 0.9 * effect}
                known |= {f"{name}_direction": float(10 ** rng.uniform(-4, 0)) for name in "pq"}
                rows.append(row | ({"n_active": 7, "unknown": True} if feature == 3 else known))
    return fill("feature_space", rows)


def input_space_table() -> pa.Table:
    places = [(p, a) for p in ("peak", "active", "mask") for a in ("cell", "mask")]
    return fill(
        "input_space",
        (
            row
            for f in (0, 1, 2, 5)
            for placement, area in places
            for row in _effects(feature=f, placement=placement, area=area, n_pairs=31)
        ),
    )


def all_features_table() -> pa.Table:
    return fill("all_features", ({"feature": feature, "n_active": 31} for feature in range(N_FEATURES)))


def all_features_by_class_table() -> pa.Table:
    sizes = {"n_images": 5, "n_active": 4}
    rows = ({"feature": f, "class": c} | sizes for f in range(N_FEATURES) for c in range(len(CLASSES)))
    return fill("all_features_by_class", rows)


def cumulative_table() -> pa.Table:
    rows = [
        {"order": order, "m": m, "mean_margin": 2 - fall * m, "accuracy": max(0.9 - fall * m / 5, 0.0)}
        for order, fall in (("attribution", 0.5), ("random", 0.05))
        for m in range(9)
    ]
    return fill("cumulative", rows)


def counterfactual_table() -> pa.Table:
    rows = (
        {"dictionary": name, "part": part, "m": m, "features": list(range(m))}
        for name in ("sae", "rotation")
        for part in ("gear", "engines")
        for m in (1, 4)
    )
    return fill("counterfactual", rows)


def counterfactual_response_table() -> pa.Table:
    rows = ({"dictionary": "sae", "part": part, "rank": 1} for part in ("gear", "engines"))
    return fill("counterfactual_response", rows)


def mediation_table() -> pa.Table:
    kinds = (("blurred", "mask", "label"), ("rendered", "part", "pair"))
    keys = [dict(zip(("input", "area", "target"), kind, strict=True)) for kind in kinds]
    rows = (key | {"m": m} for key in keys for m in (1, 4, 16, N_FEATURES))
    return fill("mediation", rows)


def baselines_table() -> pa.Table:
    rows = [{"dictionary": name} for name in ("sae", "random directions")]
    return fill("baselines", [*rows, {"dictionary": "PCA", "fvu": None}])


def planted_table() -> pa.Table:
    rows = [{"dictionary": name, "dose": 0.01, "m": m} for name in ("oracle", "topk") for m in (1, 4)]
    return fill("planted", rows)


def shortcut_table() -> pa.Table:
    return fill("shortcut", [{"removal": name} for name in ("none", "off_foreground", "reference")])


def seeds_table() -> pa.Table:
    rows = ({"classifier": str(seed), "dictionary": "sae", "m": m} for seed in (0, 1) for m in (1, 4))
    return fill("seeds", rows)


def visaebench_table() -> pa.Table:
    return fill("visaebench", [{}])


def sweep_table() -> pa.Table:
    rows = [
        {"variant": variant, "k": k, "l1": None, "learning_rate": 1e-3, "seed": 0, "others": "{}"}
        | {"l0_coefficient": None, "l0": float(k), "fvu": 1 / k, "pca_fvu": 1.5 / k, "n_features": N_FEATURES}
        for variant in ("topk", "batch_topk")
        for k in (4, 8, 16)
    ]
    return fill("sweep", rows)


def classifier_tables() -> dict[str, pa.Table]:
    """Tables of made-up logits: c % 6 of the five images of class c are predicted so, the others as c - 1."""
    place = np.arange(N_IMAGES) // len(CLASSES)
    predictions = np.where(place < LABELS % 6, LABELS, LABELS - 1)
    sure = np.linspace(2.5, 6.0, N_IMAGES)
    return evaluate.tables(np.eye(len(CLASSES))[predictions] * sure[:, None], LABELS, CLASSES)


def all_tables() -> dict[str, dict[str, pa.Table]]:
    """Folder of the workdir -> name -> table."""
    found = {"classifier": classifier_tables(), "sweep": {"table": sweep_table()}}
    for name in LAYOUTS.keys() - {"sweep"}:
        listed = study.TABLES[name]
        found.setdefault(listed.folder or listed.stage, {})[name] = globals()[f"{name}_table"]()
    return found


def curve(stage: str) -> str:
    """The text of the stage's metrics.jsonl."""
    rng = np.random.default_rng(7)
    lines = []
    for step in range(0, 1000, 10):
        fall = float(np.exp(-step / 200))
        row = {"step": step, "train/loss": 0.05 + 4 * fall + 0.05 * float(rng.uniform())}
        row |= {"train/step_per_s": 9.0}
        if stage == "sae":
            row |= {"train/fvu": 0.1 + 0.8 * fall, "train/l0": 8.0, "train/dead_fraction": 0.3 * fall}
        if step % 100 == 0:
            row |= {"eval/loss": 0.2 + 3.5 * fall}
            row |= {"eval/accuracy": 0.9 - fall} if stage == "classifier" else {"eval/fvu": 0.12 + 0.8 * fall}
        lines.append(json.dumps(row))
    return "\n".join(lines) + "\n"
