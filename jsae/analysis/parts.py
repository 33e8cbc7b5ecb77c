"""parts.parquet: for each part the SAE's best feature beside what the same search finds without an SAE.

The feature is the one with the largest part AUROC on train; what is reported is test. Beside it stand the
best of F random directions, chosen on train in the same way, and the priors of `localisation.priors`; as a
ceiling the two directions that were fitted to the masks (`jsae.analysis.readouts`).

An appendix, without a bar to pass: it says where features fire and not what they do. On the drawn set the
prior `position`, which sees no activation, is above the best feature in nearly every part, and a feature that
fires where a part is carries next to nothing of the part's effect on the logits.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from jsae.analysis import directions, localisation, readouts
from jsae.analysis.cells import PartCells
from jsae.analysis.strength import KeepMaps
from jsae.tables import Column, Table

_RANDOM = "of the best of F random directions, chosen on train in the same way"
TABLE = Table(
    "parts",
    (
        Column("part", pa.string(), "part of the foreground, or foreground"),
        Column("n_images", pa.int32(), "test images that have the part in a cell"),
        Column("feature", pa.int32(), "SAE feature with the largest part AUROC on train"),
        Column("auroc_train", pa.float64(), "its part AUROC on train"),
        Column("auroc", pa.float64(), "its part AUROC on test"),
        Column("pointing", pa.float64(), "share of n_images in which its peak is in the part"),
        Column("random_feature", pa.int32(), "which of `directions.random(mean, F, seed)` that is"),
        Column("random_auroc", pa.float64(), f"test part AUROC {_RANDOM}"),
        Column("random_pointing", pa.float64(), f"pointing game {_RANDOM}"),
        Column(
            "centre_auroc",
            pa.float64(),
            "test part AUROC of the nearness of a cell to the centre of the image",
        ),
        Column(
            "position_auroc",
            pa.float64(),
            "test part AUROC of the share of train images with the part in which it covers the cell: "
            "it knows "
            "the part's name and where aircraft stand",
        ),
        Column(
            "mean_difference_auroc",
            pa.float64(),
            "test part AUROC along the difference of the means of the part's cells and of the other "
            "cells on the "
            "foreground of train: it knows the masks",
        ),
        Column(
            "probe_auroc",
            pa.float64(),
            "test part AUROC of a linear readout of the activations, fitted to the masks of train: a ceiling",
        ),
    ),
)


def compare(
    study: Any, cells: dict[str, PartCells], pass_over: Callable[..., dict[str, Any]], seed: int
) -> tuple[dict[str, Any], pa.Table]:
    """Both tables of localisation: (columns of parts.parquet, localisation.parquet).

    Args:
      study: an opened study: sae, activations(split).
      cells: of the splits "train" and "test".
      pass_over: (split, reducers, label=, dictionary=, images=) -> results of a pass.
      seed: of the random directions.
    """
    stores = {split: study.activations(split) for split in cells}
    images = {split: localisation.images_of(stores[split], study.sae.n_features) for split in cells}
    random = directions.random(study.sae.mean, study.sae.n_features, seed)

    def scores(dictionary, name: str) -> dict[str, localisation.Scores]:
        found = {}
        for split, chosen in images.items():
            label = f"analysis: {name} in cells of {split}"
            maps = pass_over(split, {"maps": KeepMaps()}, label=label, dictionary=dictionary, images=chosen)
            found[split] = localisation.score(maps["maps"], cells[split], chosen)
        return found

    of_sae, of_random = scores(study.sae, "features"), scores(random, "random directions")
    prior = localisation.priors(
        cells["train"], cells["test"], images["train"], images["test"], stores["test"].grid
    )
    best_random = best_of(of_random)
    read = {split: readouts.read(stores[split], cells[split], images[split]) for split in cells}
    supervised = readouts.fit(read["train"])
    columns = {
        "part": list(of_sae["test"].parts),
        "n_images": of_sae["test"].n_images,
        **best_of(of_sae),
        "random_feature": best_random["feature"],
        "random_auroc": best_random["auroc"],
        "random_pointing": best_random["pointing"],
        "centre_auroc": prior["centre"],
        "position_auroc": prior["position"],
        **{f"{kind}_auroc": readouts.auroc(row, read["test"]) for kind, row in supervised.items()},
    }
    return columns, localisation.table(of_sae["train"], of_sae["test"])


def best_of(scores: dict[str, localisation.Scores]) -> dict[str, np.ndarray]:
    """feature, auroc_train, auroc, pointing [P] of the features chosen on train, from scores by split."""
    chosen = scores["train"].best()
    each = np.arange(len(chosen))
    return {
        "feature": chosen,
        "auroc_train": scores["train"].auroc[chosen, each],
        "auroc": scores["test"].auroc[chosen, each],
        "pointing": scores["test"].pointing[chosen, each],
    }
