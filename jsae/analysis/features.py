"""features.parquet: one row for every feature of the SAE, what it sees and how strongly."""

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.analysis import class_statistics, top_patches
from jsae.analysis.strength import Strength
from jsae.analysis.top_patches import TopPatches
from jsae.tables import Column, Table, class_name, known_class

MIN_ACTIVE_IMAGES = 20  # of an eligible feature
MIN_AUROC, MAX_Q = 0.8, 0.05  # on train, of a class-selective one

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
            "auroc_train",
            pa.float64(),
            "train AUROC of the mean over the grid for top_class against all other images",
        ),
        Column(
            "auroc_train_q",
            pa.float64(),
            "q of auroc_train: Benjamini-Hochberg over the features that are alive, of its two-sided "
            "Mann-Whitney p, normal with tie correction; optimistic, since top_class is chosen on train, too",
        ),
        Column("auroc", pa.float64(), "the same AUROC on test, which chooses nothing"),
        Column("class_selective", pa.bool_(), f"auroc_train >= {MIN_AUROC} and auroc_train_q <= {MAX_Q}"),
        Column(
            "polysemanticity",
            pa.float64(),
            "share of the top patches whose class is not the commonest of them",
        ),
    ),
)


def describe(
    train: Strength,
    test: Strength,
    top: TopPatches,
    pooled_train: np.ndarray,
    labels_train: np.ndarray,
    pooled: np.ndarray,
    labels: np.ndarray,
    *,
    n_permutations: int,
    seed: int,
    on_block: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The columns of features.parquet but top_class_name, as arrays (NaN: unknown).

    Args:
      train, test: of the two splits.
      top: the strongest test images of each feature [F, K].
      pooled_train, pooled: activations of the two splits, mean over the grid, float32 [n, F].
      labels_train, labels: their labels [n], -1 for unknown.
      n_permutations, seed, on_block: as for `class_statistics.against_null`.
    """
    labels = np.asarray(labels)
    alive, eligible = train.fires > 0, test.active_images >= MIN_ACTIVE_IMAGES
    chosen = class_statistics.top_class(train.class_mean, alive)
    auroc_train, p = class_statistics.class_auroc(pooled_train, np.asarray(labels_train), chosen)
    q = metrics.benjamini_hochberg(p)
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
        "auroc_train": auroc_train,
        "auroc_train_q": q,
        "auroc": class_statistics.class_auroc(pooled, labels, chosen)[0],
        "class_selective": _above(auroc_train) & (np.nan_to_num(q, nan=1.0) <= MAX_Q),
        "polysemanticity": metrics.polysemanticity(top_labels),
    }


def _above(auroc: np.ndarray) -> np.ndarray:
    return np.nan_to_num(auroc) >= MIN_AUROC


def table(columns: dict[str, np.ndarray], class_names: Sequence[str]) -> pa.Table:
    """features.parquet from what `describe` returns."""
    chosen = columns["top_class"]
    named = {"top_class": known_class(chosen), "top_class_name": class_name(chosen, class_names)}
    return TABLE.make(columns | named)


def headline(columns: dict[str, np.ndarray]) -> dict[str, int]:
    """The stage's results: how many features there are of each kind.

    n_excluded_by_q is how many have an auroc_train that would do and a q that does not.
    """
    selective = columns["class_selective"]
    return {
        "n_features": len(columns["feature"]),
        "n_features_alive": int(columns["alive"].sum()),
        "n_eligible": int(columns["eligible"].sum()),
        "n_class_selective": int(selective.sum()),
        "n_excluded_by_q": int((_above(columns["auroc_train"]) & ~selective).sum()),
    }
