"""A planted shortcut: is it found among the features, and does removing them help where the tie is broken?

A study is made on drawn aircraft whose sky gives the class away in training (`jsae.data.tied_sky`), and a
reference classifier on the same drawings whose skies say nothing. Both see the same test images, in which
the tie is broken: a network that reads the sky fails in the groups (class x sky) that it has hardly seen.
Features with most of their mass off the foreground, on train, are suppressed, and accuracy is taken again:

    recovered = (after - before) / (reference - before)     of the worst group's accuracy

Beside it: the same features set to their train mean, those of them that tell the sky on train (AUROC of the
pooled activation at least 0.8 in either direction), and random features matched in |f| ||w||.

In WORKDIR: the tied study up to its SAE. In WORKDIR/shortcut: reference/, a study up to its activations;
shortcut.parquet, one row for each network and removal; results.json with the main numbers.
"""

import copy
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from etils import epath

from jsae import edits, metrics
from jsae.activations import ActivationStore, Encoded, Reducer
from jsae.activations import run as activations_run
from jsae.analysis import cells
from jsae.analysis.strength import KeepPooled
from jsae.classifier import run as classifier_run
from jsae.classifier.forward import LogitsFromActs
from jsae.data import tied_sky
from jsae.runtime import artifacts, settings, stages, workdirs
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.runtime.pytrees import pytree
from jsae.sae import run as sae_run
from jsae.study import Study
from jsae.tables import Column, Table

FOLDER = "shortcut"
RESULTS = "results.json"
TIES = ("sky", "sky_mostly")  # of the study; the reference has sky_untied
MIN_OFF_SHARE = 0.5  # of a suppressed feature's mass
MIN_AUROC = 0.8  # of a feature that tells the sky
N_RANDOM = 5  # matched draws
_NEAREST = 3  # a match is one of so many
_FLOAT = pa.float64()
TABLE = Table(
    "shortcut",
    (
        Column(
            "removal",
            pa.string(),
            "what is done to the tied network: none; off_foreground (these features suppressed); "
            "off_foreground_to_mean (set to their train mean); sky (suppressed, of these, those that tell "
            "it); random (suppressed, features matched to off_foreground); "
            "reference is the network trained without the tie, as it is",
        ),
        Column("draw", pa.int32(), "of the matched random features; null elsewhere"),
        Column("n_features", pa.int32(), "features removed"),
        Column("removed_norm", _FLOAT, "mean over test cells of the norm of what is removed"),
        Column("accuracy", _FLOAT, "on test"),
        Column("tied_accuracy", _FLOAT, "on the test images whose sky is the one tied to their class"),
        Column("broken_accuracy", _FLOAT, "on those with the other sky"),
        Column("worst_group_accuracy", _FLOAT, "smallest over groups class x sky of at least 40 test images"),
        Column("worst_class", pa.string(), "of that group"),
        Column("worst_sky", pa.int32(), "of that group, 0 or 1"),
        Column("n_groups", pa.int32(), "groups with at least 40 test images"),
        Column(
            "recovered",
            _FLOAT,
            "(worst group after - before) / (reference - before); null if the denominator is below 0.05",
        ),
        Column("accuracy_lost", _FLOAT, "accuracy before minus after"),
    ),
)


@pytree
class MeasureMass(Reducer):
    """Sums over cells of every feature, [2, F] float64: off the foreground, and everywhere.

    Attributes:
      off: whether a cell is off the foreground, of all images of the split, bool [n, H, W].
    """

    off: jax.Array

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> Any:
        """Nothing yet."""
        return np.zeros((2, dictionary.n_features))

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, jax.Array]:
        """The sums of a batch."""
        off = self.off[batch.images][..., None]  # [B, H, W, 1]
        return carry, jnp.stack([(batch.feats * off).sum((0, 1, 2)), batch.feats.sum((0, 1, 2))])

    def add(self, total: Any, part: Any, rows: slice, n: int) -> Any:
        """One more batch."""
        return total + part


@pytree
class PredictWithout(Reducer):
    """Predictions after each of K removals, int32 [K, n], and norms of what is removed, float64 [K].

    Attributes:
      logits: of activations, a pytree.
      keep: what a feature is multiplied with [K, F].
      shift: what is then added to it, raw units [K, F].
    """

    logits: Any
    keep: jax.Array
    shift: jax.Array

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> Any:
        """Nothing yet."""
        k = len(self.keep)
        return {"predictions": np.zeros((k, len(images)), np.int32), "norms": np.zeros(k)}

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, dict[str, jax.Array]]:
        """One forward pass for each removal."""

        def without(removal):
            keep, shift = (part[None, None, None, :] for part in removal)
            taken = jnp.matmul((1 - keep) * batch.feats - shift, dictionary.w_dec)  # [B, H, W, C]
            norms = jnp.linalg.norm(taken, axis=-1).mean((1, 2)) * batch.real
            return self.logits(edits.subtract(batch.acts, taken)).argmax(-1), norms.sum()

        predictions, norms = jax.lax.map(without, (self.keep, self.shift))
        return carry, {"predictions": predictions.astype(jnp.int32), "norms": norms}

    def add(self, total: Any, part: Any, rows: slice, n: int) -> Any:
        """One more batch."""
        total["predictions"][:, rows] = part["predictions"][:, :n]
        return total | {"norms": total["norms"] + part["norms"]}

    def finish(self, carry: Any, total: Any) -> Any:
        """Sums become means over images."""
        return total | {"norms": total["norms"] / max(total["predictions"].shape[1], 1)}


