"""Edits: identity bit for bit, algebra, one trace for all masks, gradients, errors."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae import edits
from jsae.runtime.pytrees import pytree


@pytree
class ToySAE:
    """A ReLU SAE with the three members that edits use."""

    w_enc: jax.Array
    w_dec: jax.Array
    b_dec: jax.Array

    def encode(self, x):
        return jax.nn.relu((x - self.b_dec.reshape((1,) * (x.ndim - 1) + (-1,))) @ self.w_enc.T)

    def decode(self, f):
        return f @ self.w_dec + self.b_dec.reshape((1,) * (f.ndim - 1) + (-1,))


F, C = 12, 5


@pytest.fixture
def sae():
    keys = jax.random.split(jax.random.key(0), 3)
    w_dec = jax.random.normal(keys[0], (F, C))
    return ToySAE(jax.random.normal(keys[1], (F, C)), w_dec, jax.random.normal(keys[2], (C,)))


@pytest.fixture
def acts():
    x = jax.random.normal(jax.random.key(1), (3, 2, 4, C))
    return x.at[0, 0, 0].set(-0.0).at[1, 0, 0].set(0.0)


def bits(x):
    return np.asarray(x).view(np.uint32)


def test_keeping_everything_is_the_identity_bit_for_bit(sae, acts):
    for identity in (edits.keep(sae, jnp.ones(F)), edits.suppress(sae, []), edits.steer(sae, [3], 0.0)):
        np.testing.assert_array_equal(bits(jax.jit(lambda e, x: e(x))(identity, acts)), bits(acts))
        np.testing.assert_array_equal(bits(identity(acts)), bits(acts))


def test_taking_away_a_zero_of_either_sign_keeps_the_sign_of_zero():
    x = jnp.array([-0.0, -0.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(bits(edits.subtract(x, jnp.array([-0.0, 0.0, -0.0, 0.0, -0.0]))), bits(x))


def test_identity_holds_in_bfloat16(sae, acts):
    low = acts.astype(jnp.bfloat16)
    out = edits.keep(sae, jnp.ones(F))(low)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out).view(np.uint16), np.asarray(low).view(np.uint16))


def test_suppress_removes_the_features_part_and_keeps_the_error(sae, acts):
    f = np.asarray(sae.encode(acts))
    out = edits.suppress(sae, [2, 7])(acts)
    expected = np.asarray(acts) - f[..., [2, 7]] @ np.asarray(sae.w_dec)[[2, 7]]
    np.testing.assert_allclose(out, expected, atol=1e-5)  # float32 sums of 12 terms of size 1
    half = edits.suppress(sae, 2, keep=0.5)(acts)
    np.testing.assert_allclose(
        half, np.asarray(acts) - 0.5 * f[..., [2]] @ np.asarray(sae.w_dec)[[2]], atol=1e-5
    )


def test_clamp_steer_and_keep_only(sae, acts):
    f, w = np.asarray(sae.encode(acts)), np.asarray(sae.w_dec)
    clamped = np.array(f)
    clamped[..., [1, 4]] = [2.0, 3.0]
    np.testing.assert_allclose(
        edits.clamp(sae, [1, 4], jnp.array([2.0, 3.0]))(acts), np.asarray(acts) + (clamped - f) @ w, atol=1e-5
    )
    np.testing.assert_allclose(edits.steer(sae, [1], 2.0)(acts), np.asarray(acts) + 2.0 * w[1], atol=1e-5)
    only = np.zeros_like(f)
    only[..., [1, 4]] = f[..., [1, 4]]
    np.testing.assert_allclose(
        edits.keep_only(sae, [1, 4])(acts), np.asarray(acts) + (only - f) @ w, atol=1e-5
    )
    np.testing.assert_allclose(
        edits.keep_only(sae, [1, 4], mode="replace")(acts), sae.decode(only), atol=1e-5
    )


def test_replace_mode_drops_the_error(sae, acts):
    spliced = edits.keep(sae, jnp.ones(F), mode="replace")(acts)
    np.testing.assert_allclose(spliced, sae.decode(sae.encode(acts)), atol=1e-6)


def test_compose_encodes_once_and_keeps_the_order(sae, acts):
    f, w = np.asarray(sae.encode(acts)), np.asarray(sae.w_dec)
    both = edits.compose(edits.clamp(sae, [1], 2.0), edits.suppress(sae, [1, 3], keep=0.5))
    changed = np.array(f)
    changed[..., 1], changed[..., 3] = 1.0, f[..., 3] * 0.5
    np.testing.assert_allclose(both(acts), np.asarray(acts) + (changed - f) @ w, atol=1e-5)
    reverse = edits.compose(edits.suppress(sae, [1, 3], keep=0.5), edits.clamp(sae, [1], 2.0))
    changed[..., 1] = 2.0
    np.testing.assert_allclose(reverse(acts), np.asarray(acts) + (changed - f) @ w, atol=1e-5)
    undone = edits.compose(edits.steer(sae, [2], 1.5), edits.steer(sae, [2], -1.5))
    np.testing.assert_array_equal(bits(undone(acts)), bits(acts))


def test_compose_with_a_mask_of_positions(sae, acts):
    mask = jnp.ones((*acts.shape[:3], F)).at[1, 0, 2, 4].set(0.0)
    both = edits.compose(edits.suppress(sae, [5]), edits.keep(sae, mask))
    f, w = np.asarray(sae.encode(acts)), np.asarray(sae.w_dec)
    changed = np.array(f)
    changed[..., 5] = 0
    changed[1, 0, 2, 4] = 0
    np.testing.assert_allclose(both(acts), np.asarray(acts) + (changed - f) @ w, atol=1e-5)


def test_an_edit_at_chosen_positions_leaves_the_others_bit_for_bit(sae, acts):
    height, width = acts.shape[1:3]
    for make, whole in (
        (lambda: np.indices((height, width)).sum(0) % 2, edits.suppress(sae, [1, 3])),
        (lambda: np.random.default_rng(0).integers(0, 2, acts.shape[:3]), edits.steer(sae, [0], 2.0)),
        (lambda: (np.arange(len(acts)) % 2)[:, None, None], edits.clamp(sae, [2], 1.5)),
    ):
        where = make()
        chosen = np.broadcast_to(where, acts.shape[:3]).astype(bool)
        found, everywhere = np.asarray(edits.at(whole, where)(acts)), np.asarray(whole(acts))
        np.testing.assert_array_equal(found[~chosen], np.asarray(acts)[~chosen])
        np.testing.assert_array_equal(found[chosen], everywhere[chosen])
        assert (found != np.asarray(acts)).any()
    with pytest.raises(ValueError, match=r"positions are \[H, W\] or \[B, H, W\], got \[4\]"):
        edits.at(edits.suppress(sae, [1]), np.ones(4))


def test_edits_at_positions_compose(sae, acts):
    where = np.indices(acts.shape[1:3]).sum(0) % 2
    left, right = edits.at(edits.suppress(sae, [1]), where), edits.at(edits.steer(sae, [2], 1.0), 1 - where)
    found = np.asarray(edits.compose(left, right)(acts))
    expected = np.where(where[None, :, :, None] == 1, left(acts), right(acts))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())  # another product


@pytest.fixture
def other(acts):
    """The same images in another run."""
    return acts + jax.random.normal(jax.random.key(7), acts.shape)


def test_set_to_moves_the_named_features_to_another_runs_values_and_nothing_else(sae, acts, other):
    f, values, w = (np.asarray(each) for each in (sae.encode(acts), sae.encode(other), sae.w_dec))
    named = [7, 2]
    expected = np.asarray(acts) + (values - f)[..., named] @ w[named]
    for given in (values, values[..., named]):
        np.testing.assert_allclose(edits.set_to(sae, named, given)(acts), expected, atol=1e-5)
    one = edits.set_to(sae, named, values[1:2, :1, :, :])(acts)  # broadcast over images and rows
    expected = np.asarray(acts) + (values[1:2, :1] - f)[..., named] @ w[named]
    np.testing.assert_allclose(one, expected, atol=1e-5)
    clamped = edits.clamp(sae, named, 1.5)(acts)
    for number in (1.5, np.full((1, 1, 1, 1), 1.5), np.full(2, 1.5)):
        np.testing.assert_array_equal(edits.set_to(sae, named, number)(acts), clamped)
    whole = edits.set_to(sae, range(F), values, mode="replace")(acts)
    np.testing.assert_array_equal(bits(whole), bits(sae.decode(sae.encode(other))))


def test_set_to_the_values_that_are_there_is_the_identity_bit_for_bit(sae, acts):
    for identity in (
        edits.set_to(sae, range(F), sae.encode(acts)),
        edits.set_to(sae, [3, 1], sae.encode(acts)[..., [3, 1]]),
        edits.set_to(sae, [], sae.encode(acts + 1)),
        edits.set_to(sae, [], 2.0),
    ):
        np.testing.assert_array_equal(bits(identity(acts)), bits(acts))


def test_set_to_composes_is_restricted_and_has_a_gradient(sae, acts, other):
    values = sae.encode(other)
    f, w, v = np.asarray(sae.encode(acts)), np.asarray(sae.w_dec), np.asarray(values)
    both = edits.compose(edits.set_to(sae, [1, 4], values), edits.suppress(sae, [4, 5], keep=0.5))
    changed = np.array(f)
    changed[..., 1], changed[..., 4], changed[..., 5] = v[..., 1], v[..., 4] / 2, f[..., 5] / 2
    np.testing.assert_allclose(both(acts), np.asarray(acts) + (changed - f) @ w, atol=1e-5)
    where = np.indices(acts.shape[1:3]).sum(0) % 2
    whole, part = edits.set_to(sae, [1, 4], values), edits.at(edits.set_to(sae, [1, 4], values), where)
    np.testing.assert_array_equal(part(acts)[:, where == 0], acts[:, where == 0])
    np.testing.assert_array_equal(part(acts)[:, where == 1], whole(acts)[:, where == 1])
    weights = jax.random.normal(jax.random.key(4), acts.shape)
    slopes = jax.jit(jax.grad(lambda v: jnp.sum(weights * edits.set_to(sae, [4], v)(acts))))(values[..., [4]])
    expected = (np.asarray(weights) @ w[4])[..., None]  # also where a value is the clean one
    np.testing.assert_allclose(slopes, expected, rtol=1e-4, atol=1e-5)
    numbered = jax.jit(lambda i: edits.set_to(sae, i, values)(acts))(jnp.int32(4))
    np.testing.assert_allclose(numbered, edits.set_to(sae, [4], values)(acts), atol=1e-6)


def test_set_to_says_which_values_it_takes(sae, acts):
    f = sae.encode(acts)
    with pytest.raises(ValueError, match=r"values are \[B, H, W, 12\], .* each of the 2 named.* got \[3\]"):
        edits.set_to(sae, [1, 2], np.ones(3))
    with pytest.raises(ValueError, match=r"got \[1, 3, 2, 4, 12\]"):
        edits.set_to(sae, [1, 2], f[None])
    with pytest.raises(ValueError, match="named twice, and values has a number for each"):
        edits.set_to(sae, [1, 1], f[..., :2])
    with pytest.raises(TypeError, match="values is a number or an array of numbers, got 'a'"):
        edits.set_to(sae, [1], "a")
    with pytest.raises(ValueError, match=r"no feature 12; features are 0 \.\. 11"):
        edits.set_to(sae, [12], f)
    with pytest.raises(ValueError, match="no mode 'zero'"):
        edits.set_to(sae, [1], f, mode="zero")
    for images in (acts[:2], acts[:1], acts[:, :1]):  # the second would broadcast to three images
        with pytest.raises(ValueError, match=r"this edit is of \[3, 2, 4, 12\]: .* the same grid"):
            edits.set_to(sae, [1], f)(images)


def test_compose_refuses_what_cannot_be_one_edit(sae):
    other = dataclasses.replace(sae, w_dec=sae.w_dec + 1)
    with pytest.raises(ValueError, match="different SAEs"):
        edits.compose(edits.suppress(sae, [1]), edits.suppress(other, [1]))
    with pytest.raises(ValueError, match="'delta' and 'replace'"):
        edits.compose(edits.suppress(sae, [1]), edits.suppress(sae, [1], mode="replace"))
    with pytest.raises(ValueError, match="at least one"):
        edits.compose()
    copied = jax.tree.map(jnp.array, sae)
    edits.compose(edits.suppress(sae, [1]), edits.suppress(copied, [2]))
    jax.jit(lambda a, b: edits.compose(a, b).keep)(edits.suppress(sae, [1]), edits.suppress(sae, [2]))


def test_one_trace_serves_every_mask(sae, acts):
    traces = 0

    @jax.jit
    def apply(e, x):
        nonlocal traces
        traces += 1
        return e(x)

    for i in range(100):
        mask = jax.random.bernoulli(jax.random.key(i), 0.5, (F,)).astype(jnp.float32)
        apply(edits.keep(sae, mask), acts)
    apply(edits.suppress(sae, [3]), acts)
    apply(edits.clamp(sae, [3], 4.0), acts)
    assert traces == 1


def test_vmap_over_masks_equals_a_loop(sae, acts):
    masks = jax.random.uniform(jax.random.key(5), (6, F))
    many = jax.vmap(lambda m: edits.keep(sae, m)(acts))(masks)
    for mask, out in zip(masks, many, strict=True):
        np.testing.assert_allclose(out, edits.keep(sae, mask)(acts), atol=1e-5)  # vmap reorders float32 sums


def test_the_gradient_at_keep_one_is_the_first_order_effect(sae, acts):
    weights = jax.random.normal(jax.random.key(9), acts.shape)

    def readout(mask):
        return jnp.sum(weights * edits.keep(sae, mask)(acts))

    grad = jax.grad(readout)(jnp.ones(F))
    f = sae.encode(acts)
    expected = jnp.einsum("bhwf,fc,bhwc->f", f, sae.w_dec, weights)
    np.testing.assert_allclose(grad, expected, rtol=1e-4, atol=1e-4)  # sums of 24 float32 terms
    assert np.abs(np.asarray(grad)).max() > 0.1
    np.testing.assert_allclose(jax.jacfwd(readout)(jnp.ones(F)), grad, rtol=1e-4, atol=1e-4)


def test_amounts_and_positions_of_a_composed_edit_go_through_jit_vmap_and_grad(sae, acts):
    amounts = jnp.array([0.5, -1.0, 2.0])
    places = jax.nn.one_hot(jnp.arange(3), acts.shape[1] * acts.shape[2]).reshape(3, *acts.shape[1:3])
    weights = jax.random.normal(jax.random.key(4), acts.shape)

    def edited(amount, where):
        both = edits.compose(edits.suppress(sae, [1]), edits.steer(sae, [2], amount))
        return edits.at(both, where)(acts)

    def readout(amount, where):
        return jnp.sum(weights * edited(amount, where))

    many = jax.jit(jax.vmap(edited))(amounts, places)
    slopes = jax.jit(jax.vmap(jax.grad(readout)))(amounts, places)
    for i in range(3):
        # float32 sums in another order
        np.testing.assert_allclose(many[i], edited(amounts[i], places[i]), atol=1e-5)
        expected = np.einsum("bhwc,hw,c->", weights, places[i], sae.w_dec[2])
        np.testing.assert_allclose(slopes[i], expected, rtol=1e-4, atol=1e-5)


def test_unknown_features_and_modes_are_named(sae):
    with pytest.raises(ValueError, match=r"no feature 12; features are 0 \.\. 11"):
        edits.suppress(sae, [0, 12])
    with pytest.raises(ValueError, match=r"no feature -1; features are 0 \.\. 11"):
        edits.steer(sae, -1, 1.0)
    with pytest.raises(TypeError, match="integer"):
        edits.clamp(sae, [1.5], 1.0)
    with pytest.raises(TypeError, match="integer"):
        edits.suppress(sae, np.ones(F, bool))
    with pytest.raises(ValueError, match="no mode 'zero'; the modes are delta, replace"):
        edits.suppress(sae, [1], mode="zero")
    with pytest.raises(ValueError, match=r"keep is \[12\]"):
        edits.keep(sae, jnp.ones(11))
    with pytest.raises(ValueError, match="5 channels"):
        edits.suppress(sae, [1])(jnp.ones((1, 2, 2, 4)))


def test_features_may_be_traced(sae, acts):
    one = jax.jit(lambda i: edits.suppress(sae, i)(acts))(jnp.int32(4))
    np.testing.assert_allclose(one, edits.suppress(sae, [4])(acts), atol=1e-6)


def test_mean_ablation(acts):
    mean = jnp.arange(C, dtype=jnp.float32)
    out = edits.MeanAblation(mean)(acts)
    np.testing.assert_array_equal(out, np.broadcast_to(mean, acts.shape))


@pytest.mark.parametrize(
    "features, words",
    [
        ("12", "got <U2"),
        (12.0, "got float64"),
        ([True, False], r"got bool: .*np\.flatnonzero\(mask\)"),
        (None, "got object"),
        ({1, 2}, "got object"),
    ],
)
def test_what_numbers_no_features_is_refused(sae, features, words):
    for make in (
        edits.suppress,
        edits.keep_only,
        lambda *a: edits.clamp(*a, 1.0),
        lambda *a: edits.steer(*a, 1.0),
        lambda *a: edits.set_to(*a, 1.0),
    ):
        with pytest.raises(TypeError, match=words):
            make(sae, features)


def test_amounts_are_one_number_or_one_a_feature(sae):
    for make in (edits.suppress, edits.clamp, edits.steer):
        with pytest.raises(ValueError, match=r"a number, or one for each of the 2 features, got shape \[3\]"):
            make(sae, [1, 2], [0.1, 0.2, 0.3])
        with pytest.raises(ValueError, match="named twice"):
            make(sae, [1, 1], [0.1, 0.2])
        with pytest.raises(TypeError, match="a number or an array of numbers, got 'a'"):
            make(sae, [1], "a")
        np.testing.assert_array_equal(make(sae, [1, 1], 0.5).keep, make(sae, [1], 0.5).keep)
        np.testing.assert_array_equal(make(sae, [1, 1], 0.5).shift, make(sae, [1], 0.5).shift)
    with pytest.raises(TypeError, match="keep is a number or an array of numbers, got 'a'"):
        edits.keep(sae, "a")
