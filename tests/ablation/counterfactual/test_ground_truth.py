"""Choosing on train, scoring on test, nulls, the tables, and the comparators."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from jsae import classifier, metrics
from jsae.ablation.counterfactual import choice, comparators, drawings, effects, ground_truth, scores
from jsae.ablation.counterfactual.drawings import Drawn
from jsae.data import augment
from jsae.data.twins import Twins
from jsae.runtime import passes as kept
from jsae.runtime import stages
from jsae.runtime.context import RunContext
from tests.ablation.counterfactual import toy
from tests.ablation.toy import make_sae
from tests.analysis.toy import Store

S, N_VARIANTS, C = 32, 16, 8
NAMES = [f"class {i}" for i in range(8)]


def measured(dictionary, train, test, head, m=(1, 2), leaders=1):
    """What `ground_truth` does with one dictionary, for sizes that a toy has."""
    twins = scores.Twins.of(test, NAMES, 200, 0)
    passes = effects.Passes(toy.rest(head), batch_size=16)
    chosen = choice.survey(passes, dictionary, train, 64, "toy")
    best = chosen.best(max(m))
    is_signed = isinstance(dictionary, comparators.Projections)
    sets = effects.Sets([[features[:k] for k in m] for features in best], m, is_signed, len(m) - 1)
    return ground_truth._scored(passes, twins, "toy", dictionary, chosen, sets, best[:, :leaders]), chosen


def test_a_dictionary_that_holds_the_directions_carries_all_of_them_and_nothing_else():
    head = toy.head()
    train, test = toy.drawn(head, "train", seed=1), toy.drawn(head)
    found, chosen = measured(toy.true_dictionary(), train, test, head)
    assert chosen.best(1)[:, 0].tolist() == [0, 0, 1, 2]
    for row in found.rows:
        assert row["gate"] and row["twin_accuracy"] == 1
        assert row["share"] == pytest.approx(1, abs=1e-5) and row["necessity"] == pytest.approx(1, abs=1e-5)
        assert row["tracking"] == pytest.approx(1, abs=1e-4)
        assert row["share_low"] <= row["share"] + 1e-6 and row["share_high"] >= row["share"] - 1e-6
        if row["m"] == 1:
            assert row["leak"] == pytest.approx(0, abs=1e-5)
            assert row["isolated"] == pytest.approx(1, abs=1e-4)
        if row["part"] == "gear":
            assert row["transfer"] == pytest.approx(1, abs=1e-5)
        else:
            assert np.isnan(row["transfer"])  # the part has one pair
    assert found.results["share"] == pytest.approx([1, 1], abs=1e-5)
    assert found.results["leak"][1] > 0.1  # the second feature is another part's
    assert found.results["faithfulness"]["set_to"] == pytest.approx(1, abs=1e-4)
    assert np.isnan(found.results["faithfulness"]["zero"])  # 0 is nothing special where features have signs
    assert found.results["response"]["balanced_accuracy"] > 0.9


def test_the_scores_are_those_of_loops():
    """share, leak, isolated and transfer of an SAE, from the definitions."""
    head = toy.head()
    train, test, dictionary = toy.drawn(head, "train", seed=1), toy.drawn(head, weak=(2,)), make_sae()
    dictionary = dataclasses.replace(dictionary, threshold=0.1)
    found, chosen = measured(dictionary, train, test, head)
    w, kernel = np.asarray(dictionary.w_dec, np.float64), np.asarray(head.kernel, np.float64)

    def share_of(features, pair):
        a0, a1 = (np.float64(seen.acts) for seen in test.of(pair))
        f0, f1 = (np.asarray(dictionary.encode(jnp.float32(a)), np.float64) for a in (a0, a1))
        c = kernel[:, pair.with_part] - kernel[:, pair.without]
        carried = total = 0.0
        for i in range(test.n):
            carried += sum(((f1 - f0)[i, ..., j].mean() * w[j]) @ c for j in features)
            total += (a1 - a0)[i].mean((0, 1)) @ c
        return carried / total

    weak = toy.PAIRS[2]  # its gate is closed: null, and it counts in nobody's leak
    by_hand = {}
    for p, pair in enumerate(toy.PAIRS):
        for m in (1, 2):
            features = chosen.best(m)[p]
            others = [q for q in toy.PAIRS if q.part != pair.part and q != weak]
            leak = np.mean([abs(share_of(features, q)) for q in others])
            same = [share_of(features, q) for q in toy.PAIRS if q.part == pair.part and q != pair]
            transfer = np.mean(same) if same else np.nan
            share = share_of(features, pair)
            by_hand[pair, m] = (share, leak, 1 - abs(1 - share) - leak, transfer)
    for row, (pair, m) in zip(found.rows, by_hand, strict=True):
        names = ("share", "leak", "isolated", "transfer")
        values = [row[name] for name in names]
        assert (row["part"], row["m"], row["with_part"]) == (pair.part, m, NAMES[pair.with_part])
        if pair == weak:
            assert not row["gate"] and np.isnan([*values, row["necessity"], row["faithfulness_set_to"]]).all()
        else:
            np.testing.assert_allclose(values, by_hand[pair, m], atol=2e-4)  # float32 logits, subtracted
    shares = [by_hand[pair, 1][0] for pair in toy.PAIRS]
    assert found.results["share"][0] == pytest.approx(np.mean([np.mean(shares[:2]), shares[3]]), abs=2e-4)
    assert all(np.isnan(row["z"]) == (row["part"] == weak.part) for row in found.responses)


def test_features_are_chosen_on_train():
    """A feature that carries the part in test drawings only is not among them."""
    head, rows = toy.head(), toy.directions()
    train, test = toy.drawn(head, "train", seed=1), toy.drawn(head, seed=2)
    other = np.linalg.qr(np.concatenate([rows, np.eye(toy.N_CHANNELS)]).T)[0].T[3].astype(np.float32)
    basis = np.float32(np.stack([0.8 * rows[0] + 0.6 * other, 0.6 * rows[0] - 0.8 * other]))
    dictionary = comparators.Projections(basis, np.zeros(toy.N_CHANNELS, np.float32))
    moved = {  # in test the part comes with something else, which the head does not read
        label: seen._replace(acts=seen.acts - 2 * other) if label in (1, 3) else seen
        for label, seen in test.classes.items()
    }
    test = Drawn("test", test.pairs, moved)
    found, chosen = measured(dictionary, train, test, head, m=(1,))
    assert chosen.share[0] == pytest.approx([0.64, 0.36], abs=1e-3)
    assert found.rows[0]["features"] == [0] and found.rows[0]["share"] < 0
    _, on_test = measured(dictionary, test, test, head, m=(1,))
    assert on_test.best(1)[0] == 1 and on_test.share[0, 1] > 1


@pytest.mark.parametrize("criterion", choice.CRITERIA)
def test_sets_grow_by_what_a_loop_over_all_features_finds_best(criterion):
    head, m = toy.head(), 3
    train = toy.drawn(head, "train", seed=1, weak=(2,))
    rows = np.random.default_rng(3).normal(size=(6, toy.N_CHANNELS)).astype(np.float32)
    rows *= (np.linspace(0.6, 1.5, 6) / np.linalg.norm(rows, axis=1))[:, None]  # some carry too much
    dictionary = comparators.Projections(rows, np.zeros(toy.N_CHANNELS, np.float32))
    passes = effects.Passes(toy.rest(head), batch_size=16)
    chosen = choice.survey(passes, dictionary, train, 6, "toy")
    found = choice.greedy(chosen.effect, train, m, criterion)
    twins = scores.Twins.of(train, NAMES, 2, 0)
    grown = [[] for _ in toy.PAIRS]
    best = np.full(len(toy.PAIRS), 0.0)
    for _ in range(m):  # each candidate of each pair really moved, and scored as on test
        sets = effects.Sets([[np.array([*own, j]) for j in range(6)] for own in grown], (1,) * 6)
        moved = passes.score(dictionary, train, sets, np.zeros((4, len(sets.features))), "toy")
        values = scores.of_sets(twins, moved["effect"], moved["lost"])[criterion]
        for p, own in enumerate(grown):
            values[p, own] = -np.inf
            if values[p].max() > best[p]:
                best[p] = values[p].max()
                own.append(int(values[p].argmax()))
    for p, own in enumerate(grown):
        if twins.is_open[p]:
            assert found[p].tolist() == own, p
    assert not twins.is_open[2] and any(len(own) == m for own in grown)
    if criterion == "tracking":  # a set that grew is better than the best single ones
        alone = effects.Sets([[features] for features in chosen.best(m)], (m,))
        moved = passes.score(dictionary, train, alone, np.zeros((4, len(alone.features))), "toy")
        of_single = scores.of_sets(twins, moved["effect"], moved["lost"])[criterion][:, 0]
        assert (best >= of_single - 1e-5)[twins.is_open].all()


def test_the_share_on_other_aircraft_is_read_by_the_pairs_logits():
    head, pairs = toy.head(), toy.PAIRS
    test, dictionary = toy.drawn(head), toy.true_dictionary()
    aircraft = tuple(
        pair._replace(without=pair.without + 10, with_part=pair.with_part + 10) for pair in pairs
    )
    classes = {label + 10: seen for label, seen in toy.drawn(head, seed=7).classes.items()}
    classes[11] = classes[10]  # where the part moves nothing, the share is not known
    other = Drawn("test", (*aircraft, aircraft[1]), classes, (*pairs, pairs[0]))
    np.testing.assert_allclose(other.totals()[4], other.totals()[1])  # both read 6 times gear's direction
    assert (other.totals()[0] == 0).all()
    sets = effects.Sets([[np.array([0]), np.array([1])]] * 5, (1, 1))
    passes = effects.Passes(toy.rest(head), batch_size=16)
    effect = passes.own(dictionary, other, sets, "toy")
    twins = scores.Twins.of(test, NAMES, 2, 0)
    found = scores.of_combinations(twins, other, effect)
    np.testing.assert_allclose(found, [[1, 0], [1, 0], [0, 1], [0, 0]], atol=1e-5)


def test_matched_features_are_others_of_nearly_the_size():
    size = np.r_[np.linspace(1, 2, 40), np.zeros(10)]
    features = np.array([5, 20, 39])
    found = choice.matched(size, features, np.random.default_rng(0))
    assert len(set(found)) == 3 and not set(found) & set(features) and (found < 40).all()
    assert np.abs(size[found] - size[features]).max() < 4 / 39
    np.testing.assert_array_equal(found, choice.matched(size, features, np.random.default_rng(0)))
    few = choice.matched(np.array([1.0, 1, 1, 0]), np.array([0, 1]), np.random.default_rng(0))
    assert few.tolist() == [2]


def test_the_supervised_direction_carries_its_pair_by_construction():
    head = toy.head()
    train, test = toy.drawn(head, "train", seed=1), toy.drawn(head)
    dictionary = comparators.supervised(train, np.zeros(toy.N_CHANNELS))
    np.testing.assert_allclose(dictionary.w_dec, toy.directions()[[0, 0, 1, 2]], atol=1e-5)
    x = jnp.float32(np.random.default_rng(0).normal(size=(5, toy.N_CHANNELS)))
    basis = comparators.Projections(dictionary.w_dec[1:], dictionary.mean)
    once = basis.decode(basis.encode(x))
    np.testing.assert_allclose(basis.decode(basis.encode(once)), once, atol=1e-5)  # it projects
    found, _ = measured(dictionary, train, test, head, m=(1,))
    assert found.results["share"] == pytest.approx([1], abs=1e-4)
    assert metrics.twin_gate(*next(test.contrasts())).passed


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A drawn study of 32 pixels and random weights, in memory; its gates are closed."""
    arch = classifier.make_model("toy", N_VARIANTS, stem_stride=2, depths=(0, 0, 0, 1), dims=(4, 4, 4, C))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: classifier.init(jax.random.key(0), arch))
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape), jnp.float32), shapes)
    acts = rng.normal(size=(20, 2, 2, C)).astype(np.float32)
    store = Store(acts, np.zeros(20, np.int32), [f"variant {i}" for i in range(N_VARIANTS)])
    return types.SimpleNamespace(
        workdir=tmp_path_factory.mktemp("study"),
        config={"seed": 0},
        twins=Twins(0, S),
        params=params,
        model=arch,
        site="stage4",
        has_closed_form=True,
        mesh=None,
        sae=make_sae(n_channels=C),
        activations=lambda split: store,
    )


