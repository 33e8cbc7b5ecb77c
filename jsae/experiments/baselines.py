"""baselines.parquet: the SAE beside other dictionaries, all through the same code, on the usual scores.

    sae               the study's
    channels, pca, rotation, kmeans, nmf, class_mean, random   see `jsae.analysis.dictionaries`
    class_probe, part_probe    ridge regressions on the labels of train images and the masks of their parts;
                      filters read and their patterns are removed (`jsae.analysis.readouts`)
    frozen_decoder, frozen_encoder    SAEs with a random matrix that is never trained (arXiv 2602.14111)
    untrained         the SAE of an untrained classifier, on that one's activations (arXiv 2501.17727)

SAEs that are trained for this lie in WORKDIR/baselines/, the untrained classifier's whole study in
WORKDIR/baselines/untrained. What removing a feature does is measured on the study's classifier; the
untrained one tells no classes, so that number is null there.

Dictionaries differ in how often and how much they fire, and a feature that takes more away does more. So
density and firing share stand in the table, and effects are divided by the size of what is removed; so are
those of the controls, which take the same size from the same images.
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
from jsae.ablation import choice, statistics
from jsae.ablation.feature_space import controls, pairs
from jsae.ablation.statistics import BOOTSTRAP, MIN_ACTIVE
from jsae.activations import run as activations_run
from jsae.analysis import cells, dictionaries, directions, localisation, parts, readouts
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
DETECTORS = ("class_mean", "class_probe", "part_probe", "random")  # they reconstruct nothing
FROZEN = ("decoder", "encoder")
MADE = ("channels", "pca", "rotation", "kmeans", "nmf", *DETECTORS)
_PER_NORM = "sum over images divided by the sum of removed_norm, mean over features"
NAMES = ("sae", *MADE, *(f"frozen_{name}" for name in FROZEN), "untrained")
TABLE = Table(
    "baselines",
    (
        Column("dictionary", pa.string(), "which one"),
        Column("n_features", pa.int32(), "F; a signed direction counts as two"),
        Column("l0", pa.float64(), "mean number of features active on a test vector"),
        Column(
            "density", pa.float64(), "share of test vectors on which a feature fires, mean over those alive"
        ),
        Column(
            "firing_share",
            pa.float64(),
            "share of test images in which an alive feature fires, their mean",
        ),
        Column("fvu", pa.float64(), "on test; null for detectors, which reconstruct nothing"),
        Column("purity16", pa.float64(), "mean over eligible features of purity16"),
        Column("class_selective_share", pa.float64(), "class-selective features, share of the alive ones"),
        Column(
            "class_auroc",
            pa.float64(),
            "mean over classes of the test AUROC of one eligible feature whose top class it is, that of the "
            "largest AUROC on train; 0.5 for a class without one",
        ),
        Column(
            "part_auroc",
            pa.float64(),
            "mean over parts of the test part AUROC of the feature chosen on train: where, not what",
        ),
        Column(
            "n_removed",
            pa.int32(),
            "class-selective features that are removed one by one, those of the largest AUROC on train; all "
            f"that follows is over the images of their class on which they fire, at least {MIN_ACTIVE}",
        ),
        Column(
            "removed_norm",
            pa.float64(),
            "size of what is removed, mean over the grid of f times the norm of its row, raw units: mean "
            "over images, then features",
        ),
        Column("own_class_margin", pa.float64(), "change of the margin of the class, the same mean"),
        Column(
            "margin_per_norm",
            pa.float64(),
            f"own_class_margin at equal removed norm: {_PER_NORM}",
            interval=BOOTSTRAP,
        ),
        Column(
            "minus_direction_per_norm",
            pa.float64(),
            "the same of the difference to what is there along a direction drawn from the covariance",
            interval=BOOTSTRAP,
        ),
        Column(
            "minus_auroc_per_norm",
            pa.float64(),
            "the same of the difference to what is there along a direction of equal class AUROC on train",
            interval=BOOTSTRAP,
        ),
        Column("seconds", pa.float64(), "of making and measuring it"),
    ),
)


_EFFECTS = TABLE.names[TABLE.names.index("n_removed") : TABLE.names.index("seconds")]


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
        if dictionary is None:
            return {column: np.nan for column in TABLE.names if column not in ("dictionary", "seconds")}
        row = self.scores(self.study, dictionary)
        return row | {"fvu": np.nan} if name in DETECTORS else row

    def make(self, name: str) -> Any:
        """One of MADE, from train vectors; None for part_probe where no part has masks."""
        mean, seed, n_features = self.train.mean, self.config.seed, self.study.sae.n_features
        if name == "random":
            return directions.random(mean, n_features, seed)
        if name == "channels":
            return dictionaries.channels(mean)
        if name == "rotation":
            return dictionaries.rotation(mean, seed)
        if name == "class_mean":
            return dictionaries.class_mean(self._of_labels[0], mean)
        if name == "class_probe":
            _, filters, covariance = self._of_labels
            return readouts.as_dictionary(filters, metrics.pattern(filters, covariance), mean)
        if name == "part_probe":
            return self._part_probe()
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
        alive = np.array(features["alive"], bool)
        fires = {
            name: np.array(features[column], float)[alive].mean() if alive.any() else np.nan
            for name, column in (("density", "density"), ("firing_share", "n_active_images"))
        }
        fires["firing_share"] /= study.activations("test").n_images
        purity = [p for p, e in zip(features["purity16"], features["eligible"], strict=True) if e and p]
        reducers = {"sums": MeasureReconstruction()}
        fit = metrics.sae_metrics(pass_over("test", reducers, label="baselines: fvu")["sums"].sae)
        row = {
            "n_features": dictionary.n_features,
            **{name: np.nan if fit[name] is None else fit[name] for name in ("l0", "fvu")},
            **fires,
            "purity16": float(np.mean(purity)) if purity else np.nan,
            "class_selective_share": counts["n_class_selective"] / max(counts["n_features_alive"], 1),
            "class_auroc": class_auroc(features, len(study.activations("test").class_names)),
            "part_auroc": self._part_auroc(study, pass_over, dictionary.n_features),
            **dict.fromkeys(_EFFECTS, np.nan),
        }
        return row | (self._effect(dictionary, features) if of_classifier else {})

    def _opened(self, config, workdir) -> Study:
        return Study(workdir, stages.plain(config), self.mesh)

    def _part_auroc(self, study: Study, pass_over, n_features: int) -> float:
        """NaN without masks of parts."""
        if self._cells is None:
            return np.nan
        scores = {}
        for split, where in self._cells.items():
            images = localisation.images_of(study.activations(split), n_features)
            label = f"baselines: cells of {split}"
            maps = pass_over(split, {"maps": KeepMaps()}, label=label, images=images)["maps"]
            scores[split] = localisation.score(maps, where, images)
        return float(np.nanmean(parts.best_of(scores)["auroc"][:-1]))

    @functools.cached_property
    def _cells(self) -> dict[str, cells.PartCells] | None:
        """Of train and test; None without masks of parts."""
        stores = {"train": self.train, "test": self.test}
        stride_px = self.study.params.model.stride_px(self.study.site)
        where = cells.of_stores(self.study.data, stores, stride_px)
        return None if where is None or len(where["test"].names) == 1 else where

    def _part_probe(self) -> Any:
        if self._cells is None:
            return None
        images = localisation.images_of(self.train, self.study.sae.n_features)
        train = readouts.read(self.train, self._cells["train"], images)
        filters = readouts.fit(train)["probe"]
        return readouts.as_dictionary(filters, readouts.patterns(filters, train), self.train.mean)

    def _effect(self, dictionary, features: dict) -> dict[str, Any]:
        """Removing the most class-selective features, beside controls of equal size."""
        c, seed = self.config.ablation, self.config.seed
        chosen = choice.choose(features, c.n_features)
        if not chosen.selective:
            return {"n_removed": 0}
        batches = {"batch_size": c.batch_size, "context": self.context, "label": "baselines: effects"}
        reducers = {"pairs": pairs.FindPairs(np.array(chosen.selective, np.int32))}
        found = self.study.run_pass("test", reducers, dictionary=dictionary, **batches)["pairs"]
        inside = pairs.effects_of_pairs(
            LogitsFromActs(self.study.params, self.study.site),
            dictionary,
            self.test,
            found,
            top_classes=chosen.top_classes,
            auroc_train=chosen.auroc_train,
            candidates=self._candidates,
            mean=self.train.mean,
            root=self._covariance_root,
            key=jax.random.key(seed),
            mesh=self.mesh,
            **batches,
        )
        return effects_on_own_class(inside, c.n_bootstrap, seed)

    @functools.cached_property
    def _candidates(self) -> controls.Candidates:
        c = self.config.ablation
        pass_over = functools.partial(
            self.study.run_pass, "train", batch_size=c.batch_size, context=self.context
        )
        key = jax.random.key(self.config.seed)
        return controls.draw_candidates(key, self._covariance_root, self.train, pass_over)

    @functools.cached_property
    def _covariance_root(self) -> np.ndarray:
        return controls.covariance_root(self.train, self.config.ablation.batch_size, self.context)

    @functools.cached_property
    def _of_labels(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return readouts.of_labels(self.train, self.config.ablation.batch_size)


def effects_on_own_class(effects: pairs.FeatureEffects, n_bootstrap: int, seed: int) -> dict[str, Any]:
    """The columns of what removing features does, over the images of their class; see `TABLE`."""
    own = effects.own_class & (effects.norms > 0)
    n_own = {f: int((own & (effects.features == f)).sum()) for f in np.unique(effects.features).tolist()}
    own &= np.isin(effects.features, [f for f, n in n_own.items() if n >= MIN_ACTIVE])
    at_map = effects.deltas.select(scope="map", target="top_class", measure="margin").rows(own)
    features, images, norms = effects.features[own], effects.images[own], effects.norms[own]

    def mean(values: np.ndarray, per: np.ndarray | None = None) -> tuple[float, float, float]:
        rng = np.random.default_rng([seed, 3])
        found = statistics.mean_over_features(values, features, images, n_bootstrap, rng, per=per)
        return found or (np.nan,) * 3

    effect = at_map.at(kind="effect").astype(np.float64)
    found: dict[str, Any] = {"n_removed": len(np.unique(features))}
    found |= {"removed_norm": mean(norms)[0], "own_class_margin": mean(effect)[0]}
    found |= interval("margin_per_norm", *mean(effect, norms))
    for kind in ("direction", "auroc"):
        found |= interval(f"minus_{kind}_per_norm", *mean(effect - at_map.at(kind=kind), norms))
    return found


def class_auroc(features: dict[str, list], n_classes: int) -> float:
    """Mean over classes of the test AUROC of the eligible feature of the largest train AUROC; none: 0.5.

    Of the features whose top class it is.
    """
    best: list[tuple[float, float]] = [(0.0, 0.5)] * n_classes
    columns = (features[name] for name in ("top_class", "auroc_train", "auroc", "eligible"))
    for top, on_train, on_test, eligible in zip(*columns, strict=True):
        if eligible and None not in (top, on_train, on_test):
            best[top] = max(best[top], (on_train, on_test), key=lambda pair: pair[0])
    return float(np.mean([on_test for _, on_test in best]))


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
    shown = ("n_features", "l0", "firing_share", "fvu", "purity16", "class_selective_share")
    shown += ("class_auroc", "part_auroc", "n_removed", "removed_norm", "own_class_margin")
    with_ends = ("margin_per_norm", "minus_direction_per_norm", "minus_auroc_per_norm")
    heads = [*shown, *(f"{name} [95%]" for name in with_ends)]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in rows:
        cells = [_text(row[name]) for name in shown]
        for name in with_ends:
            value, low, high = (_text(row[f"{name}{end}"]) for end in ("", "_low", "_high"))
            cells.append("–" if value == "–" else f"{value} [{low}, {high}]")
        lines.append(f"| {row['dictionary']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _text(value) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"
