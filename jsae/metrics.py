"""Every formula behind a number in a table or report: one definition each, as pure array functions.

Two kinds of function. Those on one batch (`sae_sums`, `classifier_sums`, `moments`, `measures`, ...) are
jax, may be jitted, and return sums over the real rows; padding rows carry mask 0 and may hold anything.
Those on whole sets (`add_sums`, `sae_metrics`, `auroc`, ...) run on the host in float64. Sums are divided
once, at the end, so no number depends on the batch size.

Variances come from sums about the batch's own rows, merged as Chan et al. do: float32 E[x^2] - E[x]^2 is
wrong by 10% at mean/std = 1000. A quantity that is not defined (constant activations, one class only) is
None where the function returns one number, and NaN where it returns an array; tables turn it into null.
"""

import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats

N_PURITY = 16  # top images that `purity16` looks at

_log = logging.getLogger("jsae.metrics")


# ---------------------------------------------------------------- activations and their reconstruction


class SaeSums(NamedTuple):
    """Sums over activation vectors; from `sae_sums`, joined by `add_sums`, read by `sae_metrics`.

    Attributes:
      n: vectors.
      sse: sum of ||x - x_hat||^2.
      mean: mean of x - shift, [C].
      m2: sum of ||x - mean of x||^2.
      fires: vectors on which each feature is not 0, [F].
    """

    n: jax.Array
    sse: jax.Array
    mean: jax.Array
    m2: jax.Array
    fires: jax.Array


class Moments(NamedTuple):
    """Moments of vectors: n, mean of x - shift [C], scatter = sum of (x - mean)(x - mean)^T [C, C]."""

    n: jax.Array
    mean: jax.Array
    scatter: jax.Array


def _centred(x, mask, shift):
    """(n, mean of x - shift [C], x - mean with 0 in padding rows [N, C]) of the rows with mask 1."""
    real = mask[:, None] > 0
    n = jnp.sum(mask > 0)
    pivot = x[jnp.argmax(mask > 0)]  # a real row lies within the spread of the others, whatever their mean
    d = jnp.where(real, x - pivot[None, :], 0.0)
    mean = jnp.sum(d, axis=0) / jnp.maximum(n, 1)
    centred = jnp.where(real, d - mean[None, :], 0.0)
    return n, jnp.where(n > 0, (pivot - shift) + mean, 0.0), centred


def sae_sums(x, x_hat, feats, mask, shift) -> SaeSums:
    """Sums of one batch of activation vectors.

    Args:
      x: raw activations [N, C].
      x_hat: their reconstruction, raw [N, C].
      feats: features [N, F], any units.
      mask: [N], 0 for padding rows.
      shift: [C], something near the mean (the train mean); the same for all batches that are added up.
    """
    x = x.astype(jnp.float32)
    real = mask > 0
    n, mean, centred = _centred(x, mask, shift)
    error = jnp.where(real[:, None], x - x_hat, 0.0)
    return SaeSums(
        n=n,
        sse=jnp.sum(jnp.sum(error**2, axis=1)),  # by rows first: float32 sums over N*C terms drift
        mean=mean,
        m2=jnp.sum(jnp.sum(centred**2, axis=1)),
        fires=jnp.sum((feats != 0) & real[:, None], axis=0),
    )


def moments(x, mask, shift) -> Moments:
    """Moments of the real rows of x [N, C]; mask [N], shift [C] as in `sae_sums`."""
    n, mean, centred = _centred(x.astype(jnp.float32), mask, shift)
    return Moments(n, mean, jnp.matmul(centred.T, centred, precision="float32"))


def add_sums(a, b):
    """Join the sums of two disjoint sets, on the host: counts as int64, the rest as float64.

    Args:
      a: SaeSums, Moments or ClassifierSums, or None for the empty set.
      b: the same type.
    """
    b = type(b)(*(_host(value) for value in b))
    if a is None:
        return b
    a = type(b)(*(_host(value) for value in a))
    with np.errstate(invalid="ignore", over="ignore"):  # activations that are not finite stay so
        return _joined(a, b)


def _joined(a, b):
    joined = type(b)(*(u + v for u, v in zip(a, b, strict=True)))
    if isinstance(b, ClassifierSums):
        return joined
    n = max(int(a.n + b.n), 1)
    delta = b.mean - a.mean  # [C]
    mean = a.mean + delta * (float(b.n) / n)
    weight = float(a.n) * float(b.n) / n
    if isinstance(b, Moments):
        return joined._replace(mean=mean, scatter=joined.scatter + weight * np.outer(delta, delta))
    return joined._replace(mean=mean, m2=joined.m2 + weight * float(delta @ delta))


