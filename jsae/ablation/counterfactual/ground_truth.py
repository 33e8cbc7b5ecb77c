"""Counterfactual pairs of a drawn study: what each dictionary's features carry of a part.

    tables, results = ground_truth.measure(study)

The same drawing without and with one part is shown to the network, so what the part does to the logits is
known, and features are asked how much of it they carry. Features are chosen on train indices and scored on
test indices. Everything is of one network: a claim about SAEs needs several (launch.seeds).
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jsae.ablation.counterfactual import choice, comparators, drawings, effects, response, scores, table
from jsae.runtime import mesh as meshes
from jsae.runtime import settings
from jsae.runtime.context import RunContext
from jsae.study import Study

M = (1, 4, 16, 32)  # features moved together
FAITH_M = 16  # of faithfulness
TABLES = (table.TABLE, response.TABLE)
RANGES = {
    "n_train": settings.COUNT,
    "n_test": settings.at_least(2, "of which the standard error is made"),
    "n_candidates": settings.at_least(max(M), "the largest set of features"),
}


def measure(
    study: Study,
    dictionaries: Mapping[str, Any] | None = None,
    *,
    n_train: int = 256,
    n_test: int = 256,
    n_candidates: int = 64,
    batch_size: int = 128,
    n_bootstrap: int = 1000,
    keep: Callable[[str, Callable], Callable] | None = None,
    context: RunContext | None = None,
) -> tuple[dict[str, pa.Table], dict[str, Any]]:
    """Measure dictionaries on the twins of a study; it needs a classifier, activations and an SAE, no tables.

    Args:
      study: of drawn data (`study.twins`).
      dictionaries: name -> encode, w_dec and n_features on the study's site, raw units; None: those of
        `comparators.of_study`. `random_matched` (of the one called "sae") and `supervised` are added.
      n_train, n_test: drawings of a pair that features are chosen on, and that they are scored on.
      n_candidates: features of a pair whose shares are computed one by one where no closed form is; >= 32.
      batch_size: drawings at once, a multiple of the mesh's data axis.
      n_bootstrap: resamples of drawings.
      keep: `passes.Passes` of a stage.
      context: shows progress and stops.

    Returns:
      tables: "counterfactual" and "counterfactual_response" by name.
      results: n_pairs (with an open gate), twin_accuracy (mean over all pairs), m, and for each dictionary
        share, leak, tracking, isolated, necessity, transfer (lists over m; of one for supervised),
        faithfulness {zero, mean, set_to} and response {z, sensitivity, specificity, balanced_accuracy} of
        the best feature; ceiling (list over m). Means over parts of their pairs' means; None: unknown.

    Raises:
      ValueError: nothing is drawn.
      preemption.Preempted: a stop was asked for.
    """
    make = _measure if keep is None else keep("counterfactual", _measure)
    context = context or RunContext()
    if dictionaries is None:
        dictionaries = comparators.of_study(study)
    rows, results = make(study, dictionaries, n_train, n_test, n_candidates, batch_size, n_bootstrap, context)
    return {layout.name: layout.of_rows(rows[layout.name]) for layout in TABLES}, results


def _measure(
    study, dictionaries, n_train, n_test, n_candidates, batch_size, n_bootstrap, context
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """(table name -> rows, results)."""
    seen = {
        split: drawings.draw(study, split, n, batch_size=batch_size, context=context)
        for split, n in (("train", n_train), ("test", n_test))
    }
    train, seed = study.activations("train"), study.config["seed"]
    twins = scores.Twins.of(seen["test"], train.class_names, n_bootstrap, seed)
    passes = effects.Passes(effects.rest_of(study), batch_size, study.mesh, context)
    found: list[scores.Scored] = []
    dictionaries = {**dictionaries, "supervised": comparators.supervised(seen["train"], train.mean)}
    for name, dictionary in dictionaries.items():
        if study.mesh is not None:
            dictionary = meshes.replicate(study.mesh, dictionary)  # what is dealt over it stays so
        chosen = choice.survey(passes, dictionary, seen["train"], n_candidates, name)
        best, sizes = chosen.best(max(M)), M
        if name == "supervised":
            best, sizes = np.arange(len(best))[:, None], (1,)  # pair p's direction is feature p
        members = [[features[:m] for m in sizes] for features in best]
        is_signed = isinstance(dictionary, comparators.Projections)
        sets = effects.Sets(members, sizes, is_signed, sizes.index(FAITH_M) if FAITH_M in sizes else 0)
        found.append(_scored(passes, twins, name, dictionary, chosen, sets, best[:, : response.N_RANKS]))
        if name == "sae":
            sets = dataclasses.replace(sets, members=_matched(chosen, members, seed))
            found.append(_scored(passes, twins, "random_matched", dictionary, chosen, sets, best[:, :0]))
    rows = {
        table.TABLE.name: [row for each in found for row in each.rows],
        response.TABLE.name: [row for each in found for row in each.responses],
    }
    results: dict[str, Any] = {each.name: each.results for each in found}
    accuracy = float(np.mean([gate.accuracy for gate in twins.gates]))
    counts = {"n_pairs": int(twins.is_open.sum()), "twin_accuracy": accuracy, "m": list(M)}
    return rows, _known(counts | results | {"ceiling": scores.ceilings(results, len(M))})


def _known(tree: Any) -> Any:
    """The same dicts, lists and numbers with NaN replaced by None."""
    if isinstance(tree, dict):
        return {key: _known(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_known(value) for value in tree]
    return None if isinstance(tree, float) and np.isnan(tree) else tree


def _matched(chosen: choice.Chosen, members: list[list[np.ndarray]], seed: int) -> list[list[np.ndarray]]:
    """For each set of each pair as many other features that change as much, at random."""
    rng = np.random.default_rng([seed, 0x726D])
    of_pairs = zip(chosen.size, members, strict=True)
    return [[choice.matched(size, each, rng) for each in of_pair] for size, of_pair in of_pairs]


def _scored(passes, twins, name, dictionary, chosen, sets, leaders) -> scores.Scored:
    """The sets of a dictionary moved in all test drawings."""
    before = chosen.before[:, sets.features]
    found = passes.score(dictionary, twins.drawn, sets, before, name)
    return scores.scored(twins, name, chosen, sets, leaders, found)