class NoRenderer(Twins):
    def draw_parts(self, parts, split, index):
        raise AssertionError("drawn again")


def test_twins_are_the_images_of_the_set_in_every_class(study):
    drawn = drawings.draw(study, "test", 3, batch_size=8)
    assert drawn.n == 3 and len(drawn.classes) == 15
    forward = jax.jit(classifier.apply)
    for label in (0, 13):
        images = np.stack([study.twins.draw(label, "test", i).image for i in range(3)])
        logits, acts = forward(study.params, augment.normalise(images))
        np.testing.assert_allclose(drawn.classes[label].acts, acts["stage4"], atol=1e-5)
        np.testing.assert_allclose(drawn.classes[label].logits, logits, atol=1e-5)
    kept = {}
    first = drawings.draw(study, "test", 3, batch_size=8, images=kept)
    assert len(kept) == 15 * 3 and next(iter(kept.values())).shape == (S, S, 3)
    again = types.SimpleNamespace(**vars(study) | {"twins": NoRenderer(0, S)})
    second = drawings.draw(again, "test", 3, batch_size=8, images=kept)
    for label, seen in first.classes.items():
        np.testing.assert_array_equal(seen.acts, second.classes[label].acts)
        np.testing.assert_array_equal(seen.acts, drawn.classes[label].acts)
    pair = drawn.pairs[0]
    without, with_part = (seen.logits for seen in drawn.of(pair))
    c = np.eye(N_VARIANTS)[pair.with_part] - np.eye(N_VARIANTS)[pair.without]
    np.testing.assert_allclose(drawn.totals()[0], (with_part - without) @ c, atol=1e-5)


