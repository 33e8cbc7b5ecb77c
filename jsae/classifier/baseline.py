"""What colour alone can tell: logistic regression on images scaled down to 8x8 RGB.

A classifier that is no better than this has learnt what the background of each class looks like.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import cv2
import numpy as np

from jsae.data import order
from jsae.data.cache import Split

if TYPE_CHECKING:  # a second to import, which most starts do not need
    from sklearn.base import ClassifierMixin

SIDE_PX = 8
_MOST_IMAGES = 10_000  # to train on; more change little and cost time
_PENALTIES = (1e-3, 1e-2, 1e-1)  # of the mean squared weight; the best on val is taken


def pixel_baseline(
    splits: Mapping[str, Split], seed: int, between: Callable[[], None] = lambda: None
) -> float:
    """Test accuracy of multinomial logistic regression on 8x8 RGB pixels, its L2 penalty chosen on val.

    Where train holds the images of val, too (trainval), the penalty is chosen without these in train.
    `between` is called before each fit, which takes seconds.
    """
    train = splits["train"]
    rows = np.sort(order.epoch_permutation(seed, 0, len(train.labels))[:_MOST_IMAGES])
    x = _pixels(train.images[rows])
    mean, std = x.mean(0), x.std(0) + 1e-6
    scaled = {name: (_pixels(split.images) - mean[None, :]) / std[None, :] for name, split in splits.items()}
    x, labels = (x - mean[None, :]) / std[None, :], train.labels[rows]
    held_out = ~np.isin(np.asarray(train.ids)[rows], splits["val"].ids)

    def fitted(rows, penalty):
        between()
        return fit(x[rows], labels[rows], penalty)

    def accuracy(model, name):
        return float((model.predict(scaled[name]) == splits[name].labels).mean())

    fits = {penalty: fitted(held_out, penalty) for penalty in _PENALTIES}
    best = max(fits, key=lambda penalty: accuracy(fits[penalty], "val"))
    return accuracy(fits[best] if held_out.all() else fitted(slice(None), best), "test")


def fit(x: np.ndarray, labels: np.ndarray, penalty: float) -> "ClassifierMixin":
    """The minimum of mean cross-entropy + penalty / 2 * sum of squared weights; the bias has no penalty.

    Args:
      x: [N, D].
      labels: [N]; of one class only, that one is always predicted.
      penalty: above 0.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(labels)) < 2:
        return DummyClassifier().fit(x, labels)
    model = LogisticRegression(C=1 / (penalty * len(x)), max_iter=200)
    with warnings.catch_warnings():  # close to the minimum is enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        return model.fit(x, labels)


def _pixels(images) -> np.ndarray:
    """uint8 [N, S, S, 3] -> float64 [N, 192], averaged over area."""
    size = (SIDE_PX, SIDE_PX)
    small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(small), -1) / 255.0
