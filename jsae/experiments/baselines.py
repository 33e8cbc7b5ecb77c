"""baselines.parquet: the SAE beside other dictionaries, all through the same code, on the usual scores.

    sae               the study's
    channels, pca, rotation, kmeans, nmf, class_mean, random   see `jsae.analysis.dictionaries`
    frozen_decoder, frozen_encoder    SAEs with a random matrix that is never trained (arXiv 2602.14111)
    untrained         the SAE of an untrained classifier, on that one's activations (arXiv 2501.17727)

SAEs that are trained for this lie in WORKDIR/baselines/, the untrained classifier's whole study in
WORKDIR/baselines/untrained. What removing a feature does is measured on the study's classifier; the
untrained one tells no classes, so that number is null there.
"""

import copy
import functools
import time
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from etils import epath

from jsae import metrics
from jsae import sae as saes
from jsae.ablation import choice
from jsae.ablation.feature_space import controls, pairs
from jsae.ablation.headline import headline
from jsae.ablation.statistics import BOOTSTRAP, MIN_ACTIVE
from jsae.activations import run as activations_run
from jsae.analysis import cells, dictionaries, directions, localisation, parts
from jsae.analysis import run as analysis_run
from jsae.analysis.strength import KeepMaps
from jsae.classifier import run as classifier_run
from jsae.classifier.forward import LogitsFromActs
from jsae.runtime import artifacts, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.sae import run as sae_run
from jsae.sae.evaluate import MeasureReconstruction
from jsae.study import Study
from jsae.tables import Column, Table, interval

FOLDER = "baselines"
DETECTORS = ("class_mean", "random")  # they reconstruct nothing
FROZEN = ("decoder", "encoder")
MADE = ("channels", "pca", "rotation", "kmeans", "nmf", "class_mean", "random")
NAMES = ("sae", *MADE, *(f"frozen_{name}" for name in FROZEN), "untrained")
TABLE = Table(
    "baselines",
    (
        Column("dictionary", pa.string(), "which one"),
        Column("n_features", pa.int32(), "F; a signed direction counts as two"),
        Column("l0", pa.float64(), "mean number of features active on a test vector"),
        Column("fvu", pa.float64(), "on test; null for detectors, which reconstruct nothing"),
        Column("purity16", pa.float64(), "mean over eligible features of purity16"),
        Column("class_selective_share", pa.float64(), "class-selective features, share of the alive ones"),
        Column(
            "class_auroc",
            pa.float64(),
            "mean over classes of the largest test AUROC of the features whose top class it is",
        ),
        Column(
            "part_auroc",
            pa.float64(),
            "mean over parts of the test part AUROC of the feature chosen on train",
        ),
        Column(
            "effect_minus_control",
            pa.float64(),
            "mean over class-selective features of removing the feature minus a direction of equal norm, "
            "margin of the feature's top class",
            interval=BOOTSTRAP,
        ),
        Column("seconds", pa.float64(), "of making and measuring it"),
    ),
)


def run(config: Any, workdir: Any, context: RunContext | None = None) -> None:
    """Make and measure all of NAMES; the table is written again after each of them.

    Rows that are there already, of the same ablation stage, are kept.

    Raises stages.StageMissing without a finished ablation stage.
    """
    workdir, context = epath.Path(workdir), context or RunContext()
    upstream = stages.require(config, workdir, "ablation")["digest"]
    path = stages.folder(config, workdir, "ablation") / TABLE.file
    setting, rows = None, meshes.of_writer(lambda: _rows_of(path, upstream))
    for name in NAMES[len(rows) :]:
        context.check()
        setting = setting or Setting(config, workdir, context)
        context.log.info("baselines: %s", name)
        start = time.monotonic()
        row = setting.row(name)
        rows.append({"dictionary": name} | row | {"seconds": time.monotonic() - start})
        artifacts.write_table(path, TABLE.of_rows(rows), {"upstream": upstream})
    meshes.wait_for_all("baselines: written")  # the table is read next


def _rows_of(path, upstream: str) -> list[dict]:
    if not path.exists():
        return []
    found = artifacts.read_table(path)
    manifest = artifacts.manifest_of(found)
    return found.to_pylist() if manifest.get("upstream") == upstream else []