def run(config: Any, workdir: Any, context: RunContext | None = None) -> None:
    """Make the tied study and the reference as far as they are missing, and measure.

    Raises ValueError unless config.data.tied is one of `TIES`, and what the stages raise.
    """
    check_config(config)
    workdir, context = epath.Path(workdir), context or RunContext()
    reference = copy.deepcopy(config)
    reference.data.tied = "sky_untied"
    workdirs.write_config(config, workdir)
    for stage in (classifier_run, activations_run, sae_run):
        context.check()
        stage.run(config, workdir, context)
    for stage in (classifier_run, activations_run):
        context.check()
        stage.run(reference, workdir / FOLDER / "reference", context)
    test = ActivationStore.open(workdir / FOLDER / "reference" / "activations" / "test")
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    study = Study(workdir, stages.plain(config), mesh)
    rows, found = measure(study, test.predictions, config, context)
    upstream = stages.require(config, workdir, "sae")["digest"]
    artifacts.write_table(workdir / FOLDER / TABLE.file, TABLE.of_rows(rows), {"upstream": upstream})
    artifacts.write_json(workdir / FOLDER / RESULTS, results_of(rows) | {"found": found})
    meshes.wait_for_all("shortcut: written")  # the table is read next


def check_config(config: Any) -> None:
    """Raise ValueError unless the data are drawn with a tied sky, and for settings of the stages."""
    settings.check_choice("config.data.tied", config.data.get("tied", ""), TIES)
    for module in (classifier_run, activations_run, sae_run):
        if hasattr(module, "check_config"):
            module.check_config(config)


