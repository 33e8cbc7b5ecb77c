"""Reads what the stages left in a workdir into one `Study`, the only thing the pages are made from.

A stage that was skipped or has not run leaves its part empty; the pages then say so. Only the rows of the
features that get a page are turned into Python objects, so a dictionary of many thousand features with
a hundred classes stays an Arrow table.
"""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jsae.report.formatting import is_known
from jsae.report.summary import complete_manifests
from jsae.runtime import artifacts, logs, stages

_PER_CLASS = ("class_mean", "class_max")


@dataclasses.dataclass(frozen=True)
class Study:
    """The tables of a study as plain data.

    Attributes:
      facts: data_kind, arch, site, grid (H, W) or None, image_px or None, n_test, n_skipped, class_names
        (may be empty), class_sizes (test images by class, [L], or None).
      summary: content of summary.json.
      costs: a dict a stage: stage, done, seconds, compile_seconds, device.
      curves: rows of metrics.jsonl of "classifier" and "sae".
      splice: the ablation stage's splice results, or None.
      features: columns of features.parquet (all F features) without the per-class lists, or {}.
      chosen: features that get a page, in the order of the pages.
      class_means: chosen feature -> mean pooled activation by class, float [L].
      patches: chosen feature -> rows of top_patches.parquet by rank.
      feature_space, input_space: chosen feature -> rows of the ablation tables.
      ablated: all features of feature_space.parquet or input_space.parquet.
      agreement: rows of agreement.parquet.
    """

    facts: dict
    summary: dict
    costs: list[dict]
    curves: dict[str, list[dict]]
    splice: dict | None
    features: dict[str, list]
    chosen: tuple[int, ...]
    class_means: dict[int, np.ndarray]
    patches: dict[int, list[dict]]
    feature_space: dict[int, list[dict]]
    input_space: dict[int, list[dict]]
    ablated: frozenset[int]
    agreement: list[dict]

    def feature(self, feature: int) -> dict:
        """The row of features.parquet of one feature."""
        row = self.features["feature"].index(feature)
        return {name: values[row] for name, values in self.features.items()}

    def effect(self, feature: int, scope: str, target: str, measure: str) -> dict | None:
        """One row of feature_space.parquet, None if the feature was not ablated."""
        wanted = (scope, target, measure)
        for row in self.feature_space.get(feature, []):
            if (row["scope"], row["target"], row["measure"]) == wanted:
                return row
        return None


def read_study(config, workdir, summary: dict, *, n_pages: int, facts: dict) -> Study:
    """Read the tables of all complete stages.

    Args:
      config, workdir: as for every stage.
      summary: content of summary.json.
      n_pages: how many features get a page; the ablated ones come first.
      facts: what is known of data and site, see `Study`.
    """
    manifests = complete_manifests(config, workdir)

    def table(stage: str, file: str) -> pa.Table | None:
        path = stages.folder(config, workdir, stage) / file
        return artifacts.read_table(path) if manifests[stage] and path.exists() else None

    features = table("analysis", "features.parquet")
    patches = table("analysis", "top_patches.parquet")
    feature_space = table("ablation", "feature_space.parquet")
    input_space = table("ablation", "input_space.parquet")
    agreement = table("ablation", "agreement.parquet")
    columns = {}
    if features is not None:
        columns = features.drop_columns([c for c in _PER_CLASS if c in features.column_names]).to_pydict()
    ablated = _distinct(feature_space) or _distinct(input_space)
    chosen = choose(columns, ablated, n_pages)
    return Study(
        facts=facts,
        summary=summary,
        costs=[_cost(name, manifest) for name, manifest in manifests.items() if name != "report"],
        curves={
            stage: _curve(stages.folder(config, workdir, stage) / "metrics.jsonl")
            for stage in ("classifier", "sae")
        },
        splice=((manifests["ablation"] or {}).get("results") or {}).get("splice"),
        features=columns,
        chosen=chosen,
        class_means=_class_means(features, chosen),
        patches={k: sorted(v, key=lambda row: row["rank"]) for k, v in _by_feature(patches, chosen).items()},
        feature_space=_by_feature(feature_space, chosen),
        input_space=_by_feature(input_space, chosen),
        ablated=frozenset(ablated),
        agreement=[] if agreement is None else agreement.to_pylist(),
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
    return tuple((first + [f for f in order if f in alive and f not in set(first)])[:n_pages])


def _distinct(table: pa.Table | None) -> list[int]:
    return [] if table is None else pc.unique(table["feature"]).to_pylist()


def _by_feature(table: pa.Table | None, chosen) -> dict[int, list[dict]]:
    if table is None:
        return {}
    wanted = pa.array(chosen, table.schema.field("feature").type)
    rows: dict[int, list[dict]] = {}
    for row in table.filter(pc.is_in(table["feature"], wanted)).to_pylist():
        rows.setdefault(row["feature"], []).append(row)
    return rows


def _class_means(features: pa.Table | None, chosen) -> dict[int, np.ndarray]:
    if features is None or "class_mean" not in features.column_names:
        return {}
    rows = _by_feature(features.select(["feature", "class_mean"]), chosen)
    return {f: np.asarray(row["class_mean"], float) for f, (row,) in rows.items() if row["class_mean"]}


def _cost(name: str, manifest: dict | None) -> dict:
    manifest = manifest or {}
    device = manifest.get("device") or {}
    return {
        "stage": name,
        "done": bool(manifest),
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
