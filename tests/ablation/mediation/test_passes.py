"""Mediation against its definition through `edits.set_to`, and what must hold exactly."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import edits
from jsae.ablation.mediation import passes, table
from jsae.ablation.mediation.changed import make_change, make_inputs
from jsae.classifier import Head, head_logits
from jsae.data import augment, cache
from jsae.data.twins import Twins
from jsae.runtime.pytrees import pytree
from tests.ablation.all_features.oracle import make_head
from tests.ablation.toy import N_CHANNELS, N_FEATURES, ToyHead, make_sae

N, S, PATCH, L = 24, 16, 8, 4


@pytree
class Stem:
    """Patches of 8 px through a matrix [192, C], images [B, 16, 16, 3] -> (None, acts [B, 2, 2, C])."""

    weight: jax.Array

    def __call__(self, images):
        cells = images.reshape(len(images), S // PATCH, PATCH, S // PATCH, PATCH, 3)
        cells = jnp.moveaxis(cells, 2, 3).reshape(len(images), S // PATCH, S // PATCH, -1)
        return None, jnp.matmul(cells, self.weight, precision="float32")


@pytree
class PooledHead:
    head: Head

    def __call__(self, acts):
        return head_logits(self.head, acts.mean((1, 2)))


@pytree
class Perfect:
    """A signed, linear dictionary whose decoder undoes its encoder."""

    w_dec: jax.Array

    @property
    def n_features(self):
        return len(self.w_dec)

    def encode(self, x):
        return jnp.matmul(x, jnp.linalg.inv(self.w_dec), precision="float32")


def make_stem():
    weight = np.random.default_rng(5).normal(size=(PATCH * PATCH * 3, N_CHANNELS)) / 4
    return Stem(jnp.asarray(weight, jnp.float32))


def make_split(seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (N, 4, 4, 3)).repeat(4, 1).repeat(4, 2).astype(np.uint8)
    masks = np.zeros((N, S, S), np.uint16)
    masks[:, 2:12, 4:14] = 1 << 15
    labels = rng.integers(0, L, N).astype(np.int32)
    return cache.Split("test", images, labels, ("",) * N, ("",) * L, (), masks)


@pytest.fixture(scope="module")
def inputs():
    train, test = (make_inputs(make_split(seed), None, N, 0) for seed in (1, 2))
    return {"train": train, "test": test, "change": make_change(train, 4.0, PATCH)}


def measure(inputs, head, dictionary, logits_from_acts):
    return passes.measure(
        make_stem(), logits_from_acts, head, dictionary, **inputs, seed=0, batch_size=10
    )  # the last batch is padded


def activations(inputs, split):
    """acts [1 + input, n, H, W, C] and y(acts) of a split."""
    images = inputs[split]
    batch = images.read(np.arange(N))
    acts, _ = passes._activations(make_stem(), inputs["change"], jax.tree.map(jnp.asarray, batch))
    return acts, batch["labels"]


def right(inputs, network):
    """The inputs with the labels that the network predicts, so that a change lowers their margin."""
    found = dict(inputs)
    for split in ("train", "test"):
        labels = np.argmax(network(activations(inputs, split)[0][0]), -1).astype(np.int32)
        labelled = dataclasses.replace(inputs[split].split, labels=labels)
        found[split] = dataclasses.replace(inputs[split], split=labelled)
    return found


def margin(logits, labels):
    logits = np.asarray(logits, np.float64)
    rest = np.where(np.arange(L)[None] == labels[:, None], -np.inf, logits)
    return logits[np.arange(N), labels] - rest.max(1)


def single(sae, network, clean, other, labels):
    """NIE of every feature [n, F], by its definition."""
    values, before = sae.encode(other), margin(network(clean), labels)
    set_one = jax.jit(lambda j: network(edits.set_to(sae, j, values)(clean)))
    return np.stack([margin(set_one(jnp.int32(j)), labels) - before for j in range(N_FEATURES)], 1)


@pytest.mark.parametrize("norm", [True, False])
def test_chosen_on_train_and_scored_on_test_by_the_definitions(inputs, norm):
    head = jax.tree.map(jnp.asarray, make_head(np.random.default_rng(2), N_CHANNELS, L, norm))
    sae, network = make_sae(), PooledHead(head)
    scores = measure(inputs, head, sae, network)
    assert scores.sizes == (1, 4, N_FEATURES) and scores.names == ("blurred", "masked")
    (train, train_labels), (test, labels) = (activations(inputs, split) for split in ("train", "test"))
    for i in range(2):

        def ranked(acts, labels, i=i):
            effects = single(sae, network, acts[0], acts[1 + i], labels)
            total = margin(network(acts[1 + i]), labels) - margin(network(acts[0]), labels)
            return np.argsort(-effects.sum(0) / total.sum())

        order = ranked(train, train_labels)
        clean, other = test[0], test[1 + i]
        assert set(order[:4]) != set(ranked(test, labels)[:4])  # else the next lines could not tell
        before, after = margin(network(clean), labels), margin(network(other), labels)
        np.testing.assert_allclose(scores.totals[:, i], after - before, atol=1e-5)  # float32 throughout
        for k, m in enumerate(scores.sizes):
            chosen = order[:m]
            there = network(edits.set_to(sae, chosen, sae.encode(other))(clean))
            back = network(edits.set_to(sae, chosen, sae.encode(clean))(other))
            np.testing.assert_allclose(scores.chosen[:, i, k], margin(there, labels) - before, atol=1e-5)
            np.testing.assert_allclose(scores.necessity[:, i, k], after - margin(back, labels), atol=1e-5)


def test_rendered_images_are_held_against_their_twins_class_and_left_out_without_one():
    twins, labels = Twins(0, S), np.array([15, 0, 1, 6, 15, 3, 9, 14, 12, 8], np.int32)
    images = np.stack([twins.draw(label, "test", i).image for i, label in enumerate(labels.tolist())])
    ids = tuple(f"test-{i:05d}" for i in range(len(labels)))
    split = cache.Split("test", images, labels, ids, ("",) * 16)
    drawn = make_inputs(split, twins, len(labels), 0)
    arrays = {"train": drawn, "test": drawn, "change": make_change(drawn, 4.0, PATCH)}
    network = PooledHead(jax.tree.map(jnp.asarray, make_head(np.random.default_rng(2), N_CHANNELS, 16)))
    scores = measure(arrays, network.head, make_sae(), network)
    rivals, known = drawn.rivals[:, 2], labels != 15
    np.testing.assert_array_equal(np.isfinite(scores.totals), np.stack([known | True] * 2 + [known], 1))
    rendered = drawn.read(np.arange(len(labels)))["rendered"]
    before, after = (network(make_stem()(augment.normalise(x))[1]) for x in (images, rendered))
    change = np.asarray(after - before)[known]
    rows = np.arange(known.sum())
    expected = change[rows, labels[known]] - change[rows, rivals[known]]
    np.testing.assert_allclose(scores.totals[known, 2], expected, atol=1e-5)  # float32
    for effects in (scores.chosen, scores.necessity, scores.random[:, :, :1]):
        assert np.isnan(effects[~known, 2]).all() and np.isfinite(effects[known, 2]).all()
    row = table.rows(scores, 50, 0)[-1]
    assert (row["input"], row["area"], row["target"], row["n_images"]) == ("rendered", "part", "pair", 8)


def test_images_without_an_input_say_nothing_of_the_features():
    totals, sizes = np.array([[1.0], [3.0], [7.0]]), np.array([[[1.0]], [[2.0]], [[9.0]]])
    share, size = passes.rank(totals, sizes / 2, sizes, np.array([[True], [True], [False]]))
    assert share.tolist() == [[1.5 / 4]] and size.tolist() == [[1.5]]


def test_a_perfect_dictionary_mediates_everything_on_any_head(inputs):
    weight = np.random.default_rng(3).normal(size=(N_CHANNELS, L)).astype(np.float32)
    rows = np.random.default_rng(4).normal(size=(N_CHANNELS, N_CHANNELS)).astype(np.float32)
    network = ToyHead(jnp.asarray(weight))
    scores = measure(right(inputs, network), None, Perfect(jnp.asarray(rows)), network)
    np.testing.assert_allclose(scores.chosen[..., -1], scores.totals, atol=2e-5)  # float32, an inverse
    np.testing.assert_allclose(scores.necessity[..., -1], scores.totals, atol=2e-5)
    of_all = [row for row in table.rows(scores, 50, 0) if row["m"] == N_CHANNELS]
    for row in of_all:
        assert row["mediated_share"] == pytest.approx(1, abs=1e-4)
        assert row["error_path_share"] == pytest.approx(0, abs=1e-4)


def test_total_effect_is_what_all_features_carry_and_the_error_path(inputs):
    """On a linear network and a target without a kink, also the sum of the single effects is all of it."""
    head = jax.tree.map(jnp.asarray, make_head(np.random.default_rng(2), N_CHANNELS, L, norm=False))
    sae, network = make_sae(), PooledHead(head)
    acts, labels = activations(inputs, "test")
    rivals = jnp.asarray((labels + 1) % L)
    moved = sae.encode(acts[1]) - sae.encode(acts[0])
    pooled = acts[0].mean((1, 2))
    effects = passes.single_effects(head, sae, pooled, moved.mean((1, 2)), jnp.asarray(labels), rivals)

    def y(acts):
        return passes.target(network(acts), jnp.asarray(labels), rivals)

    together = y(acts[0] + moved @ sae.w_dec) - y(acts[0])
    np.testing.assert_allclose(np.asarray(effects).sum(1), together, atol=2e-5)  # float32
    error = [x - sae.decode(sae.encode(x)) for x in (acts[0], acts[1])]
    of_error = y(acts[0] + error[1] - error[0]) - y(acts[0])
    np.testing.assert_allclose(y(acts[1]) - y(acts[0]), together + of_error, atol=2e-5)
    assert np.abs(of_error).max() > 0.1


def test_a_single_effect_is_the_fall_of_the_feature_times_that_of_suppressing_it(inputs):
    """An identity of the linear network: both move the same head along the same row."""
    head = jax.tree.map(jnp.asarray, make_head(np.random.default_rng(2), N_CHANNELS, L, norm=False))
    sae, network = make_sae(), PooledHead(head)
    acts, labels = activations(inputs, "test")
    labels, rivals = jnp.asarray(labels), jnp.asarray((labels + 1) % L)
    strengths = [sae.encode(x).mean((1, 2)) for x in (acts[0], acts[1])]  # [n, F]
    found = passes.single_effects(
        head, sae, acts[0].mean((1, 2)), strengths[1] - strengths[0], labels, rivals
    )
    before, fired = passes.target(network(acts[0]), labels, rivals), np.asarray(strengths[0]) > 0.05
    for j in range(N_FEATURES):
        suppressed = passes.target(network(edits.suppress(sae, j)(acts[0])), labels, rivals) - before
        fall = 1 - strengths[1][:, j] / jnp.maximum(strengths[0][:, j], 1e-9)
        expected = np.asarray(fall * suppressed)[fired[:, j]]
        np.testing.assert_allclose(np.asarray(found)[fired[:, j], j], expected, atol=5e-5)  # float32, ratios
    assert fired.mean() > 0.3


def test_the_first_order_ranking_is_exact_on_a_linear_network(inputs):
    head = jax.tree.map(jnp.asarray, make_head(np.random.default_rng(2), N_CHANNELS, L, norm=False))
    acts, labels = activations(inputs, "test")
    rivals = np.stack([(labels + 1) % L] * 2, 1)
    batch = {"labels": jnp.asarray(labels), "rivals": jnp.asarray(rivals)}
    exact, first_order = (
        passes._rank(PooledHead(head), each, make_sae(), acts, batch)["effects"] for each in (head, None)
    )
    np.testing.assert_allclose(first_order, exact, atol=2e-5)  # float32
    assert np.abs(exact).max() > 0.1


def test_random_sets_are_others_of_nearest_size_none_twice():
    share = np.array([0.1, 0.5, np.nan, 0.3, -0.9, 0, 0, 0, 0, 0, 0, 0])
    size = np.array([1.0, 2.0, 1.1, 0.9, 2.1, 0, 1.9, 1.05, 0.95, 8.0, 9.0, 1.2])
    sets = passes.choose_sets(share, size, 2, np.random.default_rng(0))
    assert sets.shape == (1 + passes.N_RANDOM, 2) and sets[0].tolist() == [1, 3]
    for row in sets[1:]:
        assert len(set(row)) == 2 and not {1, 3, 5} & set(row)  # 5 never changes
        assert row[0] in (4, 6, 11, 2) and row[1] in (8, 0, 7, 2)  # the four nearest in size
    assert len({tuple(row) for row in sets[1:]}) > 1
    none = passes.choose_sets(share, size, 7, np.random.default_rng(0))
    assert (none[0] >= 0).all() and (none[1:] == -1).all()  # five are left


def test_what_no_image_knows_is_null_and_so_are_shares_of_nothing(inputs):
    head = jax.tree.map(jnp.asarray, make_head(np.random.default_rng(2), N_CHANNELS, L))
    network = PooledHead(head)
    scores = measure(right(inputs, network), head, make_sae(), network)
    rows = table.rows(scores, 50, 0)
    assert [(row["input"], row["m"]) for row in rows] == [
        (name, m) for name in ("blurred", "masked") for m in (1, 4, N_FEATURES)
    ]
    assert np.isfinite(rows[0]["random_share"]) and np.isnan(rows[2]["random_share"])
    for row in rows:
        assert row["mediated_share_low"] <= row["mediated_share"] <= row["mediated_share_high"]
        assert row["target"] == "label" and row["area"] == "mask" and row["n_images"] == N
    numbers = table.results(rows)
    assert numbers["m"] == [1, 4] and numbers["masked"]["all"]["mediated_share"] == rows[5]["mediated_share"]
    even = np.where(np.arange(N) % 2, 1.0, -1.0)[:, None] * np.ones((1, 2))
    half = np.array(scores.totals)
    half[N // 2 :, 0] = np.nan  # of these images there is no blurred one
    none = table.rows(scores._replace(totals=even), 50, 0)
    assert table.results(none)["blurred"]["mediated_share"] == [None] * 2
    for row in table.TABLE.of_rows(none).to_pylist():
        assert row["te_mean"] == 0 and row["nie"] is not None
        shares = ("mediated_share", "random_share", "necessity_share", "error_path_share")
        assert all(row[name] is None and row[f"{name}_low"] is None for name in shares)
    fewer = table.rows(scores._replace(totals=half), 50, 0)
    assert fewer[0]["n_images"] == N // 2 and fewer[3]["n_images"] == N
    assert fewer[0]["te_mean"] == pytest.approx(scores.totals[: N // 2, 0].mean())


def test_single_effects_behind_a_layer_norm_are_those_of_the_head_feature_by_feature():
    head = jax.tree.map(jnp.asarray, make_head(np.random.default_rng(2), N_CHANNELS, L))
    rng = np.random.default_rng(0)
    pooled, moved = rng.normal(size=(N, N_CHANNELS)), rng.normal(size=(N, N_FEATURES))
    labels = rng.integers(0, L, N)
    rivals = np.where(np.arange(N) % 2, (labels + 1) % L, -1)
    sae = make_sae()
    arrays = (jnp.asarray(a, jnp.float32) for a in (pooled, moved))
    classes = (jnp.asarray(a, jnp.int32) for a in (labels, rivals))
    found = np.asarray(passes.single_effects(head, sae, *arrays, *classes))
    for j in range(N_FEATURES):
        logits = [
            np.asarray(head_logits(head, jnp.asarray(p, jnp.float32)))
            for p in (pooled, pooled + moved[:, [j]] * np.asarray(sae.w_dec)[j])
        ]
        of_pair = [x[np.arange(N), labels] - x[np.arange(N), rivals] for x in logits]
        expected = np.where(
            rivals < 0, np.subtract(*(margin(x, labels) for x in logits)), np.subtract(*of_pair)
        )
        np.testing.assert_allclose(found[:, j], -expected, atol=5e-4)  # float32 closed form of a norm