def measure(
    study: Study, reference: np.ndarray, config: Any, context: RunContext
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The rows of the table, and what is known of the feature that tells the sky best.

    Args:
      study: made with a tied sky.
      reference: predictions of the network trained without the tie on the same test images [n].
    """
    passes = {"batch_size": config.analysis.batch_size, "context": context}
    stores = {split: study.activations(split) for split in ("train", "test")}
    tied = config.data.tied
    skies = {split: skies_of(tied, store.image_ids, store.labels) for split, store in stores.items()}
    on_foreground = cells.foreground_cells(
        study.data["train"], stores["train"].grid, study.model.stride_px(study.site)
    )
    assert on_foreground is not None  # drawn data have masks
    off = np.concatenate(
        [~on_foreground(images) for images in np.array_split(np.arange(stores["train"].n_images), 16)]
    )
    reducers = {"mass": MeasureMass(jnp.asarray(off)), "pooled": KeepPooled()}
    passed = study.run_pass("train", reducers, label="shortcut: features on train", **passes)
    off_sum, total = passed["mass"]
    chosen = off_sum > MIN_OFF_SHARE * total
    auroc = metrics.auroc(passed["pooled"], skies["train"] > 0)[0]
    telling = np.maximum(auroc, 1 - auroc)
    context.log.info("shortcut: %d of %d features are mostly off the foreground", chosen.sum(), len(chosen))
    mean = total / off.size
    size = mean * np.linalg.norm(np.asarray(meshes.collect(study.sae.w_dec), np.float64), axis=-1)
    removals: dict[tuple[str, int | None], np.ndarray] = {
        ("none", None): np.zeros_like(chosen),
        ("off_foreground", None): chosen,
        ("off_foreground_to_mean", None): chosen,
        ("sky", None): chosen & (telling >= MIN_AUROC),
        **{("random", d): matched(chosen, size, config.seed, d) for d in range(N_RANDOM)},
    }
    removed = np.stack(list(removals.values())).astype(np.float32)  # [K, F]
    to_mean = np.array([name.endswith("to_mean") for name, _ in removals])[:, None]
    predict = PredictWithout(
        LogitsFromActs(study.params, study.site),
        jnp.asarray(1 - removed),
        jnp.asarray(np.where(to_mean, removed * mean, 0), jnp.float32),
    )
    out = study.run_pass("test", {"out": predict}, label="shortcut: removals on test", **passes)["out"]
    score = functools.partial(scores, stores["test"].labels, skies["test"], study.data["test"].class_names)
    rows = [
        {"removal": name, "draw": draw, "n_features": int(which.sum()), "removed_norm": float(norm)}
        | score(predictions)
        for ((name, draw), which), norm, predictions in zip(
            removals.items(), out["norms"], out["predictions"], strict=True
        )
    ]
    of_reference = {"removal": "reference", "draw": None, "n_features": 0, "removed_norm": 0.0}
    rows.append(of_reference | score(reference))
    return with_gaps(rows), _found(study, chosen, off_sum, total, auroc, skies["test"], passes)


def _found(study: Study, chosen, off_sum, total, auroc, skies, passes) -> dict[str, Any] | None:
    """The chosen feature that tells the sky best on train, and how it does on test; None if none is."""
    if not chosen.any():
        return None
    best = int(np.argmax(np.where(chosen, np.abs(auroc - 0.5), -1)))
    pooled = study.run_pass("test", {"pooled": KeepPooled()}, label="shortcut: features on test", **passes)
    column = pooled["pooled"][:, [best]]
    parity = np.array([tied_sky.value_of_class(label) for label in study.activations("test").labels])
    return {
        "feature": best,
        "off_share": float(off_sum[best] / total[best]),
        "sky_auroc_train": float(auroc[best]),
        "sky_auroc_test": float(metrics.auroc(column, skies > 0)[0][0]),
        "class_auroc_test": float(metrics.auroc(column, parity > 0)[0][0]),  # of the classes tied to sky 1
    }


def skies_of(tied: str, image_ids: list[str], labels: np.ndarray) -> np.ndarray:
    """The value of each image of a set with config.data.tied, 0 or 1, by its name and class [n]."""
    named = (id_.rsplit("-", 1) for id_ in image_ids)
    values = [
        tied_sky.value_of(tied, int(label), split, int(index))
        for (split, index), label in zip(named, labels, strict=True)
    ]
    return np.array(values, np.int32)


def matched(chosen: np.ndarray, size: np.ndarray, seed: int, draw: int) -> np.ndarray:
    """As many other features that fire, each with nearly the |f| ||w|| of a chosen one, bool [F].

    In random order every chosen feature takes one of the three nearest in log size that are left; where no
    others are left there are fewer.
    """
    rng = np.random.default_rng([seed, draw, 0x73686F72])
    taken, free = np.zeros_like(chosen), ~chosen & (size > 0)
    log_size = np.log(np.where(size > 0, size, 1))
    for feature in rng.permutation(np.flatnonzero(chosen & (size > 0))):
        left = np.flatnonzero(free & ~taken)
        if not len(left):
            break
        nearest = left[np.argsort(np.abs(log_size[left] - log_size[feature]), kind="stable")[:_NEAREST]]
        taken[rng.choice(nearest)] = True
    return taken


def scores(labels: np.ndarray, skies: np.ndarray, class_names: Any, predictions: np.ndarray) -> dict:
    """The accuracies of a row, from predictions [n] of the test images."""
    correct = predictions == labels
    as_tied = skies == np.array([tied_sky.value_of_class(label) for label in labels])
    groups = metrics.group_accuracies(correct, labels, skies, len(class_names))
    known = np.isfinite(groups)
    worst = np.unravel_index(np.argmin(np.where(known, groups, np.inf)), groups.shape)
    return {
        "accuracy": float(correct.mean()),
        "tied_accuracy": float(correct[as_tied].mean()),
        "broken_accuracy": float(correct[~as_tied].mean()),
        "worst_group_accuracy": metrics.worst_group(groups),
        "worst_class": class_names[worst[0]] if known.any() else None,
        "worst_sky": int(worst[1]) if known.any() else None,
        "n_groups": int(known.sum()),
    }


def with_gaps(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `recovered` and `accuracy_lost`, which hold a removal against none and the reference."""
    before = next(row for row in rows if row["removal"] == "none")
    target = next(row for row in rows if row["removal"] == "reference")["worst_group_accuracy"]
    worst = before["worst_group_accuracy"]
    return [
        row
        | {
            "recovered": metrics.gap_recovered(worst, row["worst_group_accuracy"], target),
            "accuracy_lost": before["accuracy"] - row["accuracy"],
        }
        for row in rows
    ]


def results_of(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The main numbers by removal; those of the random ones are means over draws."""
    keys = ("n_features", "accuracy", "broken_accuracy", "worst_group_accuracy", "recovered", "accuracy_lost")
    by_removal: dict[str, Any] = {}
    for row in rows:
        by_removal.setdefault(row["removal"], []).append([row[key] for key in keys])
    means = {name: np.mean(np.array(values, float), axis=0) for name, values in by_removal.items()}
    return {
        name: {k: float(v) if np.isfinite(v) else None for k, v in zip(keys, values, strict=True)}
        for name, values in means.items()
    }


def load(workdir: Any) -> list[dict[str, Any]]:
    """The rows of a workdir's table. Raises FileNotFoundError without one."""
    return artifacts.read_table(epath.Path(workdir) / FOLDER / TABLE.file).to_pylist()


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as markdown; unknown numbers are dashes."""
    shown = ("n_features", "removed_norm", "accuracy", "tied_accuracy", "broken_accuracy")
    shown += ("worst_group_accuracy", "recovered", "accuracy_lost")
    lines = ["| | " + " | ".join(shown) + " |", "|---" * (len(shown) + 1) + "|"]
    for row in rows:
        name = row["removal"] + ("" if row["draw"] is None else f" {row['draw']}")
        values = [row[key] for key in shown]
        texts = ["–" if v is None else str(v) if isinstance(v, int) else f"{v:.3f}" for v in values]
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return "\n".join(lines)
