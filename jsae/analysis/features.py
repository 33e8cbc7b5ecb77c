"""features.parquet: one row for every feature of the SAE, what it sees and how strongly."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.analysis import class_statistics, top_patches
from jsae.analysis.cells import FOREGROUND
from jsae.analysis.strength import Strength
from jsae.analysis.top_patches import TopPatches
from jsae.tables import Column, Table, class_name, known_class

MIN_ACTIVE_IMAGES = 20  # of an eligible feature
MIN_AUROC, MAX_Q = 0.8, 0.05  # of a class-selective one

_NULL = "over permutations of the test labels, at the same number of active images"
TABLE = Table(
    "features",
    (
        Column("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
        Column("alive", pa.bool_(), "fires on at least one vector of train"),
        Column("eligible", pa.bool_(), f"fires in at least {MIN_ACTIVE_IMAGES} test images"),
        Column("n_active_images", pa.int32(), "test images in which the feature fires anywhere"),
        Column("density", pa.float64(), "share of test vectors on which the feature fires"),
        Column("density_train", pa.float64(), "share of train vectors on which the feature fires"),
        Column("max", pa.float32(), "largest value over test vectors, raw units"),
        Column("mean", pa.float64(), "mean over all test vectors, raw units"),
        Column(
            "mean_active",
            pa.float64(),
            "mean over the test vectors on which it fires, raw units; null if silent",
        ),
        Column("top_class", pa.int32(), "class with the largest class mean on train; null if not alive"),
        Column("top_class_name", pa.string(), "name of top_class"),
        Column(
            "class_mean",
            pa.list_(pa.float32()),
            "for each class, mean over its test images of the mean over the grid, raw units; null: no images",
        ),
        Column(
            "class_max",
            pa.list_(pa.float32()),
            "for each class, mean over its test images of the maximum over the grid, raw units; null: "
            "no images",
        ),
        Column(
            "purity16",
            pa.float64(),
            "share of the commonest class among the 16 top test images; null below 16",
        ),
        Column(
            "selectivity",
            pa.float64(),
            "(m_top - m_rest)/(m_top + m_rest) of the test class means; m_top that of top_class, "
            "m_rest the mean "
            "of the others (Morcos et al. 2018); null if silent on test or without another class",
        ),
        Column("selectivity_null", pa.float64(), f"mean of selectivity {_NULL}"),
        Column("selectivity_excess", pa.float64(), "selectivity - selectivity_null"),
        Column(
            "selectivity_z",
            pa.float64(),
            "selectivity_excess / standard deviation of the null; null if that is 0",
        ),
        Column(
            "label_entropy",
            pa.float64(),
            "entropy of the test class means divided by log(number of classes): 0 one class, 1 all alike",
        ),
        Column("label_entropy_null", pa.float64(), f"mean of label_entropy {_NULL}"),
        Column(
            "label_entropy_excess",
            pa.float64(),
            "label_entropy - label_entropy_null; below 0: follows classes",
        ),
        Column("label_entropy_z", pa.float64(), "label_entropy_excess / standard deviation of the null"),
        Column(
            "auroc",
            pa.float64(),
            "test AUROC of the mean over the grid for top_class against all other images",
        ),
        Column("auroc_p", pa.float64(), "two-sided Mann-Whitney p of auroc, normal with tie correction"),
        Column("auroc_q", pa.float64(), "Benjamini-Hochberg over the eligible features; null for the others"),
        Column("class_selective", pa.bool_(), f"auroc_q <= {MAX_Q} and auroc >= {MIN_AUROC}"),
        Column(
            "polysemanticity",
            pa.float64(),
            "share of the top patches whose class is not the commonest of them",
        ),
        Column(
            "n_parts",
            pa.int32(),
            "parts that it finds with an auroc above 0.8 in localisation.parquet (polysemanticity by parts); "
            "null without masks",
        ),
    ),
)


def describe(
    train: Strength,
    test: Strength,
    top: TopPatches,
    pooled: np.ndarray,
    labels: np.ndarray,
    *,
    n_permutations: int,
    seed: int,
    on_block: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The columns of features.parquet but top_class_name and n_parts, as arrays (NaN: unknown).

    Args:
      train, test: of the two splits.
      top: the strongest test images of each feature [F, K].
      pooled: test activations, mean over the grid, float32 [n, F].
      labels: test labels [n], -1 for unknown.
      n_permutations, seed, on_block: as for `class_statistics.against_null`.
    """
    labels = np.asarray(labels)
    alive, eligible = train.fires > 0, test.active_images >= MIN_ACTIVE_IMAGES
    chosen = class_statistics.top_class(train.class_mean, alive)
    auroc, p = class_statistics.class_auroc(pooled, labels, chosen)
    q = metrics.benjamini_hochberg(p, eligible)
    top_labels = top_patches.labels_of(top, labels)
    fires = test.fires.astype(np.float64)
    return {
        "feature": np.arange(len(alive)),
        "alive": alive,
        "eligible": eligible,
        "n_active_images": test.active_images,
        "density": fires / max(test.n_vectors, 1),
        "density_train": train.fires / max(train.n_vectors, 1),
        "max": test.max,
        "mean": test.total / max(test.n_vectors, 1),
        "mean_active": np.divide(test.total, fires, out=np.full(len(fires), np.nan), where=fires > 0),
        "top_class": chosen,
        "class_mean": test.class_mean,
        "class_max": test.class_max,
        "purity16": metrics.purity16(top_labels),
        **class_statistics.against_null(
            test.class_mean,
            chosen,
            pooled,
            labels,
            n_permutations=n_permutations,
            seed=seed,
            on_block=on_block,
        ),
        "auroc": auroc,
        "auroc_p": p,
        "auroc_q": q,
        "class_selective": (np.nan_to_num(q, nan=1.0) <= MAX_Q) & (np.nan_to_num(auroc) >= MIN_AUROC),
        "polysemanticity": metrics.polysemanticity(top_labels),
    }


def table(columns: dict[str, np.ndarray], class_names: Sequence[str]) -> pa.Table:
    """features.parquet from what `describe` returns."""
    chosen = columns["top_class"]
    more = {
        "n_parts": np.ma.masked_all(len(chosen), np.int32),
        "top_class": known_class(chosen),
        "top_class_name": class_name(chosen, class_names),
    }
    return TABLE.make(columns | more)


def with_parts(rows: pa.Table, localised: pa.Table | None) -> pa.Table:
    """features.parquet with n_parts from localisation.parquet; as it was where no part has masks."""
    parts = [] if localised is None else list(dict.fromkeys(localised["part"].to_pylist()))
    if localised is None or not set(parts) - {FOREGROUND}:
        return rows
    auroc = localised["auroc"].to_numpy().reshape(len(rows), len(parts))
    auroc = auroc[:, [name != FOREGROUND for name in parts]]
    counts = pa.array(metrics.polysemanticity_by_parts(auroc), pa.int32())
    return rows.set_column(rows.column_names.index("n_parts"), TABLE.schema.field("n_parts"), counts)


def headline(columns: dict[str, np.ndarray]) -> dict[str, int]:
    """The stage's results: how many features there are of each kind."""
    return {
        "n_features": len(columns["feature"]),
        "n_features_alive": int(columns["alive"].sum()),
        "n_eligible": int(columns["eligible"].sum()),
        "n_class_selective": int(columns["class_selective"].sum()),
    }
