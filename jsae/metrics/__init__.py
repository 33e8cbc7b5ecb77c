"""Every formula behind a number in a table or report: one definition each, as pure array functions.

Two kinds of function. Those on one batch (`sae_sums`, `classifier_sums`, `moments`, `measures`, ...) are
jax, may be jitted, and return sums over the real rows; padding rows carry mask 0 and may hold anything.
Those on whole sets (`add_sums`, `sae_metrics`, `auroc`, ...) run on the host in float64. Sums are divided
once, at the end, so no number depends on the batch size. The files are only its chapters: everything is
reached as `metrics.NAME`.

Variances come from sums about the batch's rows, merged as Chan et al. do: float32 E[x^2] - E[x]^2 is
wrong by 10% at mean/std = 1000. A quantity that is not defined (constant activations, one class only) is
None where the function returns one number, and NaN where it returns an array; tables turn it into null.
"""

from jsae import lazy_modules
from jsae.metrics.class_selectivity import (
    N_PURITY,
    auroc,
    auroc_by_class,
    label_entropy,
    monosemanticity,
    monosemanticity_null,
    polysemanticity,
    purity16,
    selectivity,
)
from jsae.metrics.counterfactual import (
    Response,
    TwinGate,
    carried_share,
    ceiling,
    faithfulness,
    isolated,
    leak,
    mean_of_parts,
    response,
    tracking,
    twin_gate,
)
from jsae.metrics.dictionaries import (
    N_MATCHED,
    matched_cosine,
    max_cosine,
    mean_max_cosine,
    recovery,
    stability,
)
from jsae.metrics.localisation import cell_auroc, pointing
from jsae.metrics.logits import (
    ClassifierSums,
    accuracy,
    calibration,
    classifier_metrics,
    classifier_sums,
    confusion,
    cross_entropy,
    kl,
    mean_per_class_accuracy,
    measures,
)
from jsae.metrics.mediation import error_path, mediated_share, total_effect_is_clear
from jsae.metrics.pixel_maps import N_STEPS, area_under, pixel_progress, pixel_ranks, positive_mass
from jsae.metrics.planted import chosen_shares, detection_limit, planted_strengths
from jsae.metrics.probes import pattern
from jsae.metrics.reconstruction import (
    Moments,
    SaeSums,
    covariance,
    gamma,
    moments,
    pca_fvu,
    recovered,
    sae_metrics,
    sae_sums,
)
from jsae.metrics.shortcut import gap_recovered, group_accuracies, worst_group
from jsae.metrics.statistics import (
    Z95,
    benjamini_hochberg,
    holm,
    join_moments,
    spearman,
    standard_error,
    t_interval,
    wilson,
)
from jsae.metrics.sums import add_sums

__all__ = [
    "N_MATCHED",
    "N_PURITY",
    "N_STEPS",
    "Z95",
    "ClassifierSums",
    "Moments",
    "Response",
    "SaeSums",
    "TwinGate",
    "accuracy",
    "add_sums",
    "area_under",
    "auroc",
    "auroc_by_class",
    "benjamini_hochberg",
    "calibration",
    "carried_share",
    "ceiling",
    "cell_auroc",
    "chosen_shares",
    "classifier_metrics",
    "classifier_sums",
    "confusion",
    "covariance",
    "cross_entropy",
    "detection_limit",
    "error_path",
    "faithfulness",
    "gamma",
    "gap_recovered",
    "group_accuracies",
    "holm",
    "isolated",
    "join_moments",
    "kl",
    "label_entropy",
    "leak",
    "matched_cosine",
    "max_cosine",
    "mean_max_cosine",
    "mean_of_parts",
    "mean_per_class_accuracy",
    "measures",
    "mediated_share",
    "moments",
    "monosemanticity",
    "monosemanticity_null",
    "pattern",
    "pca_fvu",
    "pixel_progress",
    "pixel_ranks",
    "planted_strengths",
    "pointing",
    "polysemanticity",
    "positive_mass",
    "purity16",
    "recovered",
    "recovery",
    "response",
    "sae_metrics",
    "sae_sums",
    "selectivity",
    "spearman",
    "stability",
    "standard_error",
    "t_interval",
    "total_effect_is_clear",
    "tracking",
    "twin_gate",
    "wilson",
    "worst_group",
]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
