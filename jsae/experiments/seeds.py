"""seeds/seeds.parquet: the counterfactual pairs over several classifiers and SAEs of a drawn study.

    seeds/classifier-S/        a classifier of seed S and its activations, laid out as a study
    seeds/classifier-S/sae-T   an SAE of seed T on them, and frozen_decoder-T whose decoder is not trained
    seeds/untrained/           the same of a classifier as it was initialised
    seeds/seeds.parquet        one row per classifier, SAE, dictionary, choice and number of features
    seeds/results.json         what summary.json says of them

The drawn set is the same for all. Intervals are Student's t over classifiers, each of them the mean over its
SAEs: another SAE is no other network, and images, features and pairs of one network are never taken for
independent cases. Started again it goes on with what is missing.
"""

import copy
import itertools
from typing import Any

import numpy as np
import pyarrow as pa
import scipy
from etils import epath

from jsae import metrics
from jsae.ablation.counterfactual import comparators, ground_truth, scores
from jsae.activations import run as activations_run
from jsae.classifier import run as classifier_run
from jsae.experiments.baselines import untrained_config
from jsae.runtime import artifacts, settings, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.sae import load as load_sae
from jsae.sae import run as sae_run
from jsae.study import Study
from jsae.tables import Column, Table

FOLDER = "seeds"
UNTRAINED = "untrained"
NULLS = ("frozen_decoder", "rotation")
SCORES = ("share", "leak", "tracking", "isolated")
SINGLE = scores.SINGLE
N_COMBINATIONS = 2  # other aircraft without and with the part of a pair
RANGES = {"classifiers": settings.at_least(2, "which a spread needs"), "saes": settings.COUNT}
_SAE_STEP = 1000  # between the seeds of the SAEs of one classifier
_MEAN = "mean over parts, each the mean over its pairs; null where no pair's twins are told apart"
TABLE = Table(
    "seeds",
    (
        Column("classifier", pa.string(), f"seed of the classifier, or {UNTRAINED}"),
        Column("sae", pa.int64(), "seed of the SAE and of the frozen decoder"),
        Column("digest", pa.string(), "what the SAE was made of"),
        Column("accuracy", pa.float64(), "of the classifier on test"),
        Column("fvu", pa.float64(), "of the SAE on test"),
        Column("n_pairs", pa.int32(), "pairs of twins that the classifier tells apart"),
        Column("dictionary", pa.string(), "which one (jsae.ablation.counterfactual.comparators)"),
        Column(
            "choice",
            pa.string(),
            "how they are chosen on train drawings, by pair: single, those of the largest single share; "
            "tracking and isolated, one after the other by what each adds to that score of the set",
        ),
        Column("m", pa.int32(), "how many features; where none adds to a set, it stays smaller"),
        Column("share", pa.float64(), f"share of the twins' change of logits that they carry, {_MEAN}"),
        Column("leak", pa.float64(), f"mean |share| of the same features on other parts, {_MEAN}"),
        Column("tracking", pa.float64(), f"how well their effects follow the drawings, {_MEAN}"),
        Column("isolated", pa.float64(), f"1 - |1 - share| - leak, {_MEAN}"),
        Column(
            "combinations",
            pa.float64(),
            f"share of the same features on up to {N_COMBINATIONS} aircraft for each pair that are no class, "
            f"without and with its part, read by its logits; {_MEAN}",
        ),
    ),
)


def run(
    config: Any, workdir: Any, n_classifiers: int, n_saes: int, context: RunContext | None = None
) -> None:
    """Train and measure what is missing; the table is written again after each SAE.

    Raises ValueError unless the study is drawn and there are at least two classifiers and one SAE.
    """
    context, folder = context or RunContext(), epath.Path(workdir) / FOLDER
    if config.data.kind != "synthetic_aircraft":
        raise ValueError(f"counterfactual pairs are drawn, and config.data.kind is {config.data.kind!r}")
    settings.check("--", {"classifiers": n_classifiers, "saes": n_saes}, RANGES)
    seeds = range(config.seed, config.seed + n_classifiers)
    points = [(str(seed), seed + _SAE_STEP * j) for seed, j in itertools.product(seeds, range(n_saes))]
    rows, images = meshes.of_writer(lambda: load(workdir)), {}
    for classifier, sae in [*points, (UNTRAINED, config.seed)]:
        context.check()
        known = [row for row in rows if (row["classifier"], row["sae"]) == (classifier, sae)]
        found = _measured(config, folder, classifier, sae, known, images, context)
        rows = [row for row in rows if row not in known] + found
        artifacts.write_table(folder / TABLE.file, TABLE.of_rows(rows), {})
    artifacts.write_json(folder / "results.json", results(rows))
    meshes.wait_for_all("seeds: written")  # the table is read next


