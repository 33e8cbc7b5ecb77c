"""The closed form against a float64 oracle and the patched forward pass; silent and single-class pairs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import classifier, edits
from jsae.ablation.all_features import closed_form, formula
from jsae.ablation.effects import MEASURES
from tests.ablation.all_features.oracle import (
    N_FEATURES,
    N_IMAGES,
    logits_of,
    make_case,
    make_network,
    measures_of,
    naive,
)

MARGIN = MEASURES.index("margin")


def largest_logit(case):
    return max(np.abs(logits_of(case["head"], p)).max() for p in case["pooled"])


def test_equals_the_oracle():
    case = make_case()
    deltas, flips = naive(**case)
    found = closed_form.effects(**case)
    # float32 products against float64: the target is 1e-5 of the largest logit
    np.testing.assert_allclose(found.deltas, deltas, atol=1e-5 * largest_logit(case))
    np.testing.assert_array_equal(found.flips, flips)
    assert 0 < flips.sum() < (case["strength"] > 0).sum()
    assert found.n_guarded < 0.1 * flips.size


def test_a_head_without_a_norm_is_linear_and_needs_no_guard():
    case = make_case(norm=False)
    case["pooled"][3] = case["strength"][3].max() * case["w_dec"][case["strength"][3].argmax()]
    case["predictions"][3] = logits_of(case["head"], case["pooled"][3]).argmax()
    deltas, flips = naive(**case)
    found = closed_form.effects(**case)
    np.testing.assert_allclose(found.deltas, deltas, atol=1e-5 * largest_logit(case))  # as above
    np.testing.assert_array_equal(found.flips, flips)
    assert found.n_guarded == 0 and flips.any()


def test_silent_pairs_have_effects_of_exactly_zero():
    case = make_case()
    found = closed_form.effects(**case)
    silent = case["strength"] == 0
    assert silent.any()
    np.testing.assert_array_equal(np.asarray(found.deltas)[:, :, silent], 0)
    case["predictions"] = (case["predictions"] + 1) % 5  # not what these images are predicted as
    flips = np.asarray(closed_form.effects(**case).flips)
    assert flips[~silent].any() and not flips[silent].any()
    assert (np.asarray(found.deltas)[0, 0][~silent] != 0).all()


@pytest.mark.parametrize("remainder", [0.1, 0.03, 0.01, 0.0])
def test_a_feature_that_carries_nearly_all_of_an_image(remainder):
    """What remains is so many times what was removed: the closed form alone loses digits there."""
    rng = np.random.default_rng(1)
    case = make_case()
    f = 7
    w = np.round(rng.normal(size=16) * 8) / 8  # short binary fractions: the removal itself is exact
    rest = np.round(rng.normal(size=16) * 8) / 8 if remainder else np.zeros(16)
    a = 4.0
    rest *= 2.0 ** np.round(
        np.log2(max(remainder, 1e-9) * a * np.linalg.norm(w) / max(np.linalg.norm(rest), 1e-9))
    )
    case["w_dec"][f] = w
    case["pooled"][3], case["strength"][3] = a * w + rest, 0
    case["strength"][3, f] = a
    case["predictions"][3] = logits_of(case["head"], case["pooled"][3]).argmax()
    deltas, flips = naive(**case)
    found = closed_form.effects(**case)
    assert found.n_guarded >= 1
    mine = np.asarray(found.deltas)[:, :, 3, f]
    assert np.abs(deltas[0, 0, 3, f]) > 0
    np.testing.assert_allclose(mine, deltas[:, :, 3, f], atol=1e-5 * largest_logit(case))  # as above
    assert bool(found.flips[3, f]) == flips[3, f]


def test_nothing_left_flips_to_the_class_that_an_empty_image_is_predicted_as():
    """Without biases the logits of an empty image are all 0, and argmax takes the first class."""
    case = make_case()
    head = case["head"]
    case["head"] = dataclasses.replace(
        head, offset=0 * head.offset, norm=dataclasses.replace(head.norm, bias=0 * head.norm.bias)
    )
    case["strength"] = 0 * case["strength"]
    case["strength"][:2, 7] = 4.0
    case["w_dec"][7] = np.arange(16) / 8  # short binary fractions: nothing is left, exactly
    case["pooled"][:2] = 4.0 * case["w_dec"][7]
    case["predictions"] = np.arange(N_IMAGES, dtype=np.int32) % 2
    found = closed_form.effects(**case)
    assert found.n_guarded == 2
    assert np.asarray(found.flips)[:2, 7].tolist() == [False, True]


def test_many_guarded_pairs_are_all_computed_directly(monkeypatch):
    case = make_case()
    case["strength"] = case["strength"] * 0
    for b in range(N_IMAGES):  # every feature of every image carries nearly all of it
        case["strength"][b, b] = 5.0
        case["pooled"][b] = 5.0 * case["w_dec"][b] + 0.02 * case["pooled"][b]
    case["predictions"] = np.array([logits_of(case["head"], p).argmax() for p in case["pooled"]], np.int32)
    deltas, flips = naive(**case)
    monkeypatch.setattr(formula, "_DIRECT_PAIRS", 5)  # several rounds, the last one not full
    found = closed_form.effects(**case, block=36)
    assert found.n_guarded == N_IMAGES
    # what remains is a fiftieth of what was removed, so float32 inputs carry 50 times their rounding
    np.testing.assert_allclose(found.deltas, deltas, atol=5e-5 * largest_logit(case))
    np.testing.assert_array_equal(found.flips, flips)


@pytest.mark.parametrize("block", [10, 64])
def test_block_sizes_change_nothing(block):
    case = make_case(2)
    whole, cut = closed_form.effects(**case, block=N_FEATURES), closed_form.effects(**case, block=block)
    np.testing.assert_allclose(cut.deltas, whole.deltas, atol=1e-5)  # float32 sums in another order
    np.testing.assert_array_equal(cut.flips, whole.flips)
    assert cut.n_guarded == whole.n_guarded


def test_one_class_has_no_margin_and_never_flips():
    found = closed_form.effects(**make_case(n_classes=1))
    assert np.isnan(np.asarray(found.deltas)[:, MARGIN][:, make_case(n_classes=1)["strength"] > 0]).all()
    assert np.isfinite(np.delete(found.deltas, MARGIN, axis=1)).all() and not found.flips.any()


def test_two_classes_leave_none_that_is_no_target():
    case = make_case(n_classes=2)
    deltas, flips = naive(**case)
    found = closed_form.effects(**case)
    np.testing.assert_allclose(found.deltas, deltas, atol=1e-5 * largest_logit(case))  # as above
    np.testing.assert_array_equal(found.flips, flips)


def test_powers_of_two_and_their_ends():
    x = np.concatenate([np.linspace(-126, 0, 100_001, dtype=np.float32), np.float32([-0.0, 1e-7])])
    found = np.asarray(jax.jit(formula._exp2)(x), np.float64)
    np.testing.assert_allclose(found, np.exp2(x.astype(np.float64)), rtol=3e-7)  # five float32 roundings
    found = np.asarray(formula._exp2(jnp.float32([-127, -1e30, -np.inf, np.nan])))
    np.testing.assert_allclose(found, [2.0**-126] * 3 + [np.nan], rtol=3e-7)


def test_targets_can_be_chosen_and_unknown_ones_are_named():
    case = make_case()
    three, one = closed_form.effects(**case), closed_form.effects(**case, targets=("label",))
    assert one.deltas.shape == (1, 4, N_IMAGES, N_FEATURES)
    # compiled differently: the rounding is that of the logits
    np.testing.assert_allclose(one.deltas[0], three.deltas[0], atol=1e-6 * largest_logit(case))
    np.testing.assert_array_equal(one.flips, three.flips)
    with pytest.raises(ValueError, match="'labels'; the targets are label, prediction, top_class"):
        closed_form.effects(**case, targets=("labels",))


def test_negative_strength_adds_the_feature():
    case = make_case(3)
    case["strength"] = -case["strength"]
    deltas, flips = naive(**case)
    found = closed_form.effects(**case)
    np.testing.assert_allclose(found.deltas, deltas, atol=1e-5 * largest_logit(case))
    np.testing.assert_array_equal(found.flips, flips)


def test_moments_are_those_of_all_pairs():
    case = make_case()
    groups = np.arange(N_IMAGES, dtype=np.int32) % 3
    found, n_guarded = closed_form.moments(*case.values(), groups=groups, n_groups=4, block=8)
    all_pairs = closed_form.effects(**case)
    assert n_guarded == all_pairs.n_guarded
    values = np.concatenate([np.reshape(all_pairs.deltas, (12, N_IMAGES, N_FEATURES)), all_pairs.flips[None]])
    active = case["strength"] != 0
    for g, f in np.ndindex(4, N_FEATURES):
        rows = values[:, (groups == g) & active[:, f], f].astype(np.float64)
        assert found.n[g, f] == rows.shape[1]
        if rows.shape[1]:
            mean = rows.mean(1)
            np.testing.assert_allclose(found.mean[g, :, f], mean, atol=1e-5)  # float32 sums
            squares = ((rows - mean[:, None]) ** 2).sum(1)
            np.testing.assert_allclose(found.m2[g, :, f], squares, atol=1e-4, rtol=1e-4)  # float32 sums
    assert not np.asarray(found.mean)[3].any()


@pytest.fixture(scope="module")
def network():
    return make_network()


def test_equals_the_patched_forward_pass(network):
    params, model, acts = network
    feats = np.asarray(model.encode(acts))
    strength = feats.mean((1, 2))
    clean = np.asarray(classifier.apply(params, acts, start="stage4")[0])
    labels, tops = np.arange(40, dtype=np.int32) % 6, np.arange(80, dtype=np.int32) % 6
    predictions = clean.argmax(-1).astype(np.int32)
    found = closed_form.effects(
        params.model.linear_head(params.variables),
        model.w_dec,
        acts.mean((1, 2)),
        strength,
        labels,
        predictions,
        tops,
    )
    norms = strength * np.linalg.norm(model.w_dec, axis=1)
    active = np.flatnonzero(strength.ravel() > 0)
    strongest = active[np.argsort(-norms.ravel()[active])][:100]
    others = np.random.default_rng(0).permutation(np.setdiff1d(active, strongest))[:900]
    pairs = np.concatenate([strongest, others])
    assert len(pairs) == 1000 and found.n_guarded > 0

    @jax.jit
    def patched(b, f):
        one = jax.lax.dynamic_slice_in_dim(jnp.asarray(acts), b, 1)
        return classifier.apply(
            params, one, start="stage4", edits={"stage4": edits.suppress(model, f[None])}
        )[0][0]

    rows, columns = np.unravel_index(pairs, strength.shape)
    without = np.asarray(jax.lax.map(lambda pair: patched(*pair), (jnp.asarray(rows), jnp.asarray(columns))))
    largest = np.abs(clean).max()
    for logits, b, f in zip(without.astype(np.float64), rows, columns, strict=True):
        assert bool(found.flips[b, f]) == (logits.argmax() != predictions[b])
        for t, target in enumerate((labels[b], predictions[b], tops[f])):
            expected = measures_of(logits, target) - measures_of(clean[b].astype(np.float64), target)
            np.testing.assert_allclose(np.asarray(found.deltas)[t, :, b, f], expected, atol=1e-5 * largest)


def test_the_head_is_that_of_the_network(network):
    params, _, acts = network
    head = params.model.linear_head(params.variables)
    logits = classifier.head_logits(head, jnp.asarray(acts.mean((1, 2))))
    expected = classifier.apply(params, acts, start="stage4")[0]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * float(np.abs(expected).max()))  # float32
    assert head.norm.eps == params.model.head_eps
