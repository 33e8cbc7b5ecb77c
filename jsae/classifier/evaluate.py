"""How good a classifier is: predictions of a whole split, their scores, and the tables behind them.

per_class.parquet     one row a class: images, accuracy, precision, what it is most often taken for
confusion.parquet     one row a pair (label, prediction) that occurs, with its number of images
calibration.parquet   one row a bin of confidence: images, mean confidence, accuracy
"""

import jax
import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.classifier.model import apply
from jsae.data import augment, pipeline
from jsae.runtime import mesh

N_BINS = 15  # of the calibration table, as in arXiv 1706.04599


def make_predict(device_mesh):
    """A jitted (params, images uint8 [B, S, S, 3]) -> logits [B, L], images sharded over `data`."""

    def predict(params, images):
        with jax.default_matmul_precision("float32"):
            return apply(params, augment.normalise(images))[0]

    return jax.jit(predict, out_shardings=mesh.replicated(device_mesh))


def predict_split(predict, params, split, device_mesh, batch_size: int, between=lambda: None) -> np.ndarray:
    """Logits float32 [N, L] of a whole split; `between` is called after every batch."""
    rows = []
    batches = pipeline.eval_batches(split, batch_size=batch_size, process=mesh.process_slice(device_mesh))
    for batch in batches:
        rows.append(
            mesh.to_host(predict(params, mesh.put_batch(device_mesh, {"image": batch["image"]})["image"]))
        )
        between()
    return np.concatenate(rows)[: len(split.labels)]


def score(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Accuracy, mean per-class accuracy (classes absent from the split left out), cross-entropy and ECE."""
    scores = metrics.classifier_metrics(
        metrics.classifier_sums(logits, labels, np.ones(len(labels), np.float32))
    )
    return {
        "accuracy": scores["accuracy"],
        "mean_per_class_accuracy": scores["mean_per_class_accuracy"],
        "loss": scores["cross_entropy"],
        "ece": metrics.calibration(logits, labels, N_BINS)["ece"],
    }


def coarser_scores(logits: np.ndarray, labels: np.ndarray, levels: dict) -> dict:
    """Scores at coarser label levels, of predictions made at a finer one: right if the parent is right.

    Args:
      logits, labels: [N, L] and [N] of the finer level.
      levels: coarser level -> (class names, the parent of each fine class [L], -1 where it is not known).

    Returns {level: {"accuracy", "mean_per_class_accuracy"}}.
    """
    found = {}
    for level, (names, parent) in levels.items():  # an unknown parent counts as one more class
        predicted = np.where(parent < 0, len(names), parent)[logits.argmax(-1)]
        one_hot = np.eye(len(names) + 1, dtype=np.float32)[predicted]
        found[level] = {
            "accuracy": metrics.accuracy(one_hot, parent[labels]),
            "mean_per_class_accuracy": metrics.mean_per_class_accuracy(one_hot, parent[labels]),
        }
    return found


def tables(logits: np.ndarray, labels: np.ndarray, class_names) -> dict[str, pa.Table]:
    """The tables of the module's docstring by file name, for logits [N, L] and labels [N]."""
    confusion = metrics.confusion(logits, labels)  # [L, L]
    right = np.diag(confusion)
    wrong = confusion - np.diag(right)
    taken_for = wrong.argmax(1)
    n_images, n_predicted = confusion.sum(1), confusion.sum(0)
    label, prediction = np.nonzero(confusion)
    calibration = metrics.calibration(logits, labels, N_BINS)
    return {
        "per_class": pa.table(
            {
                "label": np.arange(len(confusion), dtype=np.int32),
                "class_name": list(class_names),
                "n_images": n_images,
                "accuracy": _share(right, n_images),
                "precision": _share(right, n_predicted),
                "most_taken_for": [
                    class_names[other] if wrong[c, other] else None for c, other in enumerate(taken_for)
                ],
                "n_taken_for": wrong.max(1),
            }
        ),
        "confusion": pa.table(
            {
                "label": label.astype(np.int32),
                "prediction": prediction.astype(np.int32),
                "n_images": confusion[label, prediction],
            }
        ),
        "calibration": pa.table(
            {
                key: pa.array(value, from_pandas=True)  # NaN, of an empty bin, becomes null
                for key, value in calibration.items()
                if key != "ece"
            }
        ),
    }


def _share(part, whole) -> list:
    """part / whole, None where there is nothing."""
    return [float(a / b) if b else None for a, b in zip(part, whole, strict=True)]
