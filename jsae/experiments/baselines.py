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
import time

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from etils import epath

from jsae import classifier, metrics
from jsae import sae as saes
from jsae.ablation import choice, controls, feature_space
from jsae.ablation.run import headline
from jsae.ablation.statistics import MIN_ACTIVE
from jsae.ablation.tables import schema, table
from jsae.activations import ActivationStore
from jsae.activations import run as activations_run
from jsae.analysis import cells, dictionaries, localisation, parts
from jsae.analysis import run as analysis_run
from jsae.classifier import run as classifier_run
from jsae.classifier.forward import LogitsFromActs
from jsae.data import identity
from jsae.runtime import artifacts, logs, mesh, preemption, stages
from jsae.sae import run as sae_run

FILE = "baselines.parquet"
FOLDER = "baselines"
DETECTORS = ("class_mean", "random")  # they reconstruct nothing
FROZEN = ("decoder", "encoder")
MADE = ("channels", "pca", "rotation", "kmeans", "nmf", "class_mean", "random")
NAMES = ("sae", *MADE, *(f"frozen_{name}" for name in FROZEN), "untrained")
_FLOAT = pa.float64()
SCHEMA = schema(
    dictionary=(pa.string(), "which one"),
    n_features=(pa.int32(), "F; a signed direction counts as two"),
    l0=(_FLOAT, "mean number of features active on a test vector"),
    fvu=(_FLOAT, "on test; null for detectors, which reconstruct nothing"),
    purity16=(_FLOAT, "mean over eligible features of purity16"),
    class_selective_share=(_FLOAT, "class-selective features, share of the alive ones"),
    class_auroc=(_FLOAT, "mean over classes of the largest test AUROC of the features whose top class it is"),
    part_auroc=(_FLOAT, "mean over parts of the test part AUROC of the feature chosen on train"),
    n_parts_found=(
        pa.int32(),
        "parts with a part AUROC of 0.85 that is 0.10 above random directions and centre",
    ),
    effect_minus_control=(
        _FLOAT,
        "mean over class-selective features of removing the feature minus a direction of equal norm, margin "
        "of the feature's top class",
    ),
    effect_minus_control_low=(_FLOAT, "lower end of its 95% bootstrap interval over images"),
    effect_minus_control_high=(_FLOAT, "upper end of it"),
    seconds=(_FLOAT, "of making and measuring it"),
)


def run(config, workdir) -> None:
    """Make and measure all of NAMES; the table is written after each of them anew.

    Rows that are there already, of the same ablation stage, are kept.

    Raises stages.StageMissing without a finished ablation stage.
    """
    workdir = epath.Path(workdir)
    upstream = stages.require(config, workdir, "ablation")["digest"]
    path = stages.folder(config, workdir, "ablation") / FILE
    setting, rows = None, mesh.of_writer(lambda: _rows_of(path, upstream))
    for name in NAMES[len(rows) :]:
        preemption.check()
        setting = setting or Setting(config, workdir)
        logs.get_logger().info("baselines: %s", name)
        start = time.monotonic()
        with jax.default_matmul_precision("float32"):
            row = setting.measure(name)
        rows.append({"dictionary": name} | row | {"seconds": time.monotonic() - start})
        artifacts.write_table(path, table(rows, SCHEMA), {"upstream": upstream})
    mesh.wait_for_all("baselines: written")  # the table is read next


def _rows_of(path, upstream: str) -> list[dict]:
    if not path.exists():
        return []
    found = artifacts.read_table(path)
    manifest = artifacts.manifest_of(found)
    return found.to_pylist() if manifest.get("upstream") == upstream else []


