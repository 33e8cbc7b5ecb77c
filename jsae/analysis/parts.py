"""parts.parquet: for each part the SAE's best feature beside what the same search finds without an SAE.

The feature is the one with the largest part AUROC on train; what is reported is test. Beside it stand the
best of F random directions, chosen on train in the same way, and the priors of `localisation.priors`; as a
ceiling the two directions that were fitted to the masks (`jsae.analysis.readouts`).
"""

import numpy as np
import pyarrow as pa

from jsae.analysis import directions, localisation, readouts, tables

FILE = "parts.parquet"
FOUND_AUROC, FOUND_MARGIN = 0.85, 0.10  # a part is found: at least this, and this much above every null

_RANDOM = "of the best of F random directions, chosen on train in the same way"
SCHEMA = tables.schema(
    ("part", pa.string(), "part of the aircraft, or aircraft"),
    ("n_images", pa.int32(), "test images looked at that have the part in a cell"),
    ("feature", pa.int32(), "SAE feature with the largest part AUROC on train"),
    ("auroc_train", pa.float64(), "its part AUROC on train"),
    ("auroc", pa.float64(), "its part AUROC on test"),
    ("pointing", pa.float64(), "share of n_images in which its peak is in the part"),
    ("random_feature", pa.int32(), "which of `directions.random(mean, F, seed)` that is"),
    ("random_auroc", pa.float64(), f"test part AUROC {_RANDOM}"),
    ("random_pointing", pa.float64(), f"pointing game {_RANDOM}"),
    ("centre_auroc", pa.float64(), "test part AUROC of the nearness of a cell to the centre of the image"),
    (
        "position_auroc",
        pa.float64(),
        "test part AUROC of the share of train images with the part in which it covers the cell: it knows "
        "the part's name and where aircraft stand",
    ),
    (
        "mean_difference_auroc",
        pa.float64(),
        "test part AUROC along the difference of the means of the part's cells and of the other cells on the "
        "aircraft of train: it knows the masks",
    ),
    (
        "probe_auroc",
        pa.float64(),
        "test part AUROC of a linear readout of the activations, fitted to the masks of train: a ceiling",
    ),
    (
        "found",
        pa.bool_(),
        f"auroc >= {FOUND_AUROC}, and >= {FOUND_MARGIN} above random_auroc and centre_auroc",
    ),
)


def measure(sae, stores: dict, cells: dict, *, batch_size: int, seed: int, on_batch=lambda n_images: None):
    """Both tables of localisation.

    Args:
      sae: the SAE, a pytree with encode, n_features and mean.
      stores, cells: activation stores and `cells.PartCells` of "train" and "test".
      batch_size, on_batch: as for `localisation.measure`.
      seed: of the random directions.

    Returns:
      (columns of SCHEMA, localisation.parquet).
    """
    random = directions.random(sae.mean, sae.n_features, seed)
    settings = {"batch_size": batch_size, "on_batch": on_batch}
    seen, null = (
        {s: localisation.measure(dictionary, stores[s], cells[s], **settings) for s in ("train", "test")}
        for dictionary in (sae, random)
    )
    images = {split: localisation.images_of(stores[split], sae.n_features) for split in stores}
    prior = localisation.priors(
        cells["train"], cells["test"], images["train"], images["test"], stores["test"].grid
    )
    best, best_null = best_of(seen), best_of(null)
    read = {split: readouts.read(stores[split], cells[split], images[split]) for split in stores}
    labelled = readouts.fit(read["train"])
    columns = {
        "part": list(seen["test"].parts),
        "n_images": seen["test"].n_images,
        **best,
        "random_feature": best_null["feature"],
        "random_auroc": best_null["auroc"],
        "random_pointing": best_null["pointing"],
        "centre_auroc": prior["centre"],
        "position_auroc": prior["position"],
        **{f"{kind}_auroc": readouts.auroc(row, read["test"]) for kind, row in labelled.items()},
    }
    columns["found"] = found(columns)
    return columns, localisation.table(seen["train"], seen["test"])


def best_of(seen: dict) -> dict[str, np.ndarray]:
    """feature, auroc_train, auroc, pointing [P] of the features chosen on train, from `Scores` by split."""
    chosen = seen["train"].best()
    each = np.arange(len(chosen))
    return {
        "feature": chosen,
        "auroc_train": seen["train"].auroc[chosen, each],
        "auroc": seen["test"].auroc[chosen, each],
        "pointing": seen["test"].pointing[chosen, each],
    }


def found(columns: dict) -> np.ndarray:
    """Which parts are found, bool [P]."""
    null = np.maximum(columns["random_auroc"], columns["centre_auroc"])
    return (columns["auroc"] >= FOUND_AUROC) & (columns["auroc"] - null >= FOUND_MARGIN)


def headline(columns: dict) -> dict:
    """The stage's results: parts looked at (the aircraft as a whole left out), and how many are found."""
    return {"n_parts": len(columns["part"]) - 1, "n_found": int(columns["found"][:-1].sum())}
