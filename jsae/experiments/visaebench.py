"""visaebench.parquet: numbers to hold beside ViSAEBench's, for any study with labels.

The formulas are `jsae.metrics.visaebench`. Two protocols stand side by side:

    package      the package's: the test images alone; features are ranked on all of them, probes fitted on
                 80% and scored on 20%; absorption fits and scores on the same images
    train_test   ranked and fitted on train, scored on test

Arbitrary bases of the same activations stand beside the SAE: the channels and a random rotation.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from etils import epath

from jsae.activations import Encoded, Reducer
from jsae.analysis import dictionaries
from jsae.metrics import visaebench as formulas
from jsae.metrics.visaebench import Labelled
from jsae.runtime import artifacts, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.runtime.pytrees import pytree
from jsae.study import Study
from jsae.tables import Column, Table

MIN_GROUP = 2  # classes; the package wants 3, which leaves little of a set of 20
TABLE = Table(
    "visaebench",
    (
        Column("dictionary", pa.string(), "sae, or a basis to hold it against: channels, rotation"),
        Column(
            "metric",
            pa.string(),
            "sparse_probing (normalised area under accuracy against k), sparse_probing_accuracy (at one k), "
            "morans_i (mean over features of the mean over test images), absorption (share of classes), "
            "absorption_overlap, absorption_f1_gap (means over classes), probe_raw and probe_reconstructed "
            "(accuracy of one linear probe on activations and on their reconstructions), preservation (their "
            "ratio)",
        ),
        Column(
            "protocol",
            pa.string(),
            "package: the test images alone, as the package does it; train_test: chosen and fitted on train, "
            "measured on test",
        ),
        Column("k", pa.int32(), "features that the probe sees; null for other metrics"),
        Column("level", pa.string(), "of absorption: the level whose classes are the groups of siblings"),
        Column("value", pa.float64(), "the number; null where nothing could be measured"),
        Column("n", pa.int32(), "what it is over: images scored, features (Moran's I), classes (absorption)"),
    ),
)


@pytree
class Pool(Reducer):
    """(codes [n, F], raw [n, C], recon [n, C]) of every image, float32 on the host, in normalised units.

    Attributes:
      mean, scale: of the train split's raw activations.
    """

    mean: jax.Array
    scale: jax.Array

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> tuple[np.ndarray, ...]:
        widths = (dictionary.n_features, len(self.mean), len(self.mean))
        return tuple(np.zeros((len(images), width), np.float32) for width in widths)

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, tuple[jax.Array, ...]]:
        recon = dictionary.decode(batch.feats)
        pooled = [(x.mean((1, 2)) - self.mean[None, :]) / self.scale for x in (batch.acts, recon)]
        return carry, (batch.feats.max((1, 2)) / self.scale, *pooled)

    def add(self, total: tuple, part: tuple, rows: slice, n: int) -> tuple:
        for array, new in zip(total, part, strict=True):
            array[rows] = new[:n]
        return total


@pytree
class MeasureMoransI(Reducer):
    """(mean over images of each feature's Moran's I [F], images in which it counts [F]).

    Attributes:
      scale: of the train split's raw activations.
    """

    scale: jax.Array

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> np.ndarray:
        return np.zeros((2, dictionary.n_features))

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, tuple[jax.Array, ...]]:
        value, counts = formulas.morans_i(batch.feats / self.scale)
        counts = counts & batch.real[:, None]
        return carry, (jnp.where(counts, value, 0.0).sum(0), counts.sum(0))

    def add(self, total: np.ndarray, part: tuple, rows: slice, n: int) -> np.ndarray:
        return total + np.stack(part)

    def finish(self, carry: Any, total: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return total[0] / np.maximum(total[1], 1), total[1].astype(np.int64)


class Split(NamedTuple):
    """Images of known class: maxima of their features, pooled activations, pooled reconstructions."""

    codes: Labelled
    raw: Labelled
    recon: Labelled


def run(config: Any, workdir: Any, context: RunContext | None = None) -> None:
    """Measure the study's SAE and the bases beside it, and write the table into the folder of stage `sae`.

    Raises stages.StageMissing without a finished SAE, ValueError where the images are not of two classes.
    """
    workdir, context = epath.Path(workdir), context or RunContext()
    upstream = stages.require(config, workdir, "sae")["digest"]
    study = Study(
        workdir, stages.plain(config), meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    )
    store = study.activations("train")
    made = {
        "sae": study.sae,
        "channels": dictionaries.channels(store.mean),
        "rotation": dictionaries.rotation(store.mean, config.seed),
    }
    bare = "classifier" in stages.skipped(config)
    levels = {} if bare else {name: parent for name, (_, parent) in study.data["test"].levels.items()}
    rows = []
    for name, dictionary in made.items():
        context.log.info("visaebench: %s", name)
        found = measure(study, dictionary, levels, config.analysis.batch_size, context)
        rows += [{"dictionary": name} | row for row in found]
    path = stages.folder(config, workdir, "sae") / TABLE.file
    artifacts.write_table(path, TABLE.of_rows(rows), {"upstream": upstream})
    meshes.wait_for_all("visaebench: written")


def measure(
    study: Any, dictionary: Any, levels: Mapping[str, np.ndarray], batch_size: int, context: RunContext
) -> list[dict]:
    """The rows of a dictionary.

    Args:
      study: an opened study; its stores `train` and `test` are passed over once.
      dictionary: encode, decode and n_features, raw units.
      levels: coarser label level -> the class there of each class, int [L], -1 where it is not known.
      batch_size: images at once.
      context: progress and stop requests.
    """
    store = study.activations("train")
    pool, moran = Pool(jnp.asarray(store.mean), store.scale), MeasureMoransI(store.scale)
    splits = []
    for name in ("train", "test"):
        found = study.run_pass(
            name,
            {"pooled": pool} | ({"morans_i": moran} if name == "test" else {}),
            dictionary=dictionary,
            batch_size=batch_size,
            context=context,
            label=f"visaebench: {name}",
        )
        labels = np.asarray(study.activations(name).labels)
        known = np.flatnonzero(labels >= 0)
        if len(np.unique(labels[known])) < 2:
            raise ValueError(f"probes need images of two classes or more; those of {name} have fewer")
        splits.append(Split(*(Labelled(part[known], labels[known]) for part in found["pooled"])))
        context.check()
    value, n_images = found["morans_i"]
    scored = n_images >= formulas.MIN_IMAGES
    rows = [_row("morans_i", "package", value[scored].mean() if scored.any() else None, int(scored.sum()))]
    train, test = splits
    halves = [Split(*images) for images in zip(*(formulas.halves(images) for images in test), strict=True)]
    same, apart = (test.codes, test.codes), (train.codes, test.codes)
    rows += of_protocol("package", *halves, ranked_on=test.codes, absorbed_on=same, levels=levels)
    return rows + of_protocol(
        "train_test", train, test, ranked_on=train.codes, absorbed_on=apart, levels=levels
    )


def of_protocol(
    protocol: str,
    fit: Split,
    score: Split,
    *,
    ranked_on: Labelled,
    absorbed_on: tuple[Labelled, Labelled],
    levels: Mapping[str, np.ndarray],
) -> list[dict]:
    """The rows of a protocol: probes fitted on `fit` and scored on `score`, absorption on images apart."""
    n = len(score.codes.labels)
    accuracies = formulas.sparse_probing(fit.codes, score.codes, formulas.f_ranking(ranked_on))
    raw, recon = formulas.probe_accuracies(fit.raw, (score.raw, score.recon))
    rows = [
        _row("sparse_probing", protocol, formulas.normalised_area(accuracies), n),
        *(_row("sparse_probing_accuracy", protocol, value, n, k=k) for k, value in accuracies.items()),
        _row("probe_raw", protocol, raw, n),
        _row("probe_reconstructed", protocol, recon, n),
        _row("preservation", protocol, recon / raw if raw else None, n),
    ]
    for level, parent in levels.items():
        groups = [np.flatnonzero(parent == p) for p in np.unique(parent[parent >= 0])]
        found = formulas.absorption(*absorbed_on, groups, MIN_GROUP)
        if found:
            gap = found.f1_wide - found.f1_narrow
            for name, value in (("", found.rate), ("_overlap", found.overlap), ("_f1_gap", gap)):
                rows.append(_row(f"absorption{name}", protocol, value, found.n_pairs, level=level))
    return rows


def _row(
    metric: str, protocol: str, value: float | None, n: int, k: int | None = None, level: str | None = None
) -> dict:
    return {"metric": metric, "protocol": protocol, "k": k, "level": level, "value": value, "n": n}


def load(config: Any, workdir: Any) -> list[dict[str, Any]]:
    """The rows of the table of a workdir."""
    return artifacts.read_table(stages.folder(config, workdir, "sae") / TABLE.file).to_pylist()


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as markdown, a column for each dictionary; unknown numbers are dashes."""
    names = list(dict.fromkeys(row["dictionary"] for row in rows))
    lines = ["| metric | protocol | " + " | ".join(names) + " | n |", "|---" * (len(names) + 3) + "|"]
    by_metric: dict[tuple, dict] = {}
    for row in rows:
        beside = f" k={row['k']}" if row["k"] else f" ({row['level']})" if row["level"] else ""
        by_metric.setdefault((row["metric"] + beside, row["protocol"]), {})[row["dictionary"]] = row
    for (metric, protocol), of in by_metric.items():
        values = [of[name]["value"] if name in of else None for name in names]
        shown = ["–" if value is None else f"{value:.3f}" for value in values]
        n = ", ".join(dict.fromkeys(str(row["n"]) for row in of.values()))
        lines.append(f"| {metric} | {protocol} | " + " | ".join(shown) + f" | {n} |")
    return "\n".join(lines)
