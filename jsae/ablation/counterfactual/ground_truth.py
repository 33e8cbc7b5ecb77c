"""Counterfactual pairs of a drawn study: what each dictionary's features carry of a part.

    tables, results = ground_truth.measure(study)

The same drawing without and with one part is shown to the network, so what the part does to the logits is
known, and features are asked how much of it they carry. Features are chosen on train indices and scored on
test indices. Everything is of one network: a claim about SAEs needs several (launch.seeds).
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation.counterfactual import choice, comparators, drawings, effects, response, scores, table
from jsae.runtime import mesh as meshes
from jsae.runtime import settings
from jsae.runtime.context import RunContext
from jsae.study import Study

M = (1, 4, 16, 32)  # features moved together
CHOICES = (scores.SINGLE, *choice.CRITERIA)
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
    n_combinations: int = 0,
    images: dict | None = None,
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
      n_combinations: if not 0, what stands in tables of its own as well (`jsae.experiments.seeds`): sets that
        grow by `choice.CRITERIA`, and on up to so many other aircraft for each pair the `combinations` share.
      images: drawings of the same data made before, of `drawings.draw`; new ones are added.
      keep: `passes.Passes` of a stage.
      context: shows progress and stops.

    Returns:
      tables: "counterfactual" and "counterfactual_response" by name.
      results: n_pairs (with an open gate), twin_accuracy (mean over all pairs), m, and for each dictionary
        share, leak, tracking, isolated, necessity, transfer (lists over m; of one for supervised),
        faithfulness {zero, mean, set_to} and response {z, sensitivity, specificity, balanced_accuracy} of
        the best feature; ceiling (list over m). With n_combinations m is repeated for each of CHOICES, named
        in `choice`, and each dictionary has the list `combinations`. Means over parts of their pairs' means;
        None: unknown.

    Raises:
      ValueError: nothing is drawn.
      preemption.Preempted: a stop was asked for.
    """
    make = _measure if keep is None else keep("counterfactual", _measure)
    context = context or RunContext()
    if dictionaries is None:
        dictionaries = comparators.of_study(study)
    sizes = n_train, n_test, n_candidates, batch_size, n_bootstrap, n_combinations
    rows, results = make(study, dictionaries, *sizes, images, context)
    return {layout.name: layout.of_rows(rows[layout.name]) for layout in TABLES}, results


def _measure(
    study,
    dictionaries,
    n_train,
    n_test,
    n_candidates,
    batch_size,
    n_bootstrap,
    n_combinations,
    images,
    context,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """(table name -> rows, results)."""
    draw = functools.partial(drawings.draw, study, batch_size=batch_size, images=images, context=context)
    seen = {"train": draw("train", n_train), "test": draw("test", n_test)}
    other = draw("test", n_test, n_combinations=n_combinations) if n_combinations else None
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
        is_grown = other is not None and name != "supervised"
        all_sets = _with_greedy(sets, chosen, seen["train"]) if is_grown else sets
        leaders = best[:, : response.N_RANKS]
        found.append(_scored(passes, twins, name, dictionary, chosen, all_sets, leaders, other))
        if name == "sae":
            by_chance = dataclasses.replace(sets, members=_matched(chosen, members, seed))
            arguments = "random_matched", dictionary, chosen, by_chance, best[:, :0], other
            found.append(_scored(passes, twins, *arguments))
    rows = {
        table.TABLE.name: [row for each in found for row in each.rows],
        response.TABLE.name: [row for each in found for row in each.responses],
    }
    results: dict[str, Any] = {each.name: each.results for each in found}
    accuracy = float(np.mean([gate.accuracy for gate in twins.gates]))
    counts: dict[str, Any] = {"n_pairs": int(twins.is_open.sum()), "twin_accuracy": accuracy, "m": list(M)}
    if other is not None:
        counts |= {"m": list(M) * len(CHOICES), "choice": np.repeat(CHOICES, len(M)).tolist()}
    return rows, _known(counts | results | {"ceiling": scores.ceilings(results, len(counts["m"]))})


def _with_greedy(sets: effects.Sets, chosen: choice.Chosen, train: drawings.Drawn) -> effects.Sets:
    """The sets, and behind them for each criterion of `choice.CRITERIA` as many that grow by it."""
    grown = [choice.greedy(chosen.effect, train, max(M), criterion) for criterion in choice.CRITERIA]
    members = [
        [*own, *(of_pairs[p][:m] for of_pairs in grown for m in M)] for p, own in enumerate(sets.members)
    ]
    choices = tuple(np.repeat(CHOICES, len(M)).tolist())
    return dataclasses.replace(sets, members=members, sizes=M * len(CHOICES), choices=choices)


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


def _scored(passes, twins, name, dictionary, chosen, sets, leaders, other=None) -> scores.Scored:
    """The sets of a dictionary moved in all test drawings, and in those of `other` aircraft."""
    before = chosen.before[:, sets.features]
    found = passes.score(dictionary, twins.drawn, sets, before, name)
    all_scores = scores.scored(twins, name, chosen, sets, leaders, found)
    if other is not None:
        members = [sets.members[twins.drawn.pairs.index(pair)] for pair in other.contrasts_of]
        moved = dataclasses.replace(sets, members=members)
        effect = passes.own(dictionary, other, moved, f"{name}, other aircraft")
        shares = scores.of_combinations(twins, other, effect)
        all_scores.results["combinations"] = metrics.mean_of_parts(shares, twins.parts).tolist()
    return all_scores
