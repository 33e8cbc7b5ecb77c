"""How good a classifier is: predictions of a whole split, their scores, and the tables behind them.

per_class.parquet     one row per class: images, accuracy, precision, what it is most often taken for
confusion.parquet     one row per pair (label, prediction) that occurs, with its number of images
calibration.parquet   one row per bin of confidence: images, mean confidence, accuracy
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import pyarrow as pa
from jax.sharding import Mesh

from jsae import metrics
from jsae.classifier.model import Params, apply
from jsae.data import augment, pipeline
from jsae.data.cache import Split
from jsae.metrics.sums import divide
from jsae.runtime import mesh
from jsae.tables import Column, Table

N_BINS = 15  # of the calibration table, as in arXiv 1706.04599
_N_IMAGES = Column("n_images", pa.int64(), "test images")
PER_CLASS = Table(
    "per_class",
    (
        Column("label", pa.int32(), "the class"),
        Column("class_name", pa.string(), "its name"),
        _N_IMAGES,
        Column("accuracy", pa.float64(), "share of its images that are predicted as it; null without images"),
        Column("precision", pa.float64(), "share of the predictions of it that are right; null without any"),
        Column("most_taken_for", pa.string(), "the class its images are most often predicted as wrongly"),
        Column("n_taken_for", pa.int64(), "how many of its images that are"),
    ),
)
CONFUSION = Table(
    "confusion",
    (
        Column("label", pa.int32(), "the class of the images"),
        Column("prediction", pa.int32(), "the class that they are predicted as"),
        _N_IMAGES,
    ),
)
CALIBRATION = Table(
    "calibration",
    (
        Column("low", pa.float64(), "lower end of the bin of confidence, which does not belong to it"),
        Column("high", pa.float64(), "its upper end, which does"),
        _N_IMAGES,
        Column("confidence", pa.float64(), "mean over its images of the largest class probability"),
        Column("accuracy", pa.float64(), "share of its images whose prediction is right"),
    ),
)


def make_predict(device_mesh: Mesh) -> Callable[[Params, jax.Array], jax.Array]:
    """A jitted (params, images uint8 [B, S, S, 3]) -> logits [B, L], images sharded over `data`."""

    def predict(params, images):
        return apply(params, augment.normalise(images))[0]

    return jax.jit(predict, out_shardings=mesh.replicated(device_mesh))


def predict_split(
    predict: Callable[[Params, jax.Array], jax.Array],
    params: Params,
    split: Split,
    device_mesh: Mesh,
    batch_size: int,
    between: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """Logits float32 [N, L] of a whole split; `between` is called after every batch."""
    rows = []
    batches = pipeline.eval_batches(split, batch_size=batch_size, process=mesh.process_slice(device_mesh))
    for batch in batches:
        images = mesh.put_batch(device_mesh, {"image": batch["image"]})["image"]
        rows.append(mesh.to_host(predict(params, images)))
        between()
    return np.concatenate(rows)[: len(split.labels)]


def score(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
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


def coarser_scores(
    logits: np.ndarray, labels: np.ndarray, levels: Mapping[str, tuple[Sequence[str], np.ndarray]]
) -> dict[str, dict[str, float | None]]:
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


def tables(logits: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> dict[str, pa.Table]:
    """`PER_CLASS`, `CONFUSION` and `CALIBRATION` by name, for logits [N, L] and labels [N]."""
    confusion = metrics.confusion(logits, labels)  # [L, L]
    right = np.diag(confusion)
    wrong = confusion - np.diag(right)
    taken_for = wrong.argmax(1)
    n_images, n_predicted = confusion.sum(1), confusion.sum(0)
    label, prediction = np.nonzero(confusion)
    calibration = metrics.calibration(logits, labels, N_BINS)
    columns = {
        PER_CLASS: {
            "label": np.arange(len(confusion), dtype=np.int32),
            "class_name": list(class_names),
            "n_images": n_images,
            "accuracy": divide(right, n_images),
            "precision": divide(right, n_predicted),
            "most_taken_for": [
                class_names[other] if wrong[c, other] else None for c, other in enumerate(taken_for)
            ],
            "n_taken_for": wrong.max(1),
        },
        CONFUSION: {
            "label": label.astype(np.int32),
            "prediction": prediction.astype(np.int32),
            "n_images": confusion[label, prediction],
        },
        CALIBRATION: {name: calibration[name] for name in CALIBRATION.names},
    }
    return {table.name: table.make(of_table) for table, of_table in columns.items()}
