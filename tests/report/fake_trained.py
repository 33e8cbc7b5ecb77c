"""What training left: the classifier's tables, a sweep of SAEs, learning curves, in the documented layout."""

import json

import numpy as np
import pyarrow as pa

from tests.report.fake_world import CLASSES, N_FEATURES


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


def sweep_table() -> pa.Table:
    rows = [
        {"digest": f"{variant}-{k}", "variant": variant, "n_features": N_FEATURES, "k": k, "l1": None}
        | {"l0_coefficient": None, "learning_rate": 1e-3, "seed": 0, "l0": float(k), "fvu": 1 / k}
        | {"pca_fvu": 1.5 / k, "dead_fraction": 0.0, "accuracy_recovered": 1 - 0.5 / k}
        for variant in ("topk", "batch_topk")
        for k in (4, 8, 16)
    ]
    return pa.Table.from_pylist(rows)


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