class Setting:
    """What the dictionaries are measured on: the study's activations, cells and classifier."""

    def __init__(self, config: Any, workdir: epath.Path, context: RunContext):
        self.config, self.workdir, self.context = config, workdir, context
        self.mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
        self.study = self._opened(config, workdir)
        self.train, self.test = (self.study.activations(split) for split in ("train", "test"))

    def row(self, name: str) -> dict[str, Any]:
        """The row of one dictionary."""
        if name == "untrained":
            config, where = untrained_config(self.config), self.workdir / FOLDER / name
            for stage in (classifier_run, activations_run, sae_run):
                stage.run(config, where, self.context)
            study = self._opened(config, where)
            return self.scores(study, study.sae, of_classifier=False)
        if name.startswith("frozen_"):
            point = copy.deepcopy(self.config)
            point.sae.frozen = name.removeprefix("frozen_")
            where = self.workdir / FOLDER / name
            sae_run.run(point, self.workdir, self.context, where=where)
            return self.scores(self.study, saes.load(where, self.mesh))
        dictionary = self.study.sae if name == "sae" else self.make(name)
        row = self.scores(self.study, dictionary)
        return row | {"fvu": np.nan} if name in DETECTORS else row

    def make(self, name: str) -> Any:
        """One of MADE, from train vectors."""
        mean, seed, n_features = self.train.mean, self.config.seed, self.study.sae.n_features
        if name == "random":
            return directions.random(mean, n_features, seed)
        if name == "channels":
            return dictionaries.channels(mean)
        if name == "rotation":
            return dictionaries.rotation(mean, seed)
        if name == "class_mean":
            return dictionaries.class_mean(self._class_means(), mean)
        vectors = dictionaries.sample(self.train)
        if name == "pca":
            return dictionaries.pca(vectors, mean)
        n_rows = n_features if name == "kmeans" else len(mean)
        return getattr(dictionaries, name)(vectors, mean, n_rows, seed)

    def scores(self, study: Study, dictionary: Any, *, of_classifier: bool = True) -> dict[str, Any]:
        """The columns of a dictionary on the activations of a study, which may be those of its classifier."""
        c = self.config.analysis
        pass_over = functools.partial(
            study.run_pass, batch_size=c.batch_size, dictionary=dictionary, context=self.context
        )
        analysis = analysis_run.analyze(
            study,
            pass_over,
            n_top=c.n_top,
            n_permutations=2,  # the nulls of the indices are not used here
            seed=self.config.seed,
            context=self.context,
        )
        features, counts = analysis.features.to_pydict(), analysis.results
        purity = [p for p, e in zip(features["purity16"], features["eligible"], strict=True) if e and p]
        reducers = {"sums": MeasureReconstruction()}
        fit = metrics.sae_metrics(pass_over("test", reducers, label="baselines: fvu")["sums"].sae)
        row = {
            "n_features": dictionary.n_features,
            **{name: np.nan if fit[name] is None else fit[name] for name in ("l0", "fvu")},
            "purity16": float(np.mean(purity)) if purity else np.nan,
            "class_selective_share": counts["n_class_selective"] / max(counts["n_features_alive"], 1),
            "class_auroc": class_auroc(features, len(study.activations("test").class_names)),
            "part_auroc": self._part_auroc(study, pass_over, dictionary.n_features),
            **interval("effect_minus_control", np.nan, np.nan, np.nan),
        }
        return row | (self._effect(dictionary, features) if of_classifier else {})

    def _opened(self, config, workdir) -> Study:
        return Study(workdir, stages.plain(config), self.mesh)

    def _part_auroc(self, study: Study, pass_over, n_features: int) -> float:
        """NaN without masks of parts."""
        stores = {split: study.activations(split) for split in ("train", "test")}
        stride_px = self.study.params.model.stride_px(self.study.site)
        where = cells.of_stores(self.study.data, stores, stride_px)
        if where is None or len(where["test"].names) == 1:
            return np.nan
        scores = {}
        for split, store in stores.items():
            images, label = localisation.images_of(store, n_features), f"baselines: cells of {split}"
            maps = pass_over(split, {"maps": KeepMaps()}, label=label, images=images)["maps"]
            scores[split] = localisation.score(maps, where[split], images)
        return float(np.nanmean(parts.best_of(scores)["auroc"][:-1]))

    def _effect(self, dictionary, features: dict) -> dict[str, Any]:
        """Removing class-selective features, against a direction of equal norm."""
        c, seed = self.config.ablation, self.config.seed
        chosen = choice.choose(features, c.n_features)
        if not chosen.selective:
            return {}
        batches = {"batch_size": c.batch_size, "context": self.context, "label": "baselines: effects"}
        reducers = {"pairs": pairs.FindPairs(np.array(chosen.selective, np.int32))}
        found = self.study.run_pass("test", reducers, dictionary=dictionary, **batches)["pairs"]
        inside = pairs.effects_of_pairs(
            LogitsFromActs(self.study.params, self.study.site),
            dictionary,
            self.test,
            found,
            top_classes=chosen.top_classes,
            root=self._covariance_root,
            key=jax.random.key(seed),
            mesh=self.mesh,
            **batches,
        )
        known = [f for f in chosen.selective if (inside.features == f).sum() >= MIN_ACTIVE]
        at_map = inside.deltas.select(scope="map")
        numbers = headline(inside.features, inside.images, at_map, known, known, c.n_bootstrap, seed)
        value = numbers["mean_effect_minus_control_margin"]
        ends = numbers["mean_effect_minus_control_margin_ci95"]
        return {} if value is None else interval("effect_minus_control", value, *ends)

    @functools.cached_property
    def _covariance_root(self) -> np.ndarray:
        return controls.covariance_root(self.train, self.config.ablation.batch_size, self.context)

    def _class_means(self) -> np.ndarray:
        """Mean train vector of each class [L, C]; NaN for a class without images."""
        n_classes = len(self.train.class_names)
        sums, counts = np.zeros((n_classes, self.train.n_channels)), np.zeros(n_classes)
        for batch in self.train.batches(self.config.ablation.batch_size):
            one_hot = (batch.labels[:, None] == np.arange(n_classes)[None, :]).astype(np.float64)
            sums += one_hot.T @ batch.acts.mean((1, 2), dtype=np.float64)
            counts += one_hot.sum(0)
        return sums / np.where(counts > 0, counts, np.nan)[:, None]


