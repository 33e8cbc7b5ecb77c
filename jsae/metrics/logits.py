"""Logits: measures of one image against a target, and what a whole split says of a classifier."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jsae.metrics.sums import add_sums, divide, ratio

_Array = jax.Array | np.ndarray


def measures(logits: _Array, target: _Array) -> dict[str, jax.Array]:
    """What the logits say about a target class, for each image.

    Args:
      logits: [B, L], or [L] with a scalar target.
      target: int [B].

    Returns:
      logit, margin (target minus the best other class; NaN if L is 1), confidence (softmax) and
      log_confidence (log-softmax), each [B].
    """
    is_target = jax.nn.one_hot(target, logits.shape[-1], dtype=bool)  # [B, L]
    logit = jnp.sum(jnp.where(is_target, logits, 0), axis=-1)
    others = jnp.max(jnp.where(is_target, -jnp.inf, logits), axis=-1)
    log_confidence = logit - jax.nn.logsumexp(logits, axis=-1)
    return {
        "logit": logit,
        "margin": logit - others if logits.shape[-1] > 1 else jnp.full_like(logit, jnp.nan),
        "confidence": jnp.exp(log_confidence),
        "log_confidence": log_confidence,
    }


def kl(clean_logits: _Array, logits: _Array) -> jax.Array:
    """KL(clean || other) in nats of the two softmax distributions, [B], for logits [B, L]."""
    log_p = jax.nn.log_softmax(clean_logits, axis=-1)
    log_q = jax.nn.log_softmax(logits, axis=-1)
    return jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * (log_p - log_q), 0.0), axis=-1)


class ClassifierSums(NamedTuple):
    """Sums over images: correct and count by class of the label [L], cross-entropy, margin, KL to clean."""

    correct: jax.Array
    count: jax.Array  # type: ignore[assignment]  # a tuple has a method of that name
    cross_entropy: jax.Array
    margin: jax.Array
    kl: jax.Array


def classifier_sums(
    logits: _Array, labels: _Array, mask: _Array, clean_logits: _Array | None = None
) -> ClassifierSums:
    """Sums of one batch of images; without clean_logits the KL is 0.

    Args:
      logits, clean_logits: [B, L].
      labels: int [B]; images with label -1 (unknown) are left out.
      mask: [B], 0 for padding rows.
    """
    real = (mask > 0) & (labels >= 0)
    logits = logits.astype(jnp.float32)
    is_label = (jnp.arange(logits.shape[-1])[None, :] == labels[:, None]) & real[:, None]  # [B, L]
    is_correct = jnp.argmax(logits, axis=-1) == labels
    scores = measures(logits, labels)
    divergence = jnp.zeros_like(scores["logit"]) if clean_logits is None else kl(clean_logits, logits)
    return ClassifierSums(
        correct=jnp.sum(is_label & is_correct[:, None], axis=0),
        count=jnp.sum(is_label, axis=0),
        cross_entropy=jnp.sum(jnp.where(real, -scores["log_confidence"], 0.0)),
        margin=jnp.sum(jnp.where(real, scores["margin"], 0.0)),
        kl=jnp.sum(jnp.where(real, divergence, 0.0)),
    )


def classifier_metrics(sums: ClassifierSums) -> dict[str, Any]:
    """accuracy, mean_per_class_accuracy, cross_entropy, margin, kl, n_images; None where undefined.

    mean_per_class_accuracy is the plain mean over the classes that occur in the set; the others are means
    over images. The margin is None if there is one class only.
    """
    sums = add_sums(None, sums)
    n, occurs = int(sums.count.sum()), sums.count > 0
    by_class = sums.correct[occurs] / sums.count[occurs]
    return {
        "accuracy": ratio(sums.correct.sum(), n),
        "mean_per_class_accuracy": float(by_class.mean()) if n else None,
        "cross_entropy": ratio(sums.cross_entropy, n),
        "margin": ratio(sums.margin, n),
        "kl": ratio(sums.kl, n),
        "n_images": n,
    }


def accuracy(logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Share of the images whose largest logit is the label's; logits [B, L], labels [B], mask [B] or None."""
    return _whole(logits, labels, mask)["accuracy"]


def mean_per_class_accuracy(
    logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None
) -> float | None:
    """Mean over the classes that occur of their accuracy; arguments as in `accuracy`."""
    return _whole(logits, labels, mask)["mean_per_class_accuracy"]


def cross_entropy(logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None = None) -> float | None:
    """Mean over images of -log softmax of the label, in nats; arguments as in `accuracy`."""
    return _whole(logits, labels, mask)["cross_entropy"]


def confusion(logits: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Number of images with label i and prediction j, int64 [L, L], for logits [N, L] and labels [N]."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    n_classes = logits.shape[1]
    pairs = labels.astype(np.int64) * n_classes + logits.argmax(1)
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def calibration(logits: ArrayLike, labels: ArrayLike, n_bins: int) -> dict[str, Any]:
    """Confidence against accuracy in `n_bins` equal bins of confidence (arXiv 1706.04599).

    Returns arrays [n_bins] "low", "high", "n_images", "confidence" and "accuracy" (the means of a bin, NaN
    where it is empty), and "ece", the mean over images of |accuracy - confidence| of their bin.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels)
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    confidence = (exponentials / exponentials.sum(1, keepdims=True)).max(1)
    right = (logits.argmax(1) == labels).astype(np.float64)
    edges = np.linspace(0, 1, n_bins + 1)
    bins = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, n_bins - 1)  # (low, high]
    count = np.bincount(bins, minlength=n_bins)
    mean_confidence = divide(np.bincount(bins, confidence, n_bins), count)
    accuracy = divide(np.bincount(bins, right, n_bins), count)
    gaps = np.where(count > 0, count * np.abs(accuracy - mean_confidence), 0.0)
    return {
        "low": edges[:-1],
        "high": edges[1:],
        "n_images": count,
        "confidence": mean_confidence,
        "accuracy": accuracy,
        "ece": float(gaps.sum() / len(labels)) if len(labels) else None,
    }


def _whole(logits: ArrayLike, labels: ArrayLike, mask: ArrayLike | None) -> dict[str, Any]:
    labels = jnp.asarray(labels)
    mask = jnp.ones(labels.shape) if mask is None else jnp.asarray(mask)
    return classifier_metrics(classifier_sums(jnp.asarray(logits), labels, mask))