class Setting:
    """What the dictionaries are measured on: the study's activations, cells and classifier."""

    def __init__(self, config, workdir):
        self.config, self.workdir = config, workdir
        where = {name: stages.folder(config, workdir, name) for name in stages.STAGES}
        self.params, self.sae = classifier.load(where["classifier"]), saes.load(where["sae"])
        self.splits = identity.splits_of(config, workdir)
        self.stores = {s: ActivationStore.open(where["activations"] / s) for s in ("train", "test")}
        self.root = controls.covariance_root(self._train_batches(), self.stores["train"].mean)
        self._nulls = None  # of the study's parts, read when first asked for

    def measure(self, name: str) -> dict:
        """The row of one dictionary."""
        if name == "untrained":
            study = _untrained(self.config, self.workdir / FOLDER / name)
            stores = {s: ActivationStore.open(study / "activations" / s) for s in ("train", "test")}
            return self.scores(saes.load(study / "sae"), stores, acts_on_classifier=False)
        if name.startswith("frozen_"):
            point = copy.deepcopy(self.config)
            point.sae.frozen = name.removeprefix("frozen_")
            sae_run.run(point, self.workdir, where=self.workdir / FOLDER / name)
            return self.scores(saes.load(self.workdir / FOLDER / name), self.stores)
        row = self.scores(self.sae if name == "sae" else self.make(name), self.stores)
        return row | {"fvu": np.nan} if name in DETECTORS else row

    def make(self, name: str):
        """One of MADE, from train vectors."""
        mean, seed, n_features = self.stores["train"].mean, self.config.seed, self.sae.n_features
        if name in ("channels", "rotation", "random"):
            arguments = {"channels": (), "rotation": (seed,), "random": (n_features, seed)}[name]
            return getattr(dictionaries, name)(mean, *arguments)
        if name == "class_mean":
            return dictionaries.class_mean(self._class_means(), mean)
        vectors = dictionaries.sample(self.stores["train"])
        if name == "pca":
            return dictionaries.pca(vectors, mean)
        n_rows = n_features if name == "kmeans" else len(mean)
        return getattr(dictionaries, name)(vectors, mean, n_rows, seed)

    def scores(self, dictionary, stores: dict, *, acts_on_classifier: bool = True) -> dict:
        """The columns of a dictionary on stores of its activations."""
        c = self.config.analysis
        _, features, found = analysis_run.analyze(
            *(stores["train"], stores["test"], dictionary),
            n_top=c.n_top,
            batch_size=c.batch_size,
            n_permutations=2,  # the nulls of the indices are not looked at here
            seed=self.config.seed,
        )
        features = features.to_pydict()
        purity = [p for p, e in zip(features["purity16"], features["eligible"], strict=True) if e and p]
        row = {
            "n_features": dictionary.n_features,
            **_reconstruction(dictionary, stores["test"], c.batch_size),
            "purity16": float(np.mean(purity)) if purity else np.nan,
            "class_selective_share": found["n_class_selective"] / max(found["n_features_alive"], 1),
            "class_auroc": class_auroc(features, len(stores["test"].class_names)),
            **self._parts(dictionary, stores),
            **dict.fromkeys(
                ("effect_minus_control", "effect_minus_control_low", "effect_minus_control_high"), np.nan
            ),
        }
        return row | (self._effect(dictionary, features) if acts_on_classifier else {})

    def _parts(self, dictionary, stores) -> dict:
        """part_auroc and n_parts_found; NaN and None without masks of parts."""
        stride_px = self.params.model.stride_px(stores["test"].site)
        where = cells.of_stores({s: self.splits[s] for s in stores}, stores, stride_px)
        if where is None or len(where["test"].names) == 1:
            return {"part_auroc": np.nan, "n_parts_found": None}
        batch_size = self.config.analysis.batch_size
        seen = {
            s: localisation.measure(dictionary, stores[s], where[s], batch_size=batch_size) for s in stores
        }
        best = parts.best_of(seen)["auroc"][:-1]
        if self._nulls is None:
            known = artifacts.read_table(self.workdir / "analysis" / parts.FILE).to_pydict()
            self._nulls = {
                f"{n}_auroc": np.array(known[f"{n}_auroc"], float)[:-1] for n in ("random", "centre")
            }
        return {
            "part_auroc": float(np.nanmean(best)),
            "n_parts_found": int(parts.found({"auroc": best} | self._nulls).sum()),
        }

    def _effect(self, dictionary, features: dict) -> dict:
        """Removing class-selective features, against a direction of equal norm."""
        c, test = self.config.ablation, self.stores["test"]
        selective = [
            f for f in choice.choose_features(features, c.n_features) if features["class_selective"][f]
        ]
        if not selective:
            return {}
        inside = feature_space.measure(
            LogitsFromActs(self.params, test.site),
            dictionary,
            test.batches(c.batch_size),
            labels=test.labels,
            features=selective,
            top_classes=[features["top_class"][f] for f in selective],
            root=self.root,
            key=jax.random.key(self.config.seed),
            pair_batch=c.batch_size,
            on_batch=lambda n: preemption.check_here(),
        )
        stated = [f for f in selective if (inside.features == f).sum() >= MIN_ACTIVE]
        at = feature_space.SCOPES.index("map")
        seen = (inside.features, inside.images, inside.deltas[:, at], stated, stated, c.n_bootstrap)
        numbers = headline(*seen, self.config.seed)
        low, high = numbers["mean_effect_minus_control_margin_ci95"] or (np.nan, np.nan)
        value = numbers["mean_effect_minus_control_margin"]
        return {
            "effect_minus_control": np.nan if value is None else value,
            "effect_minus_control_low": low,
            "effect_minus_control_high": high,
        }

    def _train_batches(self):
        for _, acts, mask in self.stores["train"].batches(self.config.ablation.batch_size):
            preemption.check_here()
            yield acts[mask > 0]

    def _class_means(self) -> np.ndarray:
        """Mean train vector of each class [L, C]; NaN for a class without images."""
        train = self.stores["train"]
        sums, counts = np.zeros((len(train.class_names), train.n_channels)), np.zeros(len(train.class_names))
        for start, acts, mask in train.batches(self.config.ablation.batch_size):
            labels = train.labels[start : start + int(mask.sum())]
            one_hot = np.eye(len(counts))[labels] * (labels >= 0)[:, None]
            sums += one_hot.T @ acts[: len(labels)].mean((1, 2), dtype=np.float64)
            counts += one_hot.sum(0)
        return sums / np.where(counts > 0, counts, np.nan)[:, None]


