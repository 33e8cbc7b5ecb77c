"""Do the two ways to ask what a feature does agree?

The same (feature, image) pairs and the same cells: the patch under the peak blurred (input space), the
feature removed at the peak (feature space), both on the margin of the feature's top class. The number is
Spearman's rank correlation over features of the two means, with a bootstrap interval over features.
"""

import numpy as np

from jsae import metrics
from jsae.ablation import statistics
from jsae.ablation.feature_space import KINDS, MEASURES, SCOPES, TARGETS, FeatureEffects
from jsae.ablation.input_space import InputEffects

_WHERE = (TARGETS.index("top_class"), MEASURES.index("margin"))


def rows(
    feature_effects: FeatureEffects, input_effects: InputEffects, pairs: np.ndarray, features
) -> list[dict]:
    """One row a feature (agreement.parquet).

    Args:
      feature_effects: all pairs.
      input_effects: the pairs that were blurred.
      pairs: int [m], for each pair of input_effects its row in feature_effects.
      features: the ablated features, in order.
    """
    inside = feature_effects.deltas[pairs, SCOPES.index("peak"), KINDS.index("effect"), *_WHERE]
    outside = input_effects.deltas[:, 0, *_WHERE]
    found = []
    for feature in features:
        mine = input_effects.features == feature
        enough = int((feature_effects.features == feature).sum()) >= statistics.MIN_ACTIVE
        found.append(
            {
                "feature": int(feature),
                "n_images": int(mine.sum()),
                "input_delta_margin": float(outside[mine].mean()) if enough else np.nan,
                "feature_delta_margin": float(inside[mine].mean()) if enough else np.nan,
            }
        )
    return found


def summary(table_rows: list[dict], n_bootstrap: int, seed: int) -> dict:
    """{"spearman", "spearman_ci95"} over the rows that have both means; None where there are too few."""
    both = np.array([[row["input_delta_margin"], row["feature_delta_margin"]] for row in table_rows])
    both = both.reshape(-1, 2)
    both = both[~np.isnan(both).any(1)]
    rho = metrics.spearman(both[:, 0], both[:, 1])
    interval = None
    if rho is not None:
        rng = np.random.default_rng([seed, 2])
        interval = statistics.spearman_interval(both[:, 0], both[:, 1], n_bootstrap, rng)
    return {"spearman": rho, "spearman_ci95": list(interval) if interval else None}
