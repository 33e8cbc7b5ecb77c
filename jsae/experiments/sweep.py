"""Several SAEs on one extraction: `config.sweep` names the settings to vary, the rest is `config.sae`.

    sweep/<digest>/       one SAE each, laid out as sae/, and splice.json: the classifier on what it makes
    sweep/table.parquet   one row per finished SAE of this extraction, in the order in which they were made;
                          every column is documented

Every SAE is a stage of its own, named by the digest of its config and of the extraction: a sweep that was
stopped goes on with the first one that is not finished, and another grid adds to what is there. All settings
are checked before the first one trains. They are trained one after the other: four of them in one vmapped
step took 0.8 to 1.1 times as long per SAE with relu_l1, and 2 to 2.6 times as long with topk (two CPU cores,
128 to 768 channels, 512 to 6,144 features).
"""

import copy
import itertools
import json
from typing import Any

import pyarrow as pa
from etils import epath

from jsae import classifier, sae
from jsae.ablation.splice import MeasureSplice
from jsae.activations import ActivationStore, run_pass
from jsae.classifier.forward import LogitsFromActs
from jsae.runtime import artifacts, logs, mesh, stages
from jsae.runtime.context import RunContext
from jsae.sae import run as sae_run
from jsae.sae import variants
from jsae.tables import Column, Table

FOLDER = "sweep"
SETTINGS = ("variant", "n_features", "k", "l1", "l0", "learning_rate", "seed")  # from the outer loop inwards
_OF_VARIANTS = ("k", "l1", "l0")  # those that stand in the section of a variant
_FLOAT = pa.float64()
TABLE = Table(
    "table",
    (
        Column("digest", pa.string(), "name of the SAE's folder"),
        Column("variant", pa.string(), "of jsae.sae.VARIANTS"),
        Column("n_features", pa.int64(), "number of features"),
        Column("k", pa.int64(), "null for variants without k"),
        Column("l1", _FLOAT, "coefficient of the L1 term; null for variants without it"),
        Column("l0_coefficient", _FLOAT, "coefficient of the L0 term; null for variants without it"),
        Column("learning_rate", _FLOAT, "peak rate"),
        Column("seed", pa.int64(), "of initialisation and order"),
        Column("others", pa.string(), "the other settings of config.sae and of its variant, as JSON"),
        Column("l0", _FLOAT, "mean number of features active on a test vector"),
        Column("fvu", _FLOAT, "on test"),
        Column("pca_fvu", _FLOAT, "on test, of PCA with round(l0) components"),
        Column("dead_fraction", _FLOAT, "features that never fire in one pass over train"),
        Column("accuracy_recovered", _FLOAT, "on test, the SAE spliced in; null without a classifier"),
        Column("ce_recovered", _FLOAT, "on test, the SAE spliced in; null without a classifier"),
        Column("seconds", _FLOAT, "of training, evaluating and exporting it"),
    ),
)


def run(config: Any, workdir: epath.PathLike, context: RunContext | None = None) -> None:
    """Train every SAE of the grid that is not there yet and add it to the table, after each of them.

    Raises:
      ValueError: an empty grid, an unknown setting, or one that makes no SAE; nothing has been trained then.
      stages.StageMissing: no finished activations.
    """
    context = context or RunContext()
    points = grid(config)
    upstream = stages.require(config, workdir, "activations")["digest"]
    folder = epath.Path(workdir) / FOLDER
    rows = {row["digest"]: row for row in load(workdir, upstream)}
    for i, point in enumerate(points):
        context.check()
        digest = stages.digest_of(stages.section(point, "sae"), upstream)
        context.log.info("sweep: SAE %d of %d, %s", i + 1, len(points), _describe(point))
        sae_run.run(point, workdir, context, where=folder / digest)
        spliced = _spliced(point, workdir, folder / digest, context)
        rows[digest] = _row(point, digest, stages.manifest_in(folder / digest) or {}, spliced)
        artifacts.write_table(folder / TABLE.file, TABLE.of_rows(rows.values()), {"upstream": upstream})


def load(workdir: epath.PathLike, upstream: str | None = None) -> list[dict]:
    """The rows of a workdir's table, of one extraction only if its digest is given; [] without a table."""
    path = epath.Path(workdir) / FOLDER / TABLE.file
    if not path.exists():
        return []
    table = artifacts.read_table(path)
    if upstream not in (None, artifacts.manifest_of(table).get("upstream")):
        logs.get_logger().warning(
            "sweep: the %d SAEs of %s belong to another extraction and are left out from now on",
            len(table),
            path,
        )
        return []
    return [dict.fromkeys(TABLE.names) | row for row in table.to_pylist()]


def markdown(rows: list[dict]) -> str:
    """The table without the columns that are empty, as markdown."""
    hidden = {"digest", "others", "seconds"}
    names = [n for n in TABLE.names if n not in hidden and any(row[n] is not None for row in rows)]
    lines = ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
    for row in rows:
        lines.append("| " + " | ".join(_text(row[name]) for name in names) + " |")
    return "\n".join(lines)


