"""Numbers to hold beside ViSAEBench's (openreview jdIiJipMI4, package visaebench 0.1.0), defined as there.

Its codes of an image are the maxima over the grid of the features in units of the normalised activations
(raw features / scale): the logistic probes have a penalty, so the unit matters. The package ranks features
on all images, the held-out ones among them, and fits and scores absorption's probes on the same images. Every
function here takes the images to fit on and those to score on, so that the package's form and the one chosen
on train and reported on test come out of the same code. Needs scikit-learn; reached as `metrics.visaebench`.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import ArrayLike
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import f_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from threadpoolctl import threadpool_limits

K_VALUES = (1, 5, 10, 20, 50, 100)
MIN_ACTIVE_CELLS, MAX_ACTIVE_SHARE, MIN_IMAGES = 5, 0.9, 50  # of Moran's I
N_TOP, MAX_OVERLAP, MAX_F1_GAP, K_NARROW, K_WIDE = 10, 0.5, 0.1, 1, 4  # of absorption
_SEED = 42


class Labelled(NamedTuple):
    """Numbers of images [n, F], float32, and their classes int [n]."""

    codes: np.ndarray
    labels: np.ndarray

    def at(self, rows: np.ndarray) -> "Labelled":
        """Some of the images."""
        return Labelled(self.codes[rows], self.labels[rows])


class Absorption(NamedTuple):
    """Means over (class, siblings) pairs: share absorbed, overlap, F1 of 1 feature and of 4, how many."""

    rate: float
    overlap: float
    f1_narrow: float
    f1_wide: float
    n_pairs: int


def halves(images: Labelled) -> tuple[Labelled, Labelled]:
    """The package's own split: (80% to fit, 20% to score), by class where each has two images or more."""
    by_class = images.labels if np.bincount(images.labels).min() >= 2 else None
    rows = np.arange(len(images.labels))
    fit, score = train_test_split(rows, test_size=0.2, stratify=by_class, random_state=_SEED)
    return images.at(fit), images.at(score)


def f_ranking(images: Labelled) -> np.ndarray:
    """Features by falling F statistic (analysis of variance) of their codes over the classes, int [F]."""
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore")  # constant features: they come last
        scores, _ = f_classif(*images)
    return np.argsort(np.nan_to_num(scores, nan=-np.inf))[::-1]


def sparse_probing(
    fit: Labelled, score: Labelled, ranked: ArrayLike, ks: Iterable[int] = K_VALUES
) -> dict[int, float]:
    """k -> accuracy on `score` of a logistic probe on the first k of the features `ranked`, fitted on `fit`.

    A k above F is left out.
    """
    ranked = np.asarray(ranked)
    return {
        k: float(_probe(fit.codes[:, best], fit.labels, 500).score(score.codes[:, best], score.labels))
        for k in sorted(ks)
        if len(best := ranked[:k]) == k
    }


def normalised_area(accuracies: Mapping[int, float]) -> float | None:
    """Area under accuracy against k by the trapezoidal rule, over the range of k; None without a range."""
    ks = sorted(accuracies)
    if len(ks) < 2:
        return None
    return float(np.trapezoid([accuracies[k] for k in ks], x=ks) / (ks[-1] - ks[0]))


def probe_accuracies(fit: Labelled, scores: Sequence[Labelled]) -> list[float]:
    """Accuracies of one logistic probe, fitted on `fit` (pooled activations), on each of `scores`."""
    probe = _probe(*fit, 1000)
    return [float(probe.score(*images)) for images in scores]


def morans_i(feats: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moran's I of every feature's map in every image, with the eight neighbours of a cell as its neighbours.

    I = (P / S) sum_pq w_pq z_p z_q / sum_p z_p^2 over the P cells, z = f - mean f, S the sum of all w; about
    -1 / (P - 1) for values that lie anywhere.

    Args:
      feats: [B, H, W, F], in units of the normalised activations.

    Returns:
      (I [B, F], whether it counts [B, F]): 5 cells or more and at most 90% of the cells are active, and the
      map varies.
    """
    height, width = feats.shape[1:3]
    n_cells = height * width
    pairs = height * (width - 1) + width * (height - 1) + 2 * (height - 1) * (width - 1)
    active = (feats != 0).sum((1, 2))  # [B, F]
    z = feats - feats.mean((1, 2), keepdims=True)
    around = lax.reduce_window(z, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), "SAME") - z
    squares = (z**2).sum((1, 2))
    value = n_cells / max(2 * pairs, 1) * (z * around).sum((1, 2)) / jnp.maximum(squares, 1e-10)
    enough = (active >= MIN_ACTIVE_CELLS) & (active <= int(MAX_ACTIVE_SHARE * n_cells))
    return value, enough & (squares > 1e-10)


def absorption(
    fit: Labelled, score: Labelled, groups: Iterable[ArrayLike], min_size: int = 3
) -> Absorption | None:
    """How many classes have no features of their own beside their siblings'.

    A class is absorbed if its 10 features of largest mean code overlap with those of its group by more than
    0.5 (intersection over union), or if the F1 of telling it from its siblings grows by more than 0.1 from
    the best feature to the best 4 (by F statistic on `fit`). The package has `fit` = `score`.

    Args:
      fit, score: images; overlap and F1 are those of `score`.
      groups: the classes of each group of siblings; those with fewer than min_size are left out.

    Returns:
      None if no class has 3 images and 3 of its siblings' in both sets.
    """
    found = []
    for group in groups:
        inside = [images.at(np.isin(images.labels, group)) for images in (fit, score)]
        if np.size(group) < min_size or min(len(images.labels) for images in inside) < 10:
            continue
        siblings = _strongest(inside[1].codes)
        for one in np.asarray(group):
            mine, theirs = (
                Labelled(images.codes, (images.labels == one).astype(np.int64)) for images in inside
            )
            if min(np.bincount(images.labels, minlength=2).min() for images in (mine, theirs)) < 3:
                continue
            own = _strongest(theirs.codes[theirs.labels == 1])
            ranked = f_ranking(mine)
            f1 = [_f1(mine, theirs, ranked[:k]) for k in (K_NARROW, K_WIDE)]
            overlap = len(own & siblings) / len(own | siblings)
            found.append((f1[1] - f1[0] > MAX_F1_GAP or overlap > MAX_OVERLAP, overlap, *f1))
    if not found:
        return None
    rate, overlap, narrow, wide = np.mean(found, axis=0).tolist()
    return Absorption(rate, overlap, narrow, wide, len(found))


def _strongest(codes: np.ndarray) -> set[int]:
    return set(np.argsort(codes.mean(0))[-N_TOP:].tolist())


def _f1(fit: Labelled, score: Labelled, features: np.ndarray) -> float:
    found = _probe(fit.codes[:, features], fit.labels, 500).predict(score.codes[:, features])
    return float(f1_score(score.labels, found, zero_division=0.0))


def _probe(values: np.ndarray, labels: np.ndarray, max_iter: int) -> LogisticRegression:
    # Products this small wait for the threads of a BLAS, up to 30 times longer where the cores are busy
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(max_iter=max_iter, random_state=_SEED).fit(values, labels)
