"""What a study found, as the pages need it: its tables feature by feature, and what is known about each.

A stage that was skipped or has not run leaves its part empty; the pages then say so. Tables stay in Arrow
form: the rows of a feature become Python objects when its page is made, and are dropped with it.
"""

import dataclasses
import functools
from typing import Any

import numpy as np
import pyarrow as pa

from jsae.activations import ActivationStore
from jsae.analysis.cells import FOREGROUND
from jsae.analysis.pixel_maps import table as pixel_maps
from jsae.data import cache
from jsae.report.formatting import is_known
from jsae.report.summary import complete_manifests
from jsae.report.survey import Survey
from jsae.runtime import logs, stages
from jsae.study import TABLES, Study
from jsae.tables import documentation

_MORE = {  # table of the analysis -> the name of a column of `Results.features`, its name there
    "localisation": {
        "part": "part",
        "part_auroc_train": "auroc_train",
        "part_auroc": "auroc",
        "part_pointing": "pointing",
    },
    "pixel_maps": {
        "pixel_map_in_cell": "cell_mass",
        "pixel_map_insertion": "insertion_auc",
        "pixel_map_deletion": "deletion_auc",
    },
    "monosemanticity": {name: name for name in ("monosemanticity", "monosemanticity_z")},
}
_N_DRAWS = 4000  # random sets of images for purity by chance


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of a study.

    Attributes:
      facts: data_kind, val_in_train (trainval), arch, site, grid (H, W) or None, image_px or None, n_test,
        n_skipped, class_names (may be empty), class_sizes (test images by class, [L], or None).
      summary: content of summary.json.
      manifests: stage -> its manifest; {} for a stage that is not complete.
      curves: rows of metrics.jsonl of "classifier" and "sae".
      tables: name -> Arrow table of those that exist.
      features: columns of features.parquet (all F features) without the per-class lists, and those of other
        tables that say something about every feature; {} without the table.
      docs: what each of those columns means.
      chosen: features that get a page, in the order of the pages.
      survey: what was measured for the pictures, see `jsae.report.survey`.
      twin: feature -> (feature of another SAE, cosine of the decoder rows), {} without another SAE.
    """

    facts: dict
    summary: dict
    manifests: dict[str, dict]
    curves: dict[str, list[dict]]
    tables: dict[str, pa.Table]
    features: dict[str, list]
    docs: dict[str, str]
    chosen: tuple[int, ...]
    survey: Survey = dataclasses.field(default_factory=Survey)
    twin: dict[int, tuple[int, float]] = dataclasses.field(default_factory=dict)

    def finished(self, stage: str) -> dict:
        """What a stage passed to `finish`; {} where it is not complete."""
        return self.manifests[stage].get("results") or {}

    def all_rows(self, name: str) -> list[dict]:
        """The rows of a table, [] where it does not exist."""
        return self.tables[name].to_pylist() if name in self.tables else []

    def rows(self, name: str, feature: int, **equal: str) -> list[dict]:
        """The rows of table `name` of one feature, in the order of the table; of those the `equal` ones."""
        table, spans = self._by_feature.get(name, (None, {}))
        rows = table.slice(*spans[feature]).to_pylist() if feature in spans else []
        return [row for row in rows if all(row[column] == value for column, value in equal.items())]

    def feature(self, feature: int) -> dict:
        """The row of features.parquet of one feature, with what other tables add."""
        row = self._row_of[feature]
        return {name: values[row] for name, values in self.features.items()}

    def patches(self, feature: int) -> list[dict]:
        """The top patches of a feature by rank."""
        return sorted(self.rows("top_patches", feature), key=lambda row: row["rank"])

    def main_effect(self, feature: int, table: str = "feature_space", **equal: str) -> dict | None:
        """The row for the margin of a target, None if the feature was not ablated.

        Args:
          feature, table: which.
          equal: `target`, and of feature_space.parquet `scope`.
        """
        return next(iter(self.rows(table, feature, measure="margin", **equal)), None)

    def class_means(self, feature: int) -> np.ndarray | None:
        """Mean pooled activation by class, float [L]; None where no class is known."""
        means = self.tables["features"]["class_mean"][self._row_of[feature]].as_py()
        return np.asarray(means, float) if means else None

    @functools.cached_property
    def ablated(self) -> list[int]:
        """The features of feature_space.parquet, or of input_space.parquet where that is all there is."""
        for name in ("feature_space", "input_space"):
            if name in self.tables and len(self.tables[name]):
                return list(dict.fromkeys(self.tables[name]["feature"].to_pylist()))
        return []

    @functools.cached_property
    def purity_by_chance(self) -> float | None:
        """Mean purity16 of 16 test images drawn at random, None where no class is known."""
        sizes = self.facts["class_sizes"]
        if sizes is None or not sum(sizes):
            return None
        rng = np.random.default_rng(0)
        drawn = rng.multivariate_hypergeometric(sizes, min(16, sum(sizes)), _N_DRAWS)  # [n, L]
        return float((drawn.max(axis=1) / drawn.sum(axis=1)).mean())

    @functools.cached_property
    def _row_of(self) -> dict[int, int]:
        return {feature: i for i, feature in enumerate(self.features["feature"])}

    @functools.cached_property
    def _by_feature(self) -> dict[str, tuple[pa.Table, dict[int, tuple[int, int]]]]:
        """Tables sorted by feature, with the first row of each feature and how many it has."""
        found = {}
        for name, table in self.tables.items():
            if "feature" in table.column_names:
                features = table["feature"].to_numpy()
                order = np.argsort(features, kind="stable")
                spans = zip(*np.unique(features[order], return_index=True, return_counts=True), strict=True)
                found[name] = (table.take(pa.array(order)), {int(f): (int(i), int(n)) for f, i, n in spans})
        return found


def read(study: Study, summary: dict, *, n_pages: int, facts: dict) -> Results:
    """The results of all stages that are complete.

    Args:
      study: the opened study.
      summary: content of summary.json.
      n_pages: how many features get a page; the ablated ones come first.
      facts: what is known of data and site, see `Results` and `facts_of`.
    """
    tables = {name: study.table(name) for name in TABLES if study.has_table(name)}
    columns, docs = _columns(tables) if "features" in tables else ({}, {})
    found = Results(
        facts=facts,
        summary=summary,
        manifests=complete_manifests(study.config, study.workdir),
        curves={
            stage: _curve(stages.folder(study.config, study.workdir, stage) / "metrics.jsonl")
            for stage in ("classifier", "sae")
        },
        tables=tables,
        features=columns,
        docs=docs,
        chosen=(),
    )
    return dataclasses.replace(found, chosen=choose(columns, found.ablated, n_pages))


def facts_of(config: Any, split: cache.Split | None, store: ActivationStore | None, summary: dict) -> dict:
    """The `facts` of `Results` from the test images and their activations, each None without."""
    known = split if split is not None else store  # both have labels and class_names
    labels = np.zeros(0, np.int32) if known is None else np.asarray(known.labels)
    names = () if known is None or not (labels >= 0).any() else tuple(known.class_names)
    return {
        "data_kind": config["data"]["kind"],
        "val_in_train": config["data"]["train_split"] == "trainval",
        "arch": summary["classifier"]["arch"],
        "site": summary["classifier"]["site"] or (store.site if store is not None else None),
        "grid": None if store is None else tuple(store.grid),
        "image_px": None if split is None else split.images.shape[2],
        "n_test": None if known is None else len(labels),
        "n_skipped": 0 if split is None else len(split.skipped),
        "class_names": names,
        "class_sizes": np.bincount(labels[labels >= 0], minlength=len(names)) if names else None,
    }


def choose(columns: dict[str, list], ablated: list[int], n_pages: int) -> tuple[int, ...]:
    """The features that get a page: ablated ones first, then class-selective, then by purity16.

    Features that never fire on train are left out: there is nothing to see.
    """
    if not columns:
        return ()

    def rank(i: int) -> tuple:
        numbers = (columns[name][i] for name in ("purity16", "auroc"))
        falling = (-(value if is_known(value) else -1.0) for value in numbers)
        return (not columns["class_selective"][i], not columns["eligible"][i], *falling, features[i])

    features = columns["feature"]
    order = [features[i] for i in sorted(range(len(features)), key=rank)]
    alive = {f for f, is_alive in zip(features, columns["alive"], strict=True) if is_alive}
    return tuple(f for f in dict.fromkeys([*ablated, *order]) if f in alive)[:n_pages]


def _columns(tables: dict[str, pa.Table]) -> tuple[dict[str, list], dict[str, str]]:
    """The columns of features.parquet but for its lists, and those of `_MORE`; and what they mean.

    localisation.parquet has one row per (feature, part): a feature gets the part that it finds best on train,
    and how well it does so on test. An unknown value is None.
    """
    table = tables["features"]
    columns = {f.name: table[f.name].to_pylist() for f in table.schema if not pa.types.is_list(f.type)}
    docs = documentation(table)
    for source, names in _MORE.items():
        if source in tables:
            rows = _row_of_each(tables[source])
            for name, column in names.items():
                columns[name] = [rows[f][column] if f in rows else None for f in columns["feature"]]
                docs[name] = documentation(tables[source])[column]
    return columns, docs


def _row_of_each(table: pa.Table) -> dict[int, dict]:
    """feature -> its row; of the parts of localisation.parquet that of the largest AUROC on train.

    Of pixel_maps.parquet it is the mean over the feature's qualified patches.
    """
    if table.schema.equals(pixel_maps.TABLE.schema):
        return pixel_maps.by_feature(table)
    if "part" not in table.column_names:
        return {row["feature"]: row for row in table.to_pylist()}
    found: dict[int, dict] = {}
    for row in table.to_pylist():
        feature, score = row["feature"], row["auroc_train"]
        if row["part"] == FOREGROUND or not is_known(score):
            continue
        if feature not in found or score > found[feature]["auroc_train"]:
            found[feature] = row
    return found


def _curve(path: Any) -> list[dict]:
    if not path.exists():
        return []
    try:
        return logs.read_metrics(path)
    except ValueError as error:
        logs.get_logger().warning("report: no learning curve, %s is damaged: %s", path, error)
        return []