def _text(value) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def grid(config: Any) -> list[Any]:
    """The configs of a sweep: every combination of `config.sweep`'s lists, settings a variant lacks left out.

    "k", "l1" and "l0" stand for the setting of that name which the variant has. An empty list stands for the
    one value of `config.sae` (`config.seed`). Raises ValueError on a setting that is not in SETTINGS or that
    no variant of the sweep has, on values that make no SAE, and if nothing varies.
    """
    unknown = [name for name in config.sweep if name not in SETTINGS]
    if unknown:
        raise ValueError(f"config.sweep.{unknown[0]} cannot be varied; valid are {', '.join(SETTINGS)}")
    given = {name: tuple(config.sweep[name]) for name in config.sweep if len(config.sweep[name])}
    if not given:
        raise ValueError(f"config.sweep is empty: give a list for one of {', '.join(SETTINGS)}")
    _check_types("variant", given.get("variant", ()), config.sae.variant, "config.sae.variant")
    chosen = given.get("variant", (config.sae.variant,))
    for variant in chosen:
        variants.check_name(variant)
    for name in given:
        if not any(_has(variant, name) for variant in chosen):
            having = ", ".join(v for v in variants.VARIANTS if _has(v, name))
            raise ValueError(
                f"config.sweep.{name} is varied, but {', '.join(chosen)} has no {name}; {having} have"
            )
    points = {}
    for variant in chosen:
        names = [name for name in SETTINGS[1:] if name in given and _has(variant, name)]
        for name in names:
            _check_types(name, given[name], _value(config, variant, name), _path(variant, name))
        for values in itertools.product(*(given[name] for name in names)):
            point = copy.deepcopy(config)
            point.sae.variant = variant
            for name, value in zip(names, values, strict=True):
                _section(point, variant, name)[name] = value
            points.setdefault((variant, *values), point)
    for point in points.values():
        try:
            sae_run.check_config(point)
        except ValueError as error:
            raise ValueError(
                f"of {len(points)} SAEs of the sweep none is trained: {_describe(point)}: {error}"
            ) from error
    return list(points.values())


def _check_types(name: str, given: tuple, like, path: str) -> None:
    """Raise ValueError unless the values of a list are of the type of the config's value at `path`."""
    for value in given:
        if type(value) is not type(like) and not (isinstance(like, float) and type(value) is int):
            raise ValueError(
                f"config.sweep.{name}={given}: {value!r} is no {type(like).__name__}, as {path} is"
            )


def _has(variant: str, name: str) -> bool:
    """Whether a variant has the setting: all have the shared ones."""
    return name not in _OF_VARIANTS or name in variants.settings_of(variant)


def _path(variant: str, name: str) -> str:
    """Where the setting of a variant stands."""
    if name == "seed":
        return "config.seed"
    return f"config.sae.{variant}.{name}" if name in _OF_VARIANTS else f"config.sae.{name}"


def _section(config, variant: str, name: str):
    """The part of the config in which the setting of a variant stands."""
    if name == "seed":
        return config
    return config.sae[variant] if name in _OF_VARIANTS else config.sae


def _value(config, variant: str, name: str):
    """The setting of a variant; None if it has none of this name."""
    return _section(config, variant, name)[name] if _has(variant, name) else None


def _describe(point) -> str:
    variant = point.sae.variant
    names = [name for name in SETTINGS[1:] if _has(variant, name)]
    return ", ".join([variant, *(f"{name}={_value(point, variant, name)}" for name in names)])


def _spliced(config, workdir, folder, context: RunContext) -> dict:
    """accuracy_recovered and ce_recovered of the SAE in `folder`, measured once and kept in splice.json."""
    path = folder / "splice.json"
    if "classifier" in stages.skipped(config):
        return {}
    found = mesh.of_writer(lambda: artifacts.read_json(path) if path.exists() else None)
    if found is None:
        store = ActivationStore.open(stages.folder(config, workdir, "activations") / "test")
        params = classifier.load(stages.folder(config, workdir, "classifier"))
        reducers = {"splice": MeasureSplice(LogitsFromActs(params, store.site), store.mean)}
        found = run_pass(
            store,
            sae.load(folder),
            reducers,
            batch_size=config.ablation.batch_size,
            context=context,
            label="sweep: splice",
        )["splice"]
        artifacts.write_json(path, found)
    return found


def _row(point, digest: str, manifest: dict, spliced: dict) -> dict:
    results, variant = manifest["results"], point.sae.variant
    shared = stages.section(point, "sae")["sae"]
    others = {name: value for name, value in (shared | shared.pop(variant)).items() if name not in SETTINGS}
    return {
        "digest": digest,
        "variant": variant,
        "n_features": results["n_features"],
        "k": results["k"],
        "l1": _value(point, variant, "l1"),
        "l0_coefficient": _value(point, variant, "l0"),
        "learning_rate": point.sae.learning_rate,
        "seed": point.seed,
        "others": json.dumps(others),
        **{name: results[name] for name in ("l0", "fvu", "pca_fvu", "dead_fraction")},
        **{name: spliced.get(name) for name in ("accuracy_recovered", "ce_recovered")},
        "seconds": manifest["seconds"],
    }