def _host(value):
    value = np.asarray(value)
    return value.astype(np.int64 if value.dtype.kind in "iub" else np.float64)


def sae_metrics(sums: SaeSums) -> dict:
    """l0, fvu, ev, dead_fraction, density [F] and n_vectors of a whole split.

    l0 is the mean over vectors of the features that are not 0, density the share of vectors on which a
    feature fires, dead_fraction the share of features that fire on none. fvu = sum ||x - x_hat||^2 /
    sum ||x - x_bar||^2 with x_bar the vector mean over the same set, ev = 1 - fvu. Constant activations,
    or numbers that are not finite, give fvu and ev None and a warning; no vectors give None throughout.
    """
    sums = add_sums(None, sums)
    n = int(sums.n)
    fvu = _ratio(sums.sse, sums.m2)
    if fvu is None:
        reason = "constant" if sums.m2 == 0 else "or their reconstruction not finite"
        _log.warning("fvu and ev are null: the activations (%d vectors) are %s", n, reason)
    return {
        "l0": float(sums.fires.sum()) / n if n else None,
        "fvu": fvu,
        "ev": None if fvu is None else 1.0 - fvu,
        "dead_fraction": float(np.mean(sums.fires == 0)) if n else None,
        "density": sums.fires / n if n else None,  # [F]
        "n_vectors": n,
    }


def _ratio(numerator, denominator) -> float | None:
    numerator, denominator = float(numerator), float(denominator)
    if denominator == 0 or not (math.isfinite(numerator) and math.isfinite(denominator)):
        return None
    return numerator / denominator


def covariance(sums: Moments) -> np.ndarray:
    """Population covariance [C, C] in float64 (divided by n); zeros for no vectors."""
    return np.asarray(sums.scatter, np.float64) / max(int(sums.n), 1)


def pca_fvu(train_mean, train_cov, test_mean, test_cov, k: int) -> float | None:
    """fvu on test of projecting on the first k principal components of train (about the train mean).

    Needs no vectors: with M = test_cov + d d^T, d = test_mean - train_mean, the mean squared error is
    tr(M) - tr(V^T M V). k above C counts as C. None for constant test activations.

    Args:
      train_mean, test_mean: [C]. train_cov, test_cov: population covariances [C, C].
      k: number of components, >= 0 (`round(l0)` beside an SAE).
    """
    if k < 0:
        raise ValueError(f"pca_fvu needs k >= 0 components, got k={k}")
    train_cov, test_cov = np.asarray(train_cov, np.float64), np.asarray(test_cov, np.float64)
    d = np.asarray(test_mean, np.float64) - np.asarray(train_mean, np.float64)
    if not all(np.isfinite(a).all() for a in (train_cov, test_cov, d)):
        return None
    components = np.linalg.eigh(train_cov)[1][:, ::-1][:, :k]  # [C, k]
    second = test_cov + np.outer(d, d)
    kept = np.sum(components * (second @ components))
    return _ratio(max(np.trace(second) - kept, 0.0), np.trace(test_cov))


def gamma(mean, std) -> float | None:
    """||mean|| / ||std|| of raw activations [C] (arXiv 2605.31518); None where std is 0."""
    return _ratio(np.linalg.norm(np.asarray(mean, np.float64)), np.linalg.norm(np.asarray(std, np.float64)))


def recovered(ablated, spliced, clean) -> float | None:
    """(ablated - spliced) / (ablated - clean): 1 where the splice loses nothing; None if ablated = clean."""
    if any(value is None for value in (ablated, spliced, clean)):
        return None
    return _ratio(float(ablated) - float(spliced), float(ablated) - float(clean))


# --------------------------------------------------------------------------- dictionaries compared

N_MATCHED = 8192  # largest dictionary that is matched one to one


def _unit(rows) -> np.ndarray:
    rows = np.asarray(rows, np.float64)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def max_cosine(rows, others) -> np.ndarray:
    """Largest cosine of each row [F, C] with any row of `others` [G, C] -> [F]; signed, zero rows give 0."""
    return (_unit(rows) @ _unit(others).T).max(axis=1, initial=-1.0)


def mean_max_cosine(rows, others) -> float | None:
    """Mean over the rows [F, C] of their largest cosine with `others` [G, C]; None if either is empty."""
    return float(max_cosine(rows, others).mean()) if len(rows) and len(others) else None


