"""The SAE as a whole: how well does the classifier work on its reconstruction?

Three forward passes from the stored activations of a split: clean, spliced (every vector replaced by its
reconstruction, the error dropped) and mean-ablated (every vector replaced by the train mean, which leaves
nothing of the image). `recovered` places the spliced loss and accuracy between the other two: 1 is as good
as clean, 0 as bad as no information. The clean side is computed here, by the same function, so a perfect
reconstruction recovers exactly 1.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae import metrics
from jsae.activations import Encoded, Reducer
from jsae.edits import MeanAblation
from jsae.runtime.pytrees import pytree

VERSIONS = ("clean", "spliced", "mean_ablated")
KEYS = ("accuracy", "mean_per_class_accuracy", "cross_entropy", "margin")


@pytree
class MeasureSplice(Reducer):
    """Splice metrics over a split (METRICS, "splice").

    The result is {"clean", "spliced", "mean_ablated": {"accuracy", "mean_per_class_accuracy",
    "cross_entropy", "margin"}, "kl", "accuracy_recovered", "ce_recovered"}; None where a number does not
    exist.

    Attributes:
      logits_from_acts: acts [B, H, W, C] -> logits [B, L]; a pytree (`classifier.forward.as_argument`).
      mean: [C], the train mean of the activations.
    """

    logits_from_acts: Callable
    mean: np.ndarray

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> list:
        return [None] * len(VERSIONS)

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, metrics.ClassifierSums]:
        acts = batch.acts
        spliced = dictionary.decode(batch.feats).astype(acts.dtype)
        versions = jnp.stack([acts, spliced, MeanAblation(jnp.asarray(self.mean))(acts)])
        logits = jax.lax.map(self.logits_from_acts, versions)  # [3, B, L]
        return carry, jax.vmap(
            lambda version: metrics.classifier_sums(version, batch.labels, batch.real, logits[0])
        )(logits)

    def add(self, total: list, part: metrics.ClassifierSums, rows: slice, n: int) -> list:
        return [metrics.add_sums(old, type(part)(*(each[i] for each in part))) for i, old in enumerate(total)]

    def finish(self, carry: Any, total: list) -> dict[str, Any]:
        found = dict(zip(VERSIONS, map(metrics.classifier_metrics, total), strict=True))
        numbers = {name: {key: known(each[key]) for key in KEYS} for name, each in found.items()}

        def recovered(key):
            return known(metrics.recovered(*(numbers[name][key] for name in reversed(VERSIONS))))

        return numbers | {
            "kl": known(found["spliced"]["kl"]),
            "accuracy_recovered": recovered("accuracy"),
            "ce_recovered": recovered("cross_entropy"),
        }


def known(number: float | None) -> float | None:
    """The number as a Python float, None where it is unknown (None, NaN or infinite)."""
    return None if number is None or not np.isfinite(number) else float(number)
