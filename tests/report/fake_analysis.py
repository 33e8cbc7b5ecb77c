"""Random tables of the analysis, in the documented layout."""

import numpy as np
import pyarrow as pa

from tests.report.fake_world import CLASSES, GRID, LABELS, N_FEATURES, N_IMAGES

_SELECTIVITY = ["purity16"]
_SELECTIVITY += [f"selectivity{end}" for end in ("", "_null", "_excess", "_z")]
_SELECTIVITY += [f"label_entropy{end}" for end in ("", "_null", "_excess", "_z")]


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
