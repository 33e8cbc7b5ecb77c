"""The SAE as a whole: how well does the classifier work on its reconstruction?

Three forward passes from the stored activations of a split: clean, spliced (every vector replaced by its
reconstruction, the error dropped) and mean-ablated (every vector replaced by the train mean, which leaves
nothing of the image). `recovered` places the spliced loss and accuracy between the other two: 1 is as good
as clean, 0 as bad as no information. The clean side is computed here, by the same function, so a perfect
reconstruction recovers exactly 1.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jsae import metrics
from jsae.classifier.forward import as_argument
from jsae.edits import MeanAblation

VERSIONS = ("clean", "spliced", "mean_ablated")
KEYS = ("accuracy", "mean_per_class_accuracy", "cross_entropy", "margin")


@jax.jit
def _sums(logits_from_acts, sae, mean, acts, labels, mask):
    """Sums of one batch, acts [B, H, W, C], with a leading axis for the VERSIONS."""
    spliced = sae.decode(sae.encode(acts)).astype(acts.dtype)
    versions = jnp.stack([acts, spliced, MeanAblation(mean)(acts)])
    logits = jax.lax.map(logits_from_acts, versions)  # [3, B, L]
    return jax.vmap(lambda version: metrics.classifier_sums(version, labels, mask, logits[0]))(logits)


def measure(
    logits_from_acts: Callable,
    sae,
    batches: Iterable,
    *,
    labels: np.ndarray,
    mean: np.ndarray,
    on_batch: Callable[[int], None] = lambda n_images: None,
) -> dict:
    """Splice metrics over a split (METRICS, "splice").

    Args:
      logits_from_acts: acts [B, H, W, C] -> logits [B, L]; a pytree or a plain function.
      sae: the SAE of the site.
      batches: yields (start, acts [B, H, W, C] raw, mask [B]) over the split, all of one B.
      labels: int [n_images].
      mean: [C], the train mean of the activations.
      on_batch: called with the number of images after each batch.

    Returns:
      {"clean", "spliced", "mean_ablated": {"accuracy", "mean_per_class_accuracy", "cross_entropy",
      "margin"}, "kl", "accuracy_recovered", "ce_recovered"}; None where a number does not exist.
    """
    logits_from_acts, mean, sums = as_argument(logits_from_acts), jnp.asarray(mean), [None] * len(VERSIONS)
    for start, acts, mask in batches:
        n = int(np.sum(np.asarray(mask) > 0))
        of_batch = np.zeros(len(acts), np.int32)
        of_batch[:n] = labels[start : start + n]
        new = jax.tree.map(np.asarray, _sums(logits_from_acts, sae, mean, acts, of_batch, mask))
        sums = [
            metrics.add_sums(old, jax.tree.map(lambda each, i=i: each[i], new)) for i, old in enumerate(sums)
        ]
        on_batch(n)
    seen = [metrics.classifier_metrics(each) for each in sums]
    numbers = {
        name: {key: known(each[key]) for key in KEYS} for name, each in zip(VERSIONS, seen, strict=True)
    }

    def recovered(key):
        ablated, spliced, clean = (numbers[name][key] for name in ("mean_ablated", "spliced", "clean"))
        return known(metrics.recovered(ablated, spliced, clean))

    return numbers | {
        "kl": known(seen[VERSIONS.index("spliced")]["kl"]),
        "accuracy_recovered": recovered("accuracy"),
        "ce_recovered": recovered("cross_entropy"),
    }


def known(number) -> float | None:
    """The number as a Python float, None where it is unknown (None, NaN or infinite)."""
    return None if number is None or not np.isfinite(number) else float(number)
