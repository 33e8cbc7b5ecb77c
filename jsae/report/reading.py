"""Reads what the stages left in a workdir into one `Study`, the only thing the pages are made from.

A stage that was skipped or has not run leaves its part empty; the pages then say so. Tables stay in Arrow
form: the rows of a feature become Python objects when its page is made, and are dropped with it.
"""

import dataclasses
import functools

import numpy as np
import pyarrow as pa
from etils import epath

from jsae.report import joined
from jsae.report.formatting import is_known
from jsae.report.summary import complete_manifests
from jsae.report.survey import Survey
from jsae.runtime import artifacts, logs, stages

_LISTS = ("class_mean", "class_max")
# stage -> its tables; those of no feature are shown as a whole.
_TABLES = {
    "classifier": ("per_class", "confusion", "calibration"),
    "analysis": (
        *("features", "top_patches", "nearest", "localisation", "receptive", "parts", "monosemanticity"),
    ),
    "ablation": (
        *("feature_space", "input_space", "agreement", "atlas", "atlas_classes", "cumulative"),
        *("sigma_sweep", "baselines", "known_answer"),
    ),
}


class ByFeature:
    """The rows of an Arrow table by their column "feature", made into dicts when asked for."""

    def __init__(self, table: pa.Table | None):
        self._table, self._spans = table, {}
        if table is None or "feature" not in table.column_names or not len(table):
            return
        features = table["feature"].to_numpy()
        order = np.argsort(features, kind="stable")
        self._table = table.take(pa.array(order))
        found, first, count = np.unique(features[order], return_index=True, return_counts=True)
        self._spans = {int(f): (int(i), int(n)) for f, i, n in zip(found, first, count, strict=True)}
        self._order = [int(f) for f in dict.fromkeys(features.tolist())]

    @property
    def features(self) -> list[int]:
        """The features that have rows, in the order of the table."""
        return self._order if self._spans else []

    def rows(self, feature: int) -> list[dict]:
        """The feature's rows in the order of the table, [] if it has none."""
        if feature not in self._spans:
            return []
        return self._table.slice(*self._spans[feature]).to_pylist()


@dataclasses.dataclass(frozen=True)
class Study:
    """The tables of a study.

    Attributes:
      facts: data_kind, val_in_train (trainval), arch, site, grid (H, W) or None, image_px or None, n_test,
        n_skipped, class_names (may be empty), class_sizes (test images by class, [L], or None).
      summary: content of summary.json.
      results: stage -> what it passed to `finish`; {} for a stage that is not complete.
      costs: a dict a stage: stage, seconds, compile_seconds, device, versions, git_revision; None or {}
        where it has not run.
      curves: rows of metrics.jsonl of "classifier" and "sae".
      tables: name -> Arrow table of those that exist.
      by: name -> ByFeature of every table with a column feature, empty where the table does not exist.
      features: columns of features.parquet (all F features) without the per-class lists, or {}.
      chosen: features that get a page, in the order of the pages.
      survey: what was measured for the pictures, see `jsae.report.survey`.
      twin: feature -> (feature of another SAE, cosine of the decoder rows), {} without another SAE.
    """

    facts: dict
    summary: dict
    results: dict[str, dict]
    costs: list[dict]
    curves: dict[str, list[dict]]
    tables: dict[str, pa.Table]
    by: dict[str, ByFeature]
    features: dict[str, list]
    chosen: tuple[int, ...]
    survey: Survey = dataclasses.field(default_factory=Survey)
    twin: dict[int, tuple[int, float]] = dataclasses.field(default_factory=dict)

    def feature(self, feature: int) -> dict:
        """The row of features.parquet of one feature."""
        row = self._row_of[feature]
        return {name: values[row] for name, values in self.features.items()}

    def rows(self, name: str, feature: int) -> list[dict]:
        """The rows of table `name` of one feature, [] where there are none."""
        return self.by[name].rows(feature)

    def patches(self, feature: int) -> list[dict]:
        """The top patches of a feature by rank."""
        return sorted(self.rows("top_patches", feature), key=lambda row: row["rank"])

    def effect(self, feature: int, scope: str, target: str, measure: str) -> dict | None:
        """One row of feature_space.parquet, None if the feature was not ablated."""
        wanted = (scope, target, measure)
        for row in self.rows("feature_space", feature):
            if (row["scope"], row["target"], row["measure"]) == wanted:
                return row
        return None

    def class_means(self, feature: int) -> np.ndarray | None:
        """Mean pooled activation by class, float [L]; None where no class is known."""
        table = self.tables.get("features")
        if table is None or "class_mean" not in table.column_names:
            return None
        means = table["class_mean"][self._row_of[feature]].as_py()
        return np.asarray(means, float) if means else None

    @property
    def ablated(self) -> list[int]:
        """The features of feature_space.parquet, or of input_space.parquet where that is all there is."""
        return self.by["feature_space"].features or self.by["input_space"].features

    @functools.cached_property
    def _row_of(self) -> dict[int, int]:
        return {feature: i for i, feature in enumerate(self.features["feature"])}