def matched_cosine(rows, others) -> float | None:
    """Mean cosine of the one-to-one matching of rows [F, C] and [G, C] with the largest sum (Hungarian).

    The smaller set is matched whole. None if one is empty or has more than N_MATCHED rows.
    """
    if not len(rows) or not len(others) or max(len(rows), len(others)) > N_MATCHED:
        return None
    cosines = _unit(rows) @ _unit(others).T  # [F, G]
    matched = scipy.optimize.linear_sum_assignment(cosines, maximize=True)
    return float(cosines[matched].mean())


def stability(rows, others, *, seed: int = 0) -> dict:
    """How alike two dictionaries are, beside random ones of the same sizes.

    Args:
      rows, others: decoder rows of the alive features of two SAEs, [F, C] and [G, C].
      seed: of the random dictionaries, whose rows are normal and therefore uniform on the sphere.

    Returns:
      mean_max_cosine (mean of both directions), matched_cosine, and both with the prefix random_.
    """
    rng = np.random.default_rng(seed)
    found = {}
    for prefix, pair in (
        ("", (rows, others)),
        ("random_", tuple(rng.normal(size=np.shape(r)) for r in (rows, others))),
    ):
        both = [mean_max_cosine(*pair), mean_max_cosine(*pair[::-1])]
        found[f"{prefix}mean_max_cosine"] = None if None in both else sum(both) / 2
        found[f"{prefix}matched_cosine"] = matched_cosine(*pair)
    return found


def recovery(learned, true, *, above: float = 0.9) -> dict:
    """What of a known dictionary was found.

    Args:
      learned: decoder rows [F, C]; true: the known directions [G, C].
      above: the cosine from which a direction counts as found.

    Returns:
      recovered [G] bool: true features that some learned row points along; share_true: share of the learned
      rows that point along some true feature.
    """
    return {
        "recovered": max_cosine(true, learned) > above,
        "share_true": float((max_cosine(learned, true) > above).mean()),
    }


# ------------------------------------------------------------------------------------------- logits


def measures(logits, target) -> dict:
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


def kl(clean_logits, logits):
    """KL(clean || other) in nats of the two softmax distributions, [B], for logits [B, L]."""
    log_p = jax.nn.log_softmax(clean_logits, axis=-1)
    log_q = jax.nn.log_softmax(logits, axis=-1)
    return jnp.sum(jnp.where(log_p > -jnp.inf, jnp.exp(log_p) * (log_p - log_q), 0.0), axis=-1)


class ClassifierSums(NamedTuple):
    """Sums over images: correct and count by class of the label [L], cross-entropy, margin, KL to clean."""

    correct: jax.Array
    count: jax.Array
    cross_entropy: jax.Array
    margin: jax.Array
    kl: jax.Array


def classifier_sums(logits, labels, mask, clean_logits=None) -> ClassifierSums:
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
    seen = measures(logits, labels)
    divergence = jnp.zeros_like(seen["logit"]) if clean_logits is None else kl(clean_logits, logits)
    return ClassifierSums(
        correct=jnp.sum(is_label & is_correct[:, None], axis=0),
        count=jnp.sum(is_label, axis=0),
        cross_entropy=jnp.sum(jnp.where(real, -seen["log_confidence"], 0.0)),
        margin=jnp.sum(jnp.where(real, seen["margin"], 0.0)),
        kl=jnp.sum(jnp.where(real, divergence, 0.0)),
    )


def classifier_metrics(sums: ClassifierSums) -> dict:
    """accuracy, mean_per_class_accuracy, cross_entropy, margin, kl, n_images; None where undefined.

    mean_per_class_accuracy is the plain mean over the classes that occur in the set; the others are means
    over images. The margin is None if there is one class only.
    """
    sums = add_sums(None, sums)
    n, seen = int(sums.count.sum()), sums.count > 0
    by_class = sums.correct[seen] / sums.count[seen]
    return {
        "accuracy": _ratio(sums.correct.sum(), n),
        "mean_per_class_accuracy": float(by_class.mean()) if n else None,
        "cross_entropy": _ratio(sums.cross_entropy, n),
        "margin": _ratio(sums.margin, n),
        "kl": _ratio(sums.kl, n),
        "n_images": n,
    }


def accuracy(logits, labels, mask=None) -> float | None:
    """Share of the images whose largest logit is the label's; logits [B, L], labels [B], mask [B] or None."""
    return _whole(logits, labels, mask)["accuracy"]