def class_auroc(features: dict, n_classes: int) -> float:
    """Mean over classes of the best test AUROC of the eligible features whose top class it is; none: 0.5."""
    best = np.full(n_classes, 0.5)
    for top, value, eligible in zip(
        features["top_class"], features["auroc"], features["eligible"], strict=True
    ):
        if eligible and top is not None and value is not None:
            best[top] = max(best[top], value)
    return float(best.mean())


def _reconstruction(dictionary, store, batch_size: int) -> dict:
    total = None

    @jax.jit
    def sums(dictionary, acts, mask):
        x = acts.reshape(-1, acts.shape[-1])
        feats = dictionary.encode(x)
        cells = acts.shape[1] * acts.shape[2]
        return metrics.sae_sums(x, dictionary.decode(feats), feats, jnp.repeat(mask, cells), dictionary.mean)

    for _, acts, mask in store.batches(batch_size):
        total = metrics.add_sums(total, sums(dictionary, acts, mask))
        preemption.check_here()
    found = metrics.sae_metrics(total)
    return {name: np.nan if found[name] is None else found[name] for name in ("l0", "fvu")}


def _untrained(config, workdir):
    """The study of a classifier as it was initialised (one step with no learning rate to speak of)."""
    config = copy.deepcopy(config)
    config.classifier.update(
        {"workdir": "", "pretrained": "", "n_epochs": 0.0, "warmup_epochs": 0.0, "learning_rate": 1e-12}
    )
    for stage in (classifier_run, activations_run, sae_run):
        stage.run(config, workdir)
    return workdir


def load(config, workdir) -> list[dict]:
    """The rows of the table of a workdir."""
    return artifacts.read_table(stages.folder(config, workdir, "ablation") / FILE).to_pylist()


def markdown(rows: list[dict]) -> str:
    """The table as markdown; unknown numbers are dashes."""
    shown = ("n_features", "l0", "fvu", "purity16", "class_selective_share", "class_auroc", "part_auroc")
    shown += ("n_parts_found",)
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