def read_study(config, workdir, summary: dict, *, n_pages: int, facts: dict) -> Study:
    """Read the tables of all complete stages.

    Args:
      config, workdir: as for every stage.
      summary: content of summary.json.
      n_pages: how many features get a page; the ablated ones come first.
      facts: what is known of data and site, see `Study`.
    """
    manifests = complete_manifests(config, workdir)
    tables = {}
    for stage, names in _TABLES.items():
        for name in names:
            path = stages.folder(config, workdir, stage) / f"{name}.parquet"
            if manifests[stage] and path.exists():
                tables[name] = artifacts.read_table(path)
    swept = epath.Path(workdir) / "sweep" / "table.parquet"
    if swept.exists():
        tables["sweep"] = artifacts.read_table(swept)
    by = {name: ByFeature(tables.get(name)) for names in _TABLES.values() for name in names}
    columns = {}
    if "features" in tables:
        table = tables["features"]
        columns = table.drop_columns([c for c in _LISTS if c in table.column_names]).to_pydict()
        for name, values in joined.more_columns(tables, columns["feature"]).items():
            columns.setdefault(name, values)
    ablated = by["feature_space"].features or by["input_space"].features
    return Study(
        facts=facts,
        summary=summary,
        results={name: (manifest or {}).get("results") or {} for name, manifest in manifests.items()},
        costs=[_cost(name, manifest) for name, manifest in manifests.items() if name != "report"],
        curves={
            stage: _curve(stages.folder(config, workdir, stage) / "metrics.jsonl")
            for stage in ("classifier", "sae")
        },
        tables=tables,
        by=by,
        features=columns,
        chosen=choose(columns, ablated, n_pages),
    )


def choose(columns: dict, ablated: list[int], n_pages: int) -> tuple[int, ...]:
    """The features that get a page: ablated ones first, then class-selective, then by purity16.

    Features that never fire on train are left out: there is nothing to see.
    """
    if not columns:
        return ()

    def rank(i: int) -> tuple:
        purity, auroc = columns["purity16"][i], columns["auroc"][i]
        return (
            not columns["class_selective"][i],
            not columns["eligible"][i],
            -(purity if is_known(purity) else -1.0),
            -(auroc if is_known(auroc) else -1.0),
            columns["feature"][i],
        )

    alive = {f for f, a in zip(columns["feature"], columns["alive"], strict=True) if a}
    order = [columns["feature"][i] for i in sorted(range(len(columns["feature"])), key=rank)]
    first = [f for f in ablated if f in alive]
    taken = set(first)
    return tuple((first + [f for f in order if f in alive and f not in taken])[:n_pages])


def _cost(name: str, manifest: dict | None) -> dict:
    manifest = manifest or {}
    device = manifest.get("device") or {}
    return {
        "stage": name,
        "seconds": manifest.get("seconds"),
        "compile_seconds": manifest.get("compile_seconds"),
        "device": f"{device['count']} × {device['kind']}" if device.get("kind") else None,
        "versions": manifest.get("versions") or {},
        "git_revision": manifest.get("git_revision"),
    }


def _curve(path) -> list[dict]:
    if not path.exists():
        return []
    try:
        return logs.read_metrics(path)
    except ValueError as error:
        logs.get_logger().warning("report: no learning curve, %s is damaged: %s", path, error)
        return []