def mean_per_class_accuracy(logits, labels, mask=None) -> float | None:
    """Mean over the classes that occur of their accuracy; arguments as in `accuracy`."""
    return _whole(logits, labels, mask)["mean_per_class_accuracy"]


def cross_entropy(logits, labels, mask=None) -> float | None:
    """Mean over images of -log softmax of the label, in nats; arguments as in `accuracy`."""
    return _whole(logits, labels, mask)["cross_entropy"]


def confusion(logits, labels) -> np.ndarray:
    """Number of images with label i and prediction j, int64 [L, L], for logits [N, L] and labels [N]."""
    logits, labels = np.asarray(logits), np.asarray(labels)
    n_classes = logits.shape[1]
    pairs = labels.astype(np.int64) * n_classes + logits.argmax(1)
    return np.bincount(pairs, minlength=n_classes**2).reshape(n_classes, n_classes)


def calibration(logits, labels, n_bins: int) -> dict:
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
    mean_confidence = _divide(np.bincount(bins, confidence, n_bins), count)
    accuracy = _divide(np.bincount(bins, right, n_bins), count)
    gaps = np.where(count > 0, count * np.abs(accuracy - mean_confidence), 0.0)
    return {
        "low": edges[:-1],
        "high": edges[1:],
        "n_images": count,
        "confidence": mean_confidence,
        "accuracy": accuracy,
        "ece": float(gaps.sum() / len(labels)) if len(labels) else None,
    }


def _whole(logits, labels, mask) -> dict:
    mask = np.ones(len(labels), np.float32) if mask is None else mask
    return classifier_metrics(classifier_sums(jnp.asarray(logits), jnp.asarray(labels), mask))


# ----------------------------------------------------------------------------- what a feature sees


def selectivity(class_means, top_class) -> np.ndarray:
    """(m_top - m_rest) / (m_top + m_rest) in [-1, 1] for features >= 0 (Morcos et al. 2018).

    Args:
      class_means: [..., L] mean pooled activation by class, NaN for a class without images.
      top_class: int [...], the class chosen on train; -1 where there is none.

    Returns:
      [...]: m_rest is the mean of the other classes' means. NaN where both are 0, where the top class has
      no images, and where there is no other class.
    """
    m = np.asarray(class_means, np.float64)
    is_top = np.arange(m.shape[-1]) == np.asarray(top_class)[..., None]
    top = np.where(is_top, m, 0.0).sum(-1)
    rest = ~is_top & np.isfinite(m)
    m_rest = _divide(np.where(rest, m, 0.0).sum(-1), rest.sum(-1))
    return np.where(is_top.any(-1), _divide(top - m_rest, top + m_rest), np.nan)


def label_entropy(class_means) -> np.ndarray:
    """Entropy of m[j, :] / sum m[j, :] over log L, in [0, 1]; 0 = one class, 1 = all classes alike.

    class_means is [..., L], >= 0, NaN for a class without images (left out of L). NaN where all means are 0
    and where there is one class only.
    """
    m = np.nan_to_num(np.asarray(class_means, np.float64))
    n_classes = np.isfinite(np.asarray(class_means)).sum(-1)
    p = _divide(m, m.sum(-1, keepdims=True))
    return _divide(scipy.special.entr(p).sum(-1), np.log(np.maximum(n_classes, 1)))


def purity16(top_labels) -> np.ndarray:
    """Share of the commonest class among the 16 top images, [F].

    top_labels is int [F, K], labels of the top images, strongest first, -1 behind the last image on which
    the feature fires. NaN with fewer than 16 such images: a share of few is near 1 by chance.
    """
    top_labels = np.asarray(top_labels)[:, :N_PURITY]
    share = _commonest_share(top_labels)
    return np.where((top_labels >= 0).sum(-1) == N_PURITY, share, np.nan)


def polysemanticity(top_labels) -> np.ndarray:
    """Share of the top patches whose class is not the commonest one among them, [F]; NaN without patches."""
    return 1.0 - _commonest_share(np.asarray(top_labels))


def _commonest_share(labels) -> np.ndarray:
    alike = (labels[:, :, None] == labels[:, None, :]) & (labels >= 0)[:, :, None]  # [F, K, K]
    commonest = alike.sum(-1).max(-1, initial=0)
    return _divide(commonest, (labels >= 0).sum(-1))


