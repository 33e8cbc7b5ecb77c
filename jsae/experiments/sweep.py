"""Several SAEs on one extraction: `config.sweep` names the settings to vary, the rest is `config.sae`.

    sweep/<digest>/       one SAE each, laid out as sae/, and splice.json: the classifier on what it makes
    sweep/table.parquet   one row a finished SAE of this extraction, in the order in which they were trained;
                          every column is documented

Every SAE is a stage of its own, named by the digest of its config and of the extraction: a sweep that was
stopped goes on with the first one that is not finished, and another grid adds to what is there. All settings
are checked before the first one trains. They are trained one after the other: four of them in one vmapped
step took 0.8 to 1.1 times as long an SAE with relu_l1, and 2 to 2.6 times as long with topk (two CPU cores,
128 to 768 channels, 512 to 6,144 features).
"""

import copy
import itertools
import json

import pyarrow as pa
from etils import epath

from jsae import classifier, sae
from jsae.ablation.splice import MeasureSplice
from jsae.activations import ActivationStore, run_pass
from jsae.classifier.forward import LogitsFromActs
from jsae.runtime import artifacts, logs, mesh, preemption, stages
from jsae.runtime.context import RunContext
from jsae.sae import run as sae_run
from jsae.sae import variants
from jsae.tables import Column, Table

FOLDER, FILE = "sweep", "table.parquet"
SETTINGS = ("variant", "n_features", "k", "l1", "l0", "learning_rate", "seed")  # from the outer loop inwards
TABLE = Table(
    "table",
    (
        Column("digest", pa.string(), "name of the SAE's folder"),
        Column("variant", pa.string(), "of jsae.sae.VARIANTS"),
        Column("n_features", pa.int64(), "F"),
        Column("k", pa.int64(), "null for variants without k"),
        Column("l1", pa.float64(), "coefficient of the L1 term; null for variants without it"),
        Column("l0_coefficient", pa.float64(), "coefficient of the L0 term; null for variants without it"),
        Column("learning_rate", pa.float64(), "peak rate"),
        Column("seed", pa.int64(), "of initialisation and order"),
        Column("others", pa.string(), "the settings of config.sae that are no column, as JSON"),
        Column("l0", pa.float64(), "mean number of features active on a test vector"),
        Column("fvu", pa.float64(), "on test"),
        Column("pca_fvu", pa.float64(), "on test, of PCA with round(l0) components"),
        Column("dead_fraction", pa.float64(), "features that never fire in one pass over train"),
        Column("accuracy_recovered", pa.float64(), "on test, the SAE spliced in; null without a classifier"),
        Column("ce_recovered", pa.float64(), "on test, the SAE spliced in; null without a classifier"),
        Column("seconds", pa.float64(), "of training, evaluating and exporting it"),
    ),
)


def run(config, workdir) -> None:
    """Train every SAE of the grid that is not there yet and add it to the table, after each of them.

    Raises:
      ValueError: an empty grid, an unknown setting, or one that makes no SAE; nothing has been trained then.
      stages.StageMissing: no finished activations.
    """
    points = grid(config)
    upstream = stages.require(config, workdir, "activations")["digest"]
    folder = epath.Path(workdir) / FOLDER
    rows = {row["digest"]: row for row in load(workdir, upstream)}
    for i, point in enumerate(points):
        preemption.check()
        digest = stages.digest_of(stages.section(point, "sae"), upstream)
        logs.get_logger().info("sweep: SAE %d of %d, %s", i + 1, len(points), _describe(point))
        sae_run.run(point, workdir, where=folder / digest)
        spliced = _spliced(point, workdir, folder / digest)
        rows[digest] = _row(point, digest, stages.manifest_in(folder / digest), spliced)
        table = TABLE.of_rows(rows.values())
        artifacts.write_table(folder / FILE, table, {"upstream": upstream})