def class_auroc(features: dict[str, list], n_classes: int) -> float:
    """Mean over classes of the best test AUROC of the eligible features whose top class it is; none: 0.5."""
    best = np.full(n_classes, 0.5)
    for top, value, eligible in zip(
        features["top_class"], features["auroc"], features["eligible"], strict=True
    ):
        if eligible and top is not None and value is not None:
            best[top] = max(best[top], value)
    return float(best.mean())


def untrained_config(config: Any) -> Any:
    """The config of a classifier as it was initialised: one step with no learning rate to speak of."""
    config = copy.deepcopy(config)
    config.classifier.update(
        {"workdir": "", "pretrained": "", "n_epochs": 0.0, "warmup_epochs": 0.0, "learning_rate": 1e-12}
    )
    return config


def load(config: Any, workdir: Any) -> list[dict[str, Any]]:
    """The rows of the table of a workdir."""
    return artifacts.read_table(stages.folder(config, workdir, "ablation") / TABLE.file).to_pylist()


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as markdown; unknown numbers are dashes."""
    shown = ("n_features", "l0", "fvu", "purity16", "class_selective_share", "class_auroc", "part_auroc")
    lines = ["| | " + " | ".join((*shown, "effect - control [95%]")) + " |", "|---" * (len(shown) + 2) + "|"]
    for row in rows:
        cells = [_text(row[name]) for name in shown]
        effect = [_text(row[f"effect_minus_control{end}"]) for end in ("", "_low", "_high")]
        cells.append("–" if effect[0] == "–" else f"{effect[0]} [{effect[1]}, {effect[2]}]")
        lines.append(f"| {row['dictionary']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(value) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
