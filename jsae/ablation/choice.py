"""Which features are ablated."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jsae.ablation.statistics import MIN_ACTIVE
from jsae.runtime import logs


class Chosen(NamedTuple):
    """The features to ablate.

    Attributes:
      features: in the order of their evidence.
      selective: those of them that are class-selective.
      all_selective: all class-selective features that are eligible, chosen or not.
      top_classes: of all features, int32 [F]; -1 for one without.
      auroc_train: of all features for these classes on train [F]; NaN for one without.
    """

    features: list[int]
    selective: list[int]
    all_selective: list[int]
    top_classes: np.ndarray
    auroc_train: np.ndarray


def choose(table: Mapping[str, Sequence[Any]], n_features: int, given: Sequence[int] = ()) -> Chosen:
    """The features to ablate, with what is known of them; arguments as for `choose_features`."""
    features = choose_features(table, n_features, given)
    tops = np.array([-1 if top is None else top for top in table["top_class"]], np.int32)
    selective = np.array([bool(value) for value in table["class_selective"]], bool)
    eligible = np.array([bool(value) for value in table["eligible"]], bool)
    return Chosen(
        features,
        [f for f in features if selective[f]],
        np.flatnonzero(selective & eligible).tolist(),
        tops,
        np.array([np.nan if a is None else a for a in table["auroc_train"]], np.float64),
    )


def choose_features(
    table: Mapping[str, Sequence[Any]], n_features: int, given: Sequence[int] = ()
) -> list[int]:
    """The features to ablate, in the order of their evidence.

    If none are given: first the class-selective ones by falling AUROC on train, then the other eligible ones
    by falling mean when active; at most `n_features`. Features that fire on fewer than 20 test images
    (not eligible) are never chosen, as no effect could be reported. Nothing else of test chooses.

    Args:
      table: columns of features.parquet, name -> list over all F features.
      n_features: how many at most.
      given: feature numbers from the config; taken as they are, without repetition.

    Raises:
      ValueError: a given feature does not exist.
    """
    total = len(table["feature"])
    check_given(given, total)
    if given:
        return list(dict.fromkeys(int(feature) for feature in given))
    eligible = np.array([bool(value) for value in table["eligible"]], bool)
    selective = np.array([bool(value) for value in table["class_selective"]], bool) & eligible
    first = np.where(selective, _numbers(table["auroc_train"]), -np.inf)
    then = _numbers(table["mean_active"])
    order = np.lexsort((np.arange(total), -then, -first, ~selective))
    chosen = [int(i) for i in order if eligible[i]][: max(n_features, 0)]
    if not chosen:
        logs.get_logger().warning(
            "ablation: no feature fires on %d test images, so none is ablated and the effects are null",
            MIN_ACTIVE,
        )
    return chosen


def check_given(features: Sequence[int], n_features: int) -> None:
    """Raise ValueError unless all of config.ablation.features are features of an SAE of that size."""
    unknown = [f for f in features if isinstance(f, bool) or f != int(f) or not 0 <= f < n_features]
    if unknown:
        raise ValueError(
            f"config.ablation.features: there is no feature {', '.join(map(str, unknown[:5]))}; "
            f"features are 0 .. {n_features - 1}"
        )


def _numbers(column) -> np.ndarray:
    return np.array([-np.inf if value is None or value != value else value for value in column], np.float64)
