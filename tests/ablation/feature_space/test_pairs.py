"""Feature-space ablation against the public edits one pair at a time, and on a planted effect."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import edits, metrics
from jsae.ablation.feature_space import controls, pairs
from jsae.activations import run_pass
from jsae.runtime import preemption
from jsae.runtime.context import RunContext
from tests.ablation.toy import GRID, StoppedWhen, Store, make_acts, make_head, make_sae, reduce

KEY = jax.random.key(7)
FEATURES, TOPS = [0, 5, 11], [2, 1, 3]
MEAN = np.linspace(-0.2, 0.2, 8).astype(np.float32)
_ROWS = np.random.default_rng(4).normal(size=(3, 8))
CANDIDATES = controls.Candidates(  # of class 2 the second is nearest to 0.9, of the other classes the first
    (_ROWS / np.linalg.norm(_ROWS, axis=1, keepdims=True)).astype(np.float32),
    np.array([[0.5, 0.85, 0.6, 0.85], [0.5, 0.1, 0.88, 0.2], [0.5, 0.7, 1.0, 0.7]]),
)


def root_of(acts):
    return controls.covariance_root(Store(acts, np.zeros(len(acts), np.int32)), 16, RunContext())


def measure(acts, head, sae, *, features=FEATURES, tops=TOPS, size=16, pair_batch=32, labels=None, **more):
    labels = np.arange(len(acts)) % 4 if labels is None else labels
    found = reduce(pairs.FindPairs(np.array(features, np.int32)), sae, acts, labels, size)
    top_classes = np.full(sae.n_features, -1)
    top_classes[list(features)] = tops
    return pairs.effects_of_pairs(
        head,
        sae,
        Store(acts, np.asarray(labels, np.int32)),
        found,
        top_classes=top_classes,
        auroc_train=np.full(sae.n_features, 0.9),
        candidates=CANDIDATES,
        mean=MEAN,
        root=root_of(acts),
        key=KEY,
        batch_size=pair_batch,
        **more,
    )


def naive_measures(logits, target):
    z = np.asarray(logits, np.float64)
    log_p = z - np.log(np.exp(z).sum())
    return [z[target], z[target] - np.delete(z, target).max(), np.exp(log_p[target]), log_p[target]]


def test_equals_the_public_edits_pair_by_pair():
    sae, head, acts = make_sae(), make_head(False), make_acts()
    found = measure(acts, head, sae)
    root = root_of(acts)
    feats = np.asarray(sae.encode(acts))
    active = {(i, f) for i, f in zip(*np.nonzero(feats.max((1, 2)) > 0), strict=True) if f in FEATURES}
    assert {(int(i), int(f)) for i, f in zip(found.images, found.features, strict=True)} == active
    largest = float(np.abs(head(acts)).max())
    for row in range(0, len(found.images), 7):
        i, f = int(found.images[row]), int(found.features[row])
        x, maps = acts[i : i + 1], feats[i]
        y, c = np.unravel_index(maps[..., f].argmax(), GRID)
        clean = np.asarray(head(x))[0]
        u = controls.draw_directions(KEY, root, jnp.array([f]), jnp.array([i]))[0]
        norms = np.linalg.norm(sae.w_dec, axis=1)

        def at_cell(feature, yx):
            keep = np.ones((1, *GRID, feats.shape[-1]), np.float32)
            keep[0, yx[0], yx[1], feature] = 0
            return edits.keep(sae, keep)

        def partner(strength, f=f, norms=norms):
            size = strength * norms
            others = [j for j in np.flatnonzero(strength > 0) if j != f]
            return min(others, key=lambda j: abs(size[j] - size[f]))

        j, k = partner(maps.mean((0, 1))), partner(maps.max((0, 1)))
        u = np.asarray(u) * (1 if ((x[0] - MEAN) @ np.asarray(u)).sum() >= 0 else -1)
        v = CANDIDATES.rows[1 if f == 0 else 0]

        def without(direction, peak_only, x=x, maps=maps, f=f, norms=norms):
            there, removed = np.maximum((x[0] - MEAN) @ direction, 0), maps[..., f]
            if peak_only:
                there, removed = there * (there == there.max()), removed * (removed == removed.max())
            scaled = there * removed.sum() * norms[f] / there.sum()
            return x - scaled[None, ..., None] * direction

        expected = [
            [
                edits.suppress(sae, f)(x),
                without(u, False),
                without(v, False),
                edits.suppress(sae, j)(x),
            ],
            [
                at_cell(f, (y, c))(x),
                without(u, True),
                without(v, True),
                at_cell(k, np.unravel_index(maps[..., k].argmax(), GRID))(x),
            ],
        ]
        assert found.norms[row] == pytest.approx(maps[..., f].mean() * norms[f], rel=1e-5)
        assert found.own_class[row] == (i % 4 == TOPS[FEATURES.index(f)])
        assert found.control_auroc[row] == (0.88 if f == 0 else 0.85)
        targets = [i % 4, clean.argmax(), TOPS[FEATURES.index(f)]]
        for scope, interventions in zip(pairs.SCOPES, expected, strict=True):
            for kind, edited in zip(pairs.KINDS, interventions, strict=True):
                logits = np.asarray(head(edited))[0]
                assert found.flips.at(scope=scope, kind=kind)[row] == (logits.argmax() != clean.argmax())
                for t, target in enumerate(targets):
                    delta = np.subtract(naive_measures(logits, target), naive_measures(clean, target))
                    got = found.deltas.at(scope=scope, kind=kind)[row, t]
                    np.testing.assert_allclose(got, delta, atol=1e-5 * largest)  # float32 logits


def test_batch_shapes_change_nothing():
    sae, head, acts = make_sae(), make_head(False), make_acts(20)
    a = measure(acts, head, sae)
    b = measure(acts, head, sae, size=3, pair_batch=5)
    order = [np.lexsort((e.features, e.images)) for e in (a, b)]
    np.testing.assert_array_equal(a.images[order[0]], b.images[order[1]])
    np.testing.assert_allclose(
        a.deltas.values[order[0]], b.deltas.values[order[1]], atol=1e-5
    )  # float32 in another batch


def test_a_planted_effect_is_found_and_its_controls_are_small():
    sae, head, acts = make_sae(), make_head(True), make_acts(80)
    found = measure(acts, head, sae)
    on_top = found.deltas.select(scope="map", target="top_class", measure="margin")
    effect, direction, auroc, other = (
        np.nanmean(on_top.at(kind=k)[found.features == 0]) for k in pairs.KINDS
    )
    assert effect < -0.2
    assert abs(other) < 0.02 * abs(effect)  # other features leave channel 0 alone
    assert abs(direction) < 0.3 * abs(effect) and abs(auroc) < 0.7 * abs(effect)
    idle = found.deltas.at(scope="map", kind="effect", target="label", measure="margin")
    assert np.abs(idle[found.features == 5]).mean() < 0.05 * abs(effect)


def test_a_head_that_ignores_the_activations_has_effects_of_exactly_zero():
    constant = np.array([1.0, 3.0, 2.0, 0.5], np.float32)

    def head(acts):
        return jnp.broadcast_to(jnp.asarray(constant), (acts.shape[0], 4)) + 0 * acts.sum((1, 2, 3))[:, None]

    found = measure(make_acts(), head, make_sae())
    assert len(found.images)
    np.testing.assert_array_equal(np.nan_to_num(found.deltas.values), 0)
    assert not found.flips.values.any()


def test_an_intervention_of_nothing_has_an_effect_of_exactly_zero():
    sae, acts = make_sae(), make_acts()
    silent = jax.tree.map(lambda a: a, sae)
    silent = type(sae)(silent.w_enc, 0 * silent.w_dec)  # features fire but write nothing
    found = measure(acts, make_head(False), silent)
    assert len(found.images)
    np.testing.assert_array_equal(np.nan_to_num(found.deltas.values), 0)


def test_dead_lonely_and_single_firings():
    sae, head = make_sae(), make_head(False)
    acts = np.zeros((5, *GRID, 8), np.float32)
    nothing = measure(acts, head, sae)
    assert len(nothing.images) == 0 and nothing.n_images == 5
    acts[3, 1, 2, 0] = 5.0  # feature 0 alone
    one = measure(acts, head, sae)
    assert one.images.tolist() == [3] and one.features.tolist() == [0] and not one.has.at(kind="feature")[0]
    assert np.isnan(one.deltas.at(kind="feature")).all()
    assert all(np.isfinite(one.deltas.at(kind=kind)).all() for kind in ("effect", "direction"))
    assert len(measure(acts, head, sae, features=[], tops=[]).images) == 0


def test_unknown_classes_give_nan():
    sae, acts = make_sae(), make_acts()

    def one_class(acts):
        return acts[..., :1].mean((1, 2))

    found = measure(acts, one_class, sae, labels=np.zeros(50, int), tops=[0, 0, -1])
    assert np.isnan(found.deltas.at(measure="margin")).all()
    assert np.isnan(found.deltas.at(target="top_class")[found.features == 11]).all()
    logit = found.deltas.at(kind="effect", target="label", measure="logit")
    assert np.isfinite(logit[found.features == 0]).all()
    found = measure(acts, make_head(False), sae, labels=np.arange(50) % 5 - 1)
    on_label = found.deltas.at(kind="effect", target="label", measure="margin")
    np.testing.assert_array_equal(np.isnan(on_label).all(1), found.images % 5 == 0)


def test_a_control_removes_what_is_there_and_so_has_the_sign_of_its_absence():
    """The head adds up all channels, each above its mean: taking what is there away lowers the logit.

    Along directions of random sign the mean of these changes is 0, as it was with the control of old.
    """

    def head(acts):
        return jnp.stack([acts.sum((1, 2, 3)), 0 * acts.sum((1, 2, 3))], -1)

    acts = make_acts(120, seed=3) * 0.3 + np.random.default_rng(0).gamma(2.0, 1.0, (120, 1, 1, 1)).astype(
        np.float32
    )
    found = measure(acts, head, make_sae(), labels=np.zeros(120, int), tops=[0, 0, 0])
    logit = found.deltas.at(scope="map", kind="direction", target="label", measure="logit")
    u = controls.draw_directions(KEY, root_of(acts), found.features, found.images)
    old = -np.asarray(u).sum(1) * found.norms * GRID[0] * GRID[1]
    assert abs(old.mean()) < 3 * old.std() / len(old) ** 0.5  # symmetric: no mean effect
    assert logit.mean() < -5 * logit.std() / len(logit) ** 0.5
    assert logit.mean() < -0.5 * np.abs(old).mean()


def test_an_image_with_nothing_along_the_direction_has_no_control_of_equal_auroc():
    acts = np.zeros((2, *GRID, 8), np.float32) + MEAN
    acts[:, 1, 2] += 5 * np.eye(8)[0]
    acts[1, 1, 2] -= 20 * CANDIDATES.rows[1]  # on the other side of the mean
    acts[0, 1, 2] += 20 * CANDIDATES.rows[1]
    acts[:, :, :, 0] += 6 * (np.arange(12).reshape(GRID) == 6)
    found = measure(acts, make_head(False), make_sae(), features=[0], tops=[2], labels=[0, 0])
    along = (acts - MEAN) @ CANDIDATES.rows[1]
    there = dict(zip(found.images.tolist(), found.has.at(kind="auroc").tolist(), strict=True))
    assert there == {i: bool(along[i].max() > 0) for i in there} and set(there.values()) == {True, False}
    nothing = found.images == next(i for i, is_there in there.items() if not is_there)
    assert np.isnan(found.deltas.at(kind="auroc")[nothing]).all()
    assert np.isfinite(found.deltas.at(kind="direction")).all()


def test_the_candidate_of_nearest_train_auroc_is_taken():
    rows, found = CANDIDATES.nearest(np.array([2, 2, 0, -1, 1]), np.array([0.96, 0.87, 0.9, 0.9, np.nan]))
    np.testing.assert_array_equal(rows[:3], CANDIDATES.rows[[2, 1, 0]])
    np.testing.assert_array_equal(found, [1.0, 0.88, 0.5, np.nan, np.nan])
    assert not rows[3:].any()


def test_candidates_are_measured_on_train():
    acts = make_acts(60)
    labels = np.arange(60) % 3
    acts[labels == 1, :, :, 3] += 1.0
    store = Store(acts, labels.astype(np.int32), ["a", "b", "c"])
    pass_over = functools.partial(run_pass, store, batch_size=16)

    def over(reducers, *, dictionary, label):
        return pass_over(dictionary, reducers, label=label)

    found = controls.draw_candidates(KEY, root_of(acts), store, over)
    assert found.rows.shape == (controls.N_CANDIDATES, 8) and found.auroc.shape == (controls.N_CANDIDATES, 3)
    best = found.auroc[:, 1].argmax()
    assert found.auroc[best, 1] > 0.95 and found.rows[best, 3] > 0.5
    pooled = np.maximum((acts - store.mean) @ found.rows[best], 0).mean((1, 2))
    assert found.auroc[best, 1] == pytest.approx(metrics.auroc(pooled[:, None], labels == 1)[0][0], abs=1e-3)


def test_the_pass_over_pairs_stops_where_that_is_asked_for():
    with pytest.raises(preemption.Preempted):
        measure(make_acts(), make_head(False), make_sae(), context=StoppedWhen(lambda: True))


def test_directions_have_unit_norm_the_right_covariance_and_do_not_depend_on_the_batch():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(5, 5)) * np.array([3, 1, 1, 0.1, 0.0])[None, :]
    acts = (rng.normal(size=(400, 1, 1, 5)) @ mix.T + 10).astype(np.float32)
    root = root_of(acts)
    np.testing.assert_allclose(root @ root.T, np.cov(acts[:, 0, 0].T, bias=True), rtol=1e-3, atol=1e-3)
    images, none = jnp.arange(3000), jnp.zeros(3000, jnp.int32)
    draw = jax.jit(controls.draw_directions)
    u = draw(KEY, root, none, images)
    np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(draw(KEY, root, none, images[::-1]), u[::-1], atol=1e-6)
    leading = np.linalg.eigh(root @ root.T)[1][:, -1]
    assert np.square(u @ leading).mean() > 0.5  # an isotropic draw has 1/5 there
    assert not np.allclose(u[0], draw(KEY, root, none + 1, images)[0])
    np.testing.assert_array_equal(root_of(np.ones((4, 1, 1, 3), np.float32)), np.eye(3))
