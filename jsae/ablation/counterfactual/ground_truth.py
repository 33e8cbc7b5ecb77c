"""Counterfactual pairs of a drawn study: what each dictionary's features carry of a part.

    tables, results = ground_truth.measure(study)
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from jsae.runtime.context import RunContext
from jsae.study import Study

M = (1, 4, 16, 32)  # features taken together


def measure(
    study: Study,
    dictionaries: Mapping[str, Any] | None = None,
    *,
    n_train: int = 256,
    n_test: int = 256,
    n_candidates: int = 64,
    batch_size: int = 128,
    n_bootstrap: int = 1000,
    keep: Callable[[str, Callable], Callable] | None = None,
    context: RunContext | None = None,
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Measure dictionaries on the twins of a study; it needs a classifier, activations and an SAE, no tables.

    Args:
      study: of drawn data (`study.twins`).
      dictionaries: name -> encode, decode, w_dec, n_features on the study's site, raw units; None: those of
        `comparators.of_study`. `random_matched` (of the one called "sae") and `supervised` are added.
      n_train, n_test: drawings of a pair that features are chosen on and that they are scored on.
      n_candidates: features of a pair whose shares are computed one by one where no closed form is.
      batch_size: drawings at once, a multiple of the mesh's data axis.
      n_bootstrap: resamples of drawings.
      keep: `passes.Passes` of a stage.
      context: shows progress and stops.

    Returns:
      tables: "counterfactual" and "counterfactual_response" by name.
      results: n_pairs (with an open gate), twin_accuracy (mean over all pairs), m, and for each dictionary
        share, leak, tracking, isolated, necessity, transfer (lists over m; of one for supervised) and
        faithfulness {zero, mean, set_to}; ceiling (list over m). Unknown is NaN.

    Raises ValueError where nothing is drawn.
    """
    raise NotImplementedError