def _measured(
    config: Any,
    folder: epath.Path,
    classifier: str,
    seed: int,
    known: list[dict],
    images: dict,
    context: RunContext,
) -> list[dict]:
    """The rows of one SAE: those known if they are of the same SAE, else from measuring it.

    `images` holds the drawings, which are the same for all (28 kB each at 96 px, about 10,500 of the demo).
    """
    trained = classifier != UNTRAINED
    point = copy.deepcopy(config) if trained else untrained_config(config)
    point.seed = int(classifier) if trained else config.seed
    place = folder / (f"classifier-{classifier}" if trained else UNTRAINED)
    for stage in (classifier_run, activations_run):
        stage.run(point, place, context)
    point.seed = seed
    places = {name: place / f"{name}-{seed}" for name in ("sae", "frozen_decoder")}
    for name, where in places.items():
        point.sae.frozen = "decoder" if name == "frozen_decoder" else config.sae.frozen
        sae_run.run(point, place, context, where=where)
    manifest = artifacts.read_json(places["sae"] / "manifest.json")
    if known and known[0]["digest"] == manifest["digest"]:
        return known
    context.log.info("seeds: counterfactual pairs of classifier %s, SAE %d", classifier, seed)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    study = Study(place, stages.plain(point), mesh, sae_folder=places["sae"])
    compared = comparators.of_study(study) | {"frozen_decoder": load_sae(places["frozen_decoder"], mesh)}
    c = config.ablation
    _, found = ground_truth.measure(
        study,
        compared,
        n_bootstrap=2,
        n_combinations=N_COMBINATIONS,
        images=images,
        batch_size=c.batch_size,
        context=context,
        **c.counterfactual,
    )
    shared = {
        "classifier": classifier,
        "sae": seed,
        "digest": manifest["digest"],
        "accuracy": stages.results(point, place, "classifier")["test_accuracy"],
        "fvu": manifest["results"]["fvu"],
        "n_pairs": found["n_pairs"],
    }
    return [
        shared
        | {"dictionary": name, "choice": found["choice"][i], "m": found["m"][i]}
        | {score: found[name][score][i] for score in (*SCORES, "combinations")}
        for name in (*compared, "random_matched", "supervised")
        for i in range(len(found[name]["share"]))
    ]


def load(workdir: Any) -> list[dict]:
    """The rows of a workdir's table; [] without one, or with one that lacks a column of today."""
    path = epath.Path(workdir) / FOLDER / TABLE.file
    table = artifacts.read_table(path) if path.exists() else None
    return table.to_pylist() if table is not None and table.column_names == TABLE.names else []


def by_classifier(rows: list[dict], dictionary: str, m: int, score: str, choice: str = SINGLE) -> np.ndarray:
    """A score of each trained classifier, the mean over its SAEs; NaN where one of them has none."""
    found: dict[str, list[float]] = {}
    for row in rows:
        asked = (row["dictionary"], row["choice"], row["m"]) == (dictionary, choice, m)
        if asked and row["classifier"] != UNTRAINED:
            found.setdefault(row["classifier"], []).append(np.nan if row[score] is None else row[score])
    return np.array([np.mean(values) for values in found.values()])


def spread(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over classifiers [n] with its 95% t interval; NaN where one is unknown or n is 1."""
    mean = values.mean() if len(values) else np.nan
    low, high = metrics.t_interval(len(values), mean, np.square(values - mean).sum())
    return float(mean), float(low), float(high)


def results(rows: list[dict]) -> dict[str, Any]:
    """What summary.json says: counts, and of m = 4 `isolated` with its spread and the test of both nulls.

    `p_holm` are two-sided paired t tests over classifiers of "the SAE's isolated equals the null's", with
    Holm's correction over the two nulls.
    """
    trained = [row for row in rows if row["classifier"] != UNTRAINED]
    classifiers = {row["classifier"] for row in trained}
    isolated = {name: by_classifier(rows, name, 4, "isolated") for name in ("sae", *NULLS)}
    p = [float(scipy.stats.ttest_rel(isolated["sae"], isolated[null]).pvalue) for null in NULLS]
    return {
        "n_classifiers": len(classifiers),
        "n_saes": len({(row["classifier"], row["sae"]) for row in trained}) // max(len(classifiers), 1),
        "isolated_m4": {name: _known(spread(values)) for name, values in isolated.items()},
        "above_null_m4": {null: _known(spread(isolated["sae"] - isolated[null])) for null in NULLS},
        "p_holm": dict(zip(NULLS, _known(metrics.holm(p)), strict=True)),
    }


def _known(values: Any) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def markdown(rows: list[dict]) -> str:
    """One line per dictionary and m, then a table for each other choice, then one of other aircraft.

    Each number is the mean over classifiers with its t interval.
    """
    choices = dict.fromkeys(row["choice"] for row in rows)
    tables = [_lines(rows, choice, SCORES) for choice in choices]
    return "\n\n".join("\n".join(lines) for lines in [*tables, _lines(rows, SINGLE, ("combinations",))])


def _lines(rows: list[dict], choice: str, shown: tuple[str, ...]) -> list[str]:
    """The lines of one table."""
    lines = [f"| {choice} | m | " + " | ".join(shown) + " |", "|---" * (2 + len(shown)) + "|"]
    of_choice = [row for row in rows if row["choice"] == choice]
    for name, m in dict.fromkeys((row["dictionary"], row["m"]) for row in of_choice):
        cells = [_text(spread(by_classifier(rows, name, m, score, choice))) for score in shown]
        lines.append(f"| {name} | {m} | " + " | ".join(cells) + " |")
    return lines


def _text(interval: tuple[float, float, float]) -> str:
    mean, low, high = interval
    return "–" if not np.isfinite(mean) else f"{mean:.2f} [{low:.2f}, {high:.2f}]"