def test_measure_gives_tables_and_nulls_and_is_kept(study, tmp_path, monkeypatch):
    splits, survey, score = [], choice.survey, effects.Passes.score
    monkeypatch.setattr(choice, "survey", lambda *a: splits.append(a[2].split) or survey(*a))
    monkeypatch.setattr(effects.Passes, "score", lambda *a: splits.append(a[2].split) or score(*a))
    stage = types.SimpleNamespace(folder=tmp_path, kept=lambda: None)
    settings = {"n_train": 4, "n_test": 4, "batch_size": 16, "n_bootstrap": 20}
    tables, results = ground_truth.measure(study, keep=kept.Passes(stage), **settings)
    names = ["sae", "random_matched", "rotation", "channels", "pca", "supervised"]
    assert splits == ["train", "test", "test", *["train", "test"] * 4]
    rows = tables["counterfactual"].to_pylist()
    assert list(dict.fromkeys(row["dictionary"] for row in rows)) == names
    assert len(rows) == 9 * (5 * len(ground_truth.M) + 1)
    closed = [row for row in rows if not row["gate"]]
    assert closed and all(row["share"] is row["isolated"] is row["share_low"] is None for row in closed)
    assert all(row["features"] and row["size"] > 0 for row in rows if row["dictionary"] != "random_matched")
    assert results["n_pairs"] == 9 - len(closed) / (len(rows) / 9)
    assert results["m"] == [1, 4, 16, 32] and 0 <= results["twin_accuracy"] <= 1
    assert [len(results[name]["share"]) for name in names] == [4] * 5 + [1]
    assert results["pca"]["faithfulness"]["zero"] is None
    if results["n_pairs"] == 0:
        assert results["sae"]["share"] == [None] * 4 and results["ceiling"] == [None] * 4
    responses = tables["counterfactual_response"].to_pylist()
    assert {row["dictionary"] for row in responses} == set(names) - {"random_matched"}
    assert all(len(row["features"]) == min(row["m"], 12) for row in rows if row["dictionary"] == "sae")
    more = ground_truth.measure(study, n_combinations=1, **settings)
    assert more[0]["counterfactual"].equals(tables["counterfactual"])  # the rest has tables of its own
    assert more[1]["m"] == 3 * results["m"] and more[1]["choice"][3:5] == ["single", "tracking"]
    for name in names:
        length = 1 if name == "supervised" else 4 if name == "random_matched" else 12
        assert len(more[1][name]["isolated"]) == len(more[1][name]["combinations"]) == length
        assert more[1][name]["share"][:4] == results[name]["share"]
    again = ground_truth.measure(study, keep=kept.Passes(stage), **settings)
    assert again[1] == results and all(again[0][name].equals(table) for name, table in tables.items())


def test_without_a_renderer_there_is_no_ground_truth(study):
    undrawn = types.SimpleNamespace(**{**vars(study), "twins": None})
    with pytest.raises(ValueError, match="are not drawn"):
        ground_truth.measure(undrawn)


def test_a_frozen_decoder_of_another_study_is_trained_again(tmp_path, monkeypatch):
    config, calls = ml_collections.ConfigDict({"sae": {"frozen": ""}}), []
    where = tmp_path / "baselines" / "frozen_decoder"
    where.mkdir(parents=True)

    def run(point, workdir, context, where):
        calls.append((point.sae.frozen, where.exists()))
        context.alive = None  # as the end of a stage does
        if where.exists():
            raise stages.ConfigMismatch("made with another config")

    monkeypatch.setattr(comparators.sae_run, "run", run)
    monkeypatch.setattr("jsae.sae.load", lambda folder, mesh: folder)
    context = RunContext()
    alive = context.alive
    assert comparators.frozen_decoder(config, tmp_path, context) == where
    assert calls == [("decoder", True), ("decoder", False)]
    assert config.sae.frozen == "" and context.alive is alive
