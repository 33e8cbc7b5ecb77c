"""Moves of features against loops over drawings: with a head, by forward passes, on one device and eight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import classifier
from jsae.ablation.counterfactual import choice, effects
from jsae.ablation.counterfactual.drawings import Drawn, Seen
from jsae.classifier.model import HeadNorm
from jsae.runtime import mesh as meshes
from jsae.sae import SAE, variants
from jsae.sae.model import over_mesh
from tests.ablation.counterfactual import toy
from tests.ablation.toy import make_sae

C, L, F, N = 12, 8, 16, 10
MEMBERS = [[np.array([p]), np.array([p, 7, 11])] for p in range(len(toy.PAIRS))]


def norm(n_channels):
    rng = np.random.default_rng(4)
    return HeadNorm(
        jnp.float32(rng.uniform(0.5, 2, n_channels)), jnp.float32(rng.normal(size=n_channels)), 1e-6
    )


@pytest.fixture(scope="module")
def network():
    """A small network of random weights: with its head, and with the forward pass alone; twins at stage4."""
    arch = classifier.make_model("toy", L, stem_stride=1, depths=(1, 1, 1, 1), dims=(4, 6, 8, C))
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: classifier.init(jax.random.key(0), arch))
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape), jnp.float32), shapes)
    forward = effects.Rest(params, None, "stage4")
    with_head = effects.Rest(params, arch.linear_head(params.variables), "stage4")
    classes = {}
    for label in range(L):
        acts = rng.normal(size=(N, 2, 2, C)).astype(np.float32)
        classes[label] = Seen(acts, np.asarray(forward(jnp.asarray(acts))))
    return with_head, forward, Drawn("test", toy.PAIRS, classes)


def topk_sae(n_channels=C) -> SAE:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(F, n_channels))
    rows = jnp.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True))
    zeros = jnp.zeros(n_channels)
    return SAE(rows, jnp.zeros(F), rows, zeros, zeros + 0.1, jnp.float32(1.3), variants.TopK(k=4))


def contrast(logits, pair):
    return float(logits[pair.with_part] - logits[pair.without])


def by_loops(rest, dictionary, drawn, members, before):
    """effect [P, n, P, K], lost [P, n, K], moved [P, n, 3, L], one drawing and feature at a time."""
    w, rest, encode = (
        np.asarray(dictionary.w_dec, np.float64),
        jax.jit(rest.__call__),
        jax.jit(dictionary.encode),
    )

    def logits(acts):
        return np.asarray(rest(jnp.float32(acts[None])), np.float64)[0]

    n_pairs, n_sets = len(drawn.pairs), len(members[0])
    effect = np.zeros((n_pairs, drawn.n, n_pairs, n_sets))
    lost, moved = np.zeros((n_pairs, drawn.n, n_sets)), None
    for q, pair in enumerate(drawn.pairs):
        two = [np.float64(seen.acts) for seen in drawn.of(pair)]
        for i in range(drawn.n):
            a0, a1 = two[0][i], two[1][i]
            f0, f1 = (np.asarray(encode(jnp.float32(a)), np.float64) for a in (a0, a1))
            for p in range(n_pairs):
                for k, features in enumerate(members[p]):
                    change = sum((f1 - f0)[..., j, None] * w[j] for j in features)
                    effect[q, i, p, k] = contrast(logits(a0 + change), pair) - contrast(logits(a0), pair)
                    if p == q:
                        lost[q, i, k] = contrast(logits(a1), pair) - contrast(logits(a1 - change), pair)
            put = []
            for to in (0 * f1, np.broadcast_to(before[q], f1.shape), f0):
                change = sum((to - f1)[..., j, None] * w[j] for j in members[q][1])
                put.append(logits(a1 + change) - logits(a1))
            moved = np.zeros((n_pairs, drawn.n, 3, len(put[0]))) if moved is None else moved
            moved[q, i] = put
    return effect, lost, moved


@pytest.mark.parametrize("kind", ["head", "forward"])
def test_moves_are_those_of_loops(network, kind):
    with_head, forward, drawn = network
    dictionary, sets = topk_sae(), effects.Sets(MEMBERS, (1, 3), of_faith=1)
    before = np.random.default_rng(2).uniform(0, 1, (len(toy.PAIRS), F))
    passes = effects.Passes(with_head if kind == "head" else forward, batch_size=8)
    found = passes.score(dictionary, drawn, sets, before[:, sets.features], "any")
    small = Drawn("test", drawn.pairs, {k: Seen(s.acts[:3], s.logits[:3]) for k, s in drawn.classes.items()})
    wanted = by_loops(forward, dictionary, small, MEMBERS, before)
    for name, values in zip(("effect", "lost", "moved"), wanted, strict=True):
        # float32 logits of a few units, subtracted
        np.testing.assert_allclose(found[name][:, :3], values, atol=2e-5, err_msg=name)


def test_jit_changes_nothing():
    head = toy.head(norm(toy.N_CHANNELS))
    drawn, dictionary = toy.drawn(head, n=4), dataclasses.replace(make_sae(), threshold=0.1)
    masks = np.ones((len(toy.PAIRS), 1, dictionary.n_features), np.float32)
    batch = {name: drawn.classes[i].acts for i, name in enumerate(("without", "with"))}
    batch |= {"pair": np.zeros(4, np.int32), "classes": np.tile(np.int32([[0, 1]]), (4, 1))}
    features = np.arange(dictionary.n_features, dtype=np.int32)
    arguments = jax.tree.map(jnp.asarray, (features, masks, masks[:, 0], batch))
    jitted = effects._score(0, toy.rest(head), dictionary, *arguments)
    with jax.disable_jit():
        plain = effects._score(0, toy.rest(head), dictionary, *arguments)
    for name, values in jitted.items():
        np.testing.assert_allclose(values, plain[name], atol=1e-5)


@pytest.mark.parametrize("has_norm", [False, True])
def test_single_features_with_a_head_are_exact(has_norm):
    head = toy.head(norm(toy.N_CHANNELS) if has_norm else None)
    drawn, dictionary = toy.drawn(head), dataclasses.replace(make_sae(), threshold=0.1)
    passes = effects.Passes(toy.rest(head), batch_size=16)
    n_features = dictionary.n_features
    alone = [[np.array([j]) for j in range(n_features)]] * len(toy.PAIRS)
    sets = effects.Sets(alone, (1,) * n_features)
    moved = passes.score(dictionary, drawn, sets, np.zeros((4, n_features)), "any")["effect"]
    found = passes.survey(dictionary, drawn, "any")["effect"]
    assert np.abs(found).max() > 0.1
    for q in range(len(toy.PAIRS)):
        np.testing.assert_allclose(found[q], moved[q, :, q], atol=1e-5)


def test_forward_passes_choose_what_the_head_does(network):
    with_head, forward, drawn = network
    dictionary = topk_sae()
    exact = choice.survey(effects.Passes(with_head, 8), dictionary, drawn, 4, "any")
    found = choice.survey(effects.Passes(forward, 8), dictionary, drawn, F, "any")
    np.testing.assert_allclose(found.share, exact.share, atol=1e-4)
    few = choice.survey(effects.Passes(forward, 8), dictionary, drawn, 6, "any")
    assert (np.isfinite(few.share).sum(1) == 6).all()
    known = np.isfinite(few.share)
    np.testing.assert_allclose(few.share[known], exact.share[known], atol=1e-4)


def test_first_order_is_exact_for_a_linear_head(network):
    """The rest of the network, made linear, ranks single features by forward passes as the head does."""
    _, _, drawn = network
    head = classifier.Head(jnp.float32(np.random.default_rng(8).normal(size=(C, L))), jnp.zeros(L))
    batch = {name: jnp.asarray(drawn.classes[i].acts) for i, name in enumerate(("without", "with"))}
    batch["classes"] = jnp.tile(jnp.int32([[0, 1]]), (N, 1))
    dictionary = topk_sae()
    change = dictionary.encode(batch["with"]) - dictionary.encode(batch["without"])
    pooled = change.mean((1, 2), keepdims=True)

    class Linear(effects.Rest):
        def __call__(self, acts):
            return classifier.head_logits(head, acts.mean((1, 2)))

    exact = effects.single_effects(effects.Rest(None, head, ""), dictionary.w_dec, batch, pooled)
    first = effects.single_effects(Linear(None, None, ""), dictionary.w_dec, batch, change)
    np.testing.assert_allclose(first, exact, atol=1e-5)


@pytest.mark.parametrize("kind", ["head", "forward"])
def test_eight_devices_see_what_one_sees(network, kind):
    rest, drawn = network[0 if kind == "head" else 1], network[2]
    sets = effects.Sets(MEMBERS, (1, 3), of_faith=1)
    before = np.ones((4, len(sets.features)))
    mesh = meshes.make_mesh(4, 2)
    alone = effects.Passes(rest, batch_size=8)
    dealt = effects.Passes(meshes.replicate(mesh, rest), batch_size=8, mesh=mesh)
    sae = topk_sae()
    for name, values in dealt.score(over_mesh(sae, mesh), drawn, sets, before, "any").items():
        np.testing.assert_allclose(
            values, alone.score(sae, drawn, sets, before, "any")[name], atol=2e-5, err_msg=name
        )
    one = choice.survey(alone, sae, drawn, 6, "any")
    eight = choice.survey(dealt, over_mesh(sae, mesh), drawn, 6, "any")
    np.testing.assert_allclose(eight.share, one.share, atol=1e-4)
