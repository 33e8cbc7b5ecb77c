"""What a feature sees: how its activations, or the labels of its top images, depend on the class."""

import numpy as np
import scipy
from numpy.typing import ArrayLike

from jsae.metrics.sums import divide

N_PURITY = 16  # top images that `purity16` counts


def selectivity(class_means: ArrayLike, top_class: ArrayLike) -> np.ndarray:
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
    m_rest = divide(np.where(rest, m, 0.0).sum(-1), rest.sum(-1))
    return np.where(is_top.any(-1), divide(top - m_rest, top + m_rest), np.nan)


def label_entropy(class_means: ArrayLike) -> np.ndarray:
    """Entropy of m[j, :] / sum m[j, :] over log L, in [0, 1]; 0 = one class, 1 = all classes alike.

    class_means is [..., L], >= 0, NaN for a class without images (left out of L). NaN where all means are 0
    and where there is one class only.
    """
    m = np.nan_to_num(np.asarray(class_means, np.float64))
    n_classes = np.isfinite(np.asarray(class_means)).sum(-1)
    p = divide(m, m.sum(-1, keepdims=True))
    return divide(scipy.special.entr(p).sum(-1), np.log(np.maximum(n_classes, 1)))


def purity16(top_labels: ArrayLike) -> np.ndarray:
    """Share of the commonest class among the 16 top images, [F].

    top_labels is int [F, K], labels of the top images, strongest first, -1 behind the last image on which
    the feature fires. NaN with fewer than 16 such images: a share of few is near 1 by chance.
    """
    top_labels = np.asarray(top_labels)[:, :N_PURITY]
    share = _commonest_share(top_labels)
    return np.where((top_labels >= 0).sum(-1) == N_PURITY, share, np.nan)


def polysemanticity(top_labels: ArrayLike) -> np.ndarray:
    """Share of the top patches whose class is not the commonest one among them, [F]; NaN without patches."""
    return 1.0 - _commonest_share(np.asarray(top_labels))


def monosemanticity(pooled: ArrayLike, embeddings: ArrayLike) -> np.ndarray:
    """Activation-weighted mean cosine of two images' embeddings, [F].

    Sum of w_i w_k cos(e_i, e_k) over pairs i != k, divided by the sum of w_i w_k (arXiv 2504.02821).

    Args:
      pooled: [n, F], >= 0, a feature's weight of an image.
      embeddings: [n, D]; their mean is taken out, else all images are alike.

    Returns:
      [F]; NaN where fewer than two images have a weight.
    """
    w, e = _shares(pooled), _centred_unit(embeddings)
    squares = np.square(w)
    selves = np.square(e).sum(1) @ squares  # pairs of an image with itself
    pairs = np.square(w.sum(0)) - squares.sum(0)
    value = divide(np.square(w.T @ e).sum(1) - selves, pairs)
    return np.where((w > 0).sum(0) > 1, value, np.nan)


def monosemanticity_null(
    pooled: ArrayLike, embeddings: ArrayLike, n_permutations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """`monosemanticity` when a feature's activations are shuffled over the images.

    The mean over all permutations is the mean cosine of all pairs of images, whatever the feature (each pair
    of weights meets each pair of images equally often); what differs between features is the spread.

    Returns:
      (mean, standard deviation) over `n_permutations` >= 2 permutations, the same for all features, [F] each.
    """
    embeddings, rng = np.asarray(embeddings), np.random.default_rng([seed, 0x6D6F6E6F])
    drawn = [
        monosemanticity(pooled, embeddings[rng.permutation(len(embeddings))]) for _ in range(n_permutations)
    ]
    return np.mean(drawn, axis=0), np.std(drawn, axis=0, ddof=1)


def _shares(pooled: ArrayLike) -> np.ndarray:
    """Weights [n, F] relative to the largest of their feature, which keeps their squares in range."""
    w = np.asarray(pooled, np.float64)
    return w / np.maximum(w.max(0), np.finfo(np.float64).tiny)[None, :]


def _centred_unit(embeddings: ArrayLike) -> np.ndarray:
    e = np.asarray(embeddings, np.float64)
    e = e - e.mean(0)[None, :]
    return e / np.maximum(np.linalg.norm(e, axis=1, keepdims=True), np.finfo(np.float64).tiny)


def _commonest_share(labels: np.ndarray) -> np.ndarray:
    alike = (labels[:, :, None] == labels[:, None, :]) & (labels >= 0)[:, :, None]  # [F, K, K]
    commonest = alike.sum(-1).max(-1, initial=0)
    return divide(commonest, (labels >= 0).sum(-1))


def auroc(values: ArrayLike, positive: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
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
    z = np.nan_to_num(divide(np.maximum(np.abs(u - n1 * n2 / 2) - 0.5, 0), sigma))
    p = np.minimum(2 * scipy.stats.norm.sf(z), 1.0)
    return divide(u, n1 * n2), np.where(n1 * n2 > 0, p, np.nan)


def auroc_by_class(values: ArrayLike, labels: ArrayLike, n_classes: int) -> np.ndarray:
    """`auroc` of every column for every class against the others, without p-values, [F, L].

    Args:
      values: [n, F].
      labels: int [n]; rows of unknown class, -1, are left out.
      n_classes: L.

    Returns:
      [F, L]; NaN for a class without rows, or with all of them.
    """
    values, labels = np.asarray(values), np.asarray(labels)
    values, labels = values[labels >= 0], labels[labels >= 0]
    member = np.eye(n_classes)[labels]  # [n, L]
    n1 = member.sum(0)
    ranks = scipy.stats.rankdata(values, axis=0) if len(values) else np.zeros(values.shape)
    return divide(ranks.T @ member - (n1 * (n1 + 1) / 2)[None, :], (n1 * (len(labels) - n1))[None, :])
