"""What colour alone can tell: logistic regression on images scaled down to 8x8 RGB.

A classifier that is no better than this has learnt what the background of each class looks like.
"""

import cv2
import numpy as np
from scipy import optimize, special

from jsae import metrics
from jsae.data import order

SIDE_PX = 8
_MOST_IMAGES = 10_000  # to train on; more change little and cost time
_PENALTIES = (1e-3, 1e-2, 1e-1)  # of the mean squared weight; the best on val is taken


def pixel_baseline(splits: dict, seed: int, between=lambda: None) -> float:
    """Test accuracy of multinomial logistic regression on 8x8 RGB pixels, its L2 penalty chosen on val.

    Where train holds the images of val, too (trainval), the penalty is chosen without these in train.
    `between` is called after every iteration.
    """
    train = splits["train"]
    rows = np.sort(order.epoch_permutation(seed, 0, len(train.labels))[:_MOST_IMAGES])
    x = _pixels(train.images[rows])
    mean, std = x.mean(0), x.std(0) + 1e-6
    n_classes = len(train.class_names)
    scaled = {name: (_pixels(split.images) - mean[None, :]) / std[None, :] for name, split in splits.items()}
    x, labels = (x - mean[None, :]) / std[None, :], train.labels[rows]
    held_out = ~np.isin(np.asarray(train.ids)[rows], splits["val"].ids)
    fits = {p: fit(x[held_out], labels[held_out], n_classes, p, between) for p in _PENALTIES}

    def accuracy(weights, name):
        return metrics.accuracy(_logits(weights, scaled[name]), splits[name].labels)

    best = max(fits, key=lambda penalty: accuracy(fits[penalty], "val"))
    weights = fits[best] if held_out.all() else fit(x, labels, n_classes, best, between)
    return accuracy(weights, "test")


def fit(
    x: np.ndarray, labels: np.ndarray, n_classes: int, penalty: float, between=lambda: None
) -> np.ndarray:
    """Weights [D + 1, L], the last row the bias, that minimise cross-entropy + penalty / 2 * sum of squares.

    Args:
      x: [N, D].
      labels: [N].
      penalty: of the weights; the bias has none.
      between: is called after every iteration.
    """
    n, d = x.shape
    one_hot = np.eye(n_classes)[labels]

    def objective(flat):
        weights = flat.reshape(d + 1, n_classes)
        logits = _logits(weights, x)
        log_p = logits - special.logsumexp(logits, 1, keepdims=True)
        error = (np.exp(log_p) - one_hot) / n
        loss = -(one_hot * log_p).sum() / n + penalty / 2 * np.square(weights[:-1]).sum()
        gradient = np.concatenate([x.T @ error + penalty * weights[:-1], error.sum(0, keepdims=True)])
        return loss, gradient.ravel()

    start = np.zeros((d + 1) * n_classes)
    found = optimize.minimize(
        objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}, callback=lambda _: between()
    )
    return found.x.reshape(d + 1, n_classes)


def _logits(weights, x):
    return x @ weights[:-1] + weights[-1][None, :]


def _pixels(images) -> np.ndarray:
    """uint8 [N, S, S, 3] -> float64 [N, 192], averaged over area."""
    size = (SIDE_PX, SIDE_PX)
    small = [cv2.resize(image, size, interpolation=cv2.INTER_AREA) for image in images]
    return np.stack(small).reshape(len(small), -1) / 255.0