def auroc(values, positive) -> tuple[np.ndarray, np.ndarray]:
    """AUROC of each column and its two-sided Mann-Whitney p.

    The p-value is the normal approximation with tie correction and continuity correction, as
    `scipy.stats.mannwhitneyu(method="asymptotic")` has it.

    Args:
      values: [n, F].
      positive: bool [n, F], or [n] for all columns alike.

    Returns:
      (auroc [F], p [F]); NaN where all or none are positive. All values alike: auroc 0.5, p 1.
    """
    values = np.asarray(values)
    positive = np.asarray(positive, bool)
    positive = np.broadcast_to(positive if positive.ndim == 2 else positive[:, None], values.shape)
    n, place = len(values), np.arange(len(values))[:, None]
    order = np.argsort(values, axis=0, kind="stable")
    ordered = np.take_along_axis(values, order, axis=0)
    change = ordered[1:] != ordered[:-1]
    edge = np.ones((1, values.shape[1]), bool)
    first = np.maximum.accumulate(np.where(np.vstack([edge, change]), place, 0), axis=0)
    last = np.minimum.accumulate(np.where(np.vstack([change, edge]), place, n)[::-1], axis=0)[::-1]
    rank = (first + last) / 2 + 1  # [n, F], the mean rank of equal values
    ties = np.sum((last - first + 1.0) ** 2 - 1, axis=0)  # = sum over groups of t^3 - t
    n1 = positive.sum(0).astype(np.float64)
    n2 = n - n1
    u = np.where(np.take_along_axis(positive, order, axis=0), rank, 0.0).sum(0) - n1 * (n1 + 1) / 2
    sigma = np.sqrt(np.maximum(n1 * n2 / 12 * (n + 1 - ties / max(n * (n - 1), 1)), 0))
    z = np.nan_to_num(_divide(np.maximum(np.abs(u - n1 * n2 / 2) - 0.5, 0), sigma))
    p = np.minimum(2 * scipy.stats.norm.sf(z), 1.0)
    return _divide(u, n1 * n2), np.where(n1 * n2 > 0, p, np.nan)


def benjamini_hochberg(p, eligible=None) -> np.ndarray:
    """q-values [F] of p [F]; only eligible entries with a p count as tests, the others get NaN."""
    p = np.asarray(p, np.float64)
    tested = np.isfinite(p) & (True if eligible is None else np.asarray(eligible, bool))
    q = np.full(p.shape, np.nan)
    q[tested] = scipy.stats.false_discovery_control(p[tested]) if tested.any() else []
    return q


def spearman(a, b) -> float | None:
    """Rank correlation of a and b [n], ties by mean rank; None below 3 finite pairs or if one is constant."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return None
    ranks = [scipy.stats.rankdata(values[both]) for values in (a, b)]
    ranks = [r - r.mean() for r in ranks]
    return _ratio(ranks[0] @ ranks[1], np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1]))


def _divide(numerator, denominator) -> np.ndarray:
    """Elementwise ratio in float64, NaN where the denominator is 0 or either is not finite."""
    numerator, denominator = np.broadcast_arrays(
        np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    )
    valid = (denominator != 0) & np.isfinite(denominator) & np.isfinite(numerator)
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=valid)


# ----------------------------------------------------------------------------- what a feature does


def join_moments(a, b):
    """Moments (n, mean, m2) of two disjoint sets joined, on the host in float64 (Chan et al.).

    n counts, mean is the mean (anything finite where n is 0), m2 the sum of squares about it; the arrays of
    a set broadcast against each other, and NaN stays NaN.
    """
    (n_a, mean_a, m2_a), (n_b, mean_b, m2_b) = (
        tuple(np.asarray(part, np.float64) for part in each) for each in (a, b)
    )
    n = n_a + n_b
    share = n_b / np.maximum(n, 1)
    delta = mean_b - mean_a
    return n, mean_a + delta * share, m2_a + m2_b + delta**2 * n_a * share


def standard_error(n, m2) -> np.ndarray:
    """Standard error of a mean of n values whose squares about it sum to m2; NaN below 2 values."""
    return np.sqrt(_divide(m2, np.asarray(n, np.float64) * (np.asarray(n) - 1)))


def t_interval(n, mean, m2) -> tuple[np.ndarray, np.ndarray]:
    """95% interval of a mean: mean -+ t_(n-1) times the standard error; NaN below 2 values."""
    n = np.asarray(n)
    half = scipy.stats.t.ppf(0.975, np.maximum(n - 1, 1)) * standard_error(n, m2)
    return mean - half, mean + half