def load(workdir, upstream: str | None = None) -> list[dict]:
    """The rows of a workdir's table, of one extraction only if its digest is given; [] without a table."""
    path = epath.Path(workdir) / FOLDER / FILE
    if not path.exists():
        return []
    table = artifacts.read_table(path)
    if upstream not in (None, artifacts.manifest_of(table).get("upstream")):
        logs.get_logger().warning(
            "sweep: the %d SAEs of %s belong to another extraction and are left out from now on",
            *(len(table), path),
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


def grid(config) -> list:
    """The configs of a sweep: every combination of `config.sweep`'s lists, settings a variant lacks left out.

    An empty list stands for the one value of `config.sae` (`config.seed`). Raises ValueError on a setting
    that is not in SETTINGS or that no variant of the sweep has, on values that make no SAE, and if nothing
    varies.
    """
    unknown = [name for name in config.sweep if name not in SETTINGS]
    if unknown:
        raise ValueError(f"config.sweep.{unknown[0]} cannot be varied; valid are {', '.join(SETTINGS)}")
    if not any(len(config.sweep[name]) for name in config.sweep):
        raise ValueError(f"config.sweep is empty: give a list for one of {', '.join(SETTINGS)}")
    own = {name: config.seed if name == "seed" else config.sae[name] for name in SETTINGS}
    values = {name: tuple(config.sweep.get(name, ())) or (own[name],) for name in SETTINGS}
    for name, given in values.items():
        for value in given:
            if type(value) is not type(own[name]) and not (
                isinstance(own[name], float) and type(value) is int
            ):
                what, where = (
                    type(own[name]).__name__,
                    "config.seed" if name == "seed" else f"config.sae.{name}",
                )
                raise ValueError(f"config.sweep.{name}={given}: {value!r} is no {what}, as {where} is")
    for variant in values["variant"]:
        variants.check_name(variant)
    for name in SETTINGS:
        if config.sweep.get(name) and not any(_reads(variant, name) for variant in values["variant"]):
            having = ", ".join(v for v in variants.VARIANTS if _reads(v, name))
            raise ValueError(
                f"config.sweep.{name} is varied, but {', '.join(values['variant'])} has no {name}; "
                f"{having} have"
            )
    points = {}
    for combination in itertools.product(*values.values()):
        chosen = dict(zip(SETTINGS, combination, strict=True))
        kept = {name: value for name, value in chosen.items() if _reads(chosen["variant"], name)}
        point = copy.deepcopy(config)
        for name, value in kept.items():
            if name == "seed":
                point.seed = value
            else:
                point.sae[name] = value
        points.setdefault(tuple(sorted(kept.items())), point)
    for point in points.values():
        try:
            sae_run.check_config(point)
        except ValueError as error:
            raise ValueError(
                f"of {len(points)} SAEs of the sweep none is trained: {_describe(point)}: {error}"
            ) from error
    return list(points.values())


def _reads(variant: str, setting: str) -> bool:
    """Whether a variant has the setting at all."""
    kind = variants.VARIANTS[variant]
    return {"k": kind.has_k, "l1": kind.coefficient == "l1", "l0": kind.coefficient == "l0"}.get(
        setting, True
    )


def _describe(point) -> str:
    settings = [name for name in SETTINGS[1:-1] if _reads(point.sae.variant, name)]
    return ", ".join(
        [point.sae.variant, *(f"{name}={point.sae[name]}" for name in settings), f"seed={point.seed}"]
    )


def _spliced(config, workdir, folder) -> dict:
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
            context=RunContext(),
            label="sweep: splice",
        )["splice"]
        artifacts.write_json(path, found)
    return found


def _row(point, digest: str, manifest: dict, spliced: dict) -> dict:
    results, variant = manifest["results"], point.sae.variant
    of_sae = stages.section(point, "sae")["sae"]
    return {
        "digest": digest,
        "variant": variant,
        "n_features": results["n_features"],
        "k": results["k"],
        "l1": point.sae.l1 if _reads(variant, "l1") else None,
        "l0_coefficient": point.sae.l0 if _reads(variant, "l0") else None,
        "learning_rate": point.sae.learning_rate,
        "seed": point.seed,
        "others": json.dumps({name: value for name, value in of_sae.items() if name not in SETTINGS}),
        **{name: results[name] for name in ("l0", "fvu", "pca_fvu", "dead_fraction")},
        **{name: spliced.get(name) for name in ("accuracy_recovered", "ce_recovered")},
        "seconds": manifest["seconds"],
    }
