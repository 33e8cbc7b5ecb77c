"""Edits: interventions on activations as data, patched into a forward pass at a named site.

An edit is a pytree that is called on activations, acts [B, H, W, C] -> acts [B, H, W, C], and knows
nothing about the model around it. `FeatureEdit` changes SAE features. With f [B, H, W, F] encoded once
from what arrives, in raw units (those of the activations, f @ w_dec is in them),

    f' = keep * f + shift
    mode "delta"    x' = x - (f - f') @ w_dec      the SAE's error stays in x'; the default
    mode "replace"  x' = decode(f')                the error is dropped: compare with the all-ones "replace"
                                                   edit, not with the unedited model

With keep = 1 and shift = 0 the delta mode returns x bit for bit (the sign of zero included), and its
derivative with respect to `keep` is the ordinary one there, so first-order attributions work. No branch
depends on a value: one trace of a jitted function serves every mask, and `jax.vmap` over `keep` runs many
ablations at once, sharing the network before the site.

    edit = suppress(sae, [12, 407])
    logits, _ = classifier(images, edits={site: edit})
    one_each = jax.vmap(lambda m: classifier(images, edits={site: keep(sae, m)})[0])(masks)   # [M, B, L]

`set_to` gives features the values that they have in another run of the same images, so that only what they
carry of the difference between the two runs arrives. `at` restricts an edit to positions or images. Several
edits of one SAE at one site are joined by `compose`: features are encoded once and mapped through all of them
in order. Chaining the calls instead, b(a(x)), encodes again what a has changed.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jsae.runtime.pytrees import pytree

MODES = ("delta", "replace")


@jax.custom_jvp
def _subtract(x, delta):
    """x - delta, and x itself, bit for bit, where delta is zero of either sign."""
    return jnp.where(delta == 0, x, x - delta)


@_subtract.defjvp
def _subtract_jvp(primals, tangents):
    return _subtract(*primals), tangents[0] - tangents[1]  # a plain `where` has no derivative at delta = 0


def subtract(acts: jax.Array, delta: jax.Array) -> jax.Array:
    """acts - delta in float32, returned in the dtype of acts; exactly acts where delta is zero.

    Args:
      acts: activations, any shape, raw units.
      delta: what is taken away, the same shape.
    """
    wide = jnp.promote_types(acts.dtype, jnp.float32)
    return _subtract(acts.astype(wide), delta.astype(wide)).astype(acts.dtype)


def _align(values: jax.Array, ndim: int) -> jax.Array:
    """The array with leading axes of length 1, so that it broadcasts against `ndim` axes."""
    return values.reshape((1,) * max(ndim - values.ndim, 0) + values.shape)


def _check_channels(acts: jax.Array, sae) -> None:
    n_channels = sae.w_dec.shape[1]
    if acts.shape[-1] != n_channels:
        raise ValueError(
            f"the SAE of this edit was trained on {n_channels} channels, the activations that arrive are "
            f"{list(acts.shape)}: is the edit at the SAE's site?"
        )


def _check_positions(feats: jax.Array, values: jax.Array) -> None:
    try:
        fits = np.broadcast_shapes(values.shape, feats.shape) == feats.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"the features that arrive are {list(feats.shape)}, this edit is of {list(values.shape)}: "
            "values or masks of single positions belong to the same images and the same grid"
        )


@pytree
class FeatureEdit:
    """f -> keep * f + shift for the features of one SAE; made by the functions below.

    Attributes:
      sae: the SAE, a pytree with encode, decode and w_dec [F, C].
      keep: [F], or any shape that broadcasts to f [B, H, W, F] (a mask of single positions).
      shift: like `keep`, in raw units.
      mode: "delta" or "replace", static.
    """

    sae: Any
    keep: jax.Array
    shift: jax.Array
    mode: str = dataclasses.field(default="delta", metadata={"static": True})

    def __call__(self, acts: jax.Array) -> jax.Array:
        """Edited activations, of the shape and dtype of acts [..., C].

        Raises ValueError on another C, and on images or a grid that keep or shift do not broadcast to.
        """
        _check_channels(acts, self.sae)
        feats = self.sae.encode(acts)  # [..., F]
        keep, shift = _align(self.keep, feats.ndim), _align(self.shift, feats.ndim)
        _check_positions(feats, keep)
        _check_positions(feats, shift)
        if self.mode == "replace":
            return self.sae.decode(keep * feats + shift).astype(acts.dtype)
        change = (1 - keep) * feats - shift  # [..., F]
        return subtract(acts, jnp.matmul(change, self.sae.w_dec, precision="float32"))


@pytree
class MeanAblation:
    """Activations replaced by their mean: the site carries no information about the image.

    Attributes:
      mean: [C], raw units; the mean over the train vectors.
    """

    mean: jax.Array

    def __call__(self, acts: jax.Array) -> jax.Array:
        """The mean at every position, in the shape and dtype of acts [..., C]."""
        return jnp.broadcast_to(_align(self.mean, acts.ndim).astype(acts.dtype), acts.shape)


def check_features(sae: Any, features: ArrayLike) -> jax.Array:
    """The feature numbers as int32 [n]; a traced array passes unchecked.

    Raises:
      TypeError: they are not integers.
      ValueError: one of them lies outside 0 .. F-1.
    """
    if isinstance(features, jax.core.Tracer):
        return features.reshape(-1)
    numbers = np.asarray(features).reshape(-1)
    if numbers.size == 0:
        return jnp.zeros(0, jnp.int32)
    if numbers.dtype.kind not in "iu":
        hint = "; np.flatnonzero(mask) numbers those of a mask" if numbers.dtype == bool else ""
        raise TypeError(
            f"features are integer numbers of SAE features, got {numbers.dtype}: {features!r}{hint}"
        )
    n_features = sae.w_dec.shape[0]
    unknown = numbers[(numbers < 0) | (numbers >= n_features)]
    if unknown.size:
        raise ValueError(
            f"this SAE has no feature {', '.join(map(str, unknown[:5]))}; features are 0 .. {n_features - 1}"
        )
    return jnp.asarray(numbers, jnp.int32)


def _floats(value, name: str) -> jax.Array:
    on_host = not any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(value))  # nor traced
    if on_host and np.asarray(value).dtype.kind not in "biuf":
        raise TypeError(f"{name} is a number or an array of numbers, got {value!r}")
    return jnp.asarray(value, jnp.float32)


def _of_each(value, numbers: jax.Array, name: str) -> jax.Array:
    """`value` as float32, one number or [n]. Raises unless it is that, and if a feature is given two."""
    array, n = _floats(value, name), len(numbers)
    if array.shape not in ((), (1,), (n,)):
        raise ValueError(
            f"{name} is a number, or one for each of the {n} features, got shape {list(array.shape)}"
        )
    if array.shape == (n,):
        _check_named_once(numbers, name)
    return array


def _check_named_once(numbers: jax.Array, name: str) -> None:
    if not isinstance(numbers, jax.core.Tracer) and len(np.unique(numbers)) < len(numbers):
        raise ValueError(f"a feature is named twice, and {name} has a number for each: {np.asarray(numbers)}")


def _make(sae, keep, shift, mode) -> FeatureEdit:
    if mode not in MODES:
        raise ValueError(f"there is no mode {mode!r}; the modes are {', '.join(MODES)}")
    return FeatureEdit(sae, keep, shift, mode)


def _ones(sae):
    return jnp.ones(sae.w_dec.shape[0], jnp.float32)


def suppress(sae: Any, features: ArrayLike, keep: ArrayLike = 0.0, *, mode: str = "delta") -> FeatureEdit:
    """Scale the named features by `keep` (0 removes them; a number, or one for each named feature).

    Raises TypeError for features that are no whole numbers or values that are no numbers, ValueError for a
    feature that the SAE does not have, values that are not one per feature, or an unknown mode.
    """
    ones, numbers = _ones(sae), check_features(sae, features)
    return _make(sae, ones.at[numbers].set(_of_each(keep, numbers, "keep")), 0 * ones, mode)


def keep(sae: Any, keep: ArrayLike, *, mode: str = "delta") -> FeatureEdit:
    """Scale every feature by its entry of `keep`, [F] or broadcastable to [B, H, W, F].

    Raises ValueError if the last axis is not F, or for an unknown mode.
    """
    keep, n_features = _floats(keep, "keep"), sae.w_dec.shape[0]
    if keep.ndim == 0 or keep.shape[-1] != n_features:
        raise ValueError(
            f"keep is [{n_features}] or broadcastable to [B, H, W, {n_features}], got {list(keep.shape)}"
        )
    return _make(sae, keep, 0 * _ones(sae), mode)


def keep_only(sae: Any, features: ArrayLike, *, mode: str = "delta") -> FeatureEdit:
    """Remove every feature but the named ones.

    Raises TypeError for features that are no whole numbers or values that are no numbers, ValueError for a
    feature that the SAE does not have, values that are not one per feature, or an unknown mode.
    """
    ones = _ones(sae)
    return _make(sae, (0 * ones).at[check_features(sae, features)].set(1.0), 0 * ones, mode)


def clamp(sae: Any, features: ArrayLike, value: ArrayLike, *, mode: str = "delta") -> FeatureEdit:
    """Set the named features to `value` at every position, in raw units (a number, or one per feature).

    Raises TypeError for features that are no whole numbers or values that are no numbers, ValueError for a
    feature that the SAE does not have, values that are not one per feature, or an unknown mode.
    """
    ones, numbers = _ones(sae), check_features(sae, features)
    value = _of_each(value, numbers, "value")
    return _make(sae, ones.at[numbers].set(0.0), (0 * ones).at[numbers].set(value), mode)


def steer(sae: Any, features: ArrayLike, amount: ArrayLike, *, mode: str = "delta") -> FeatureEdit:
    """Add `amount` to the named features at every position, in raw units (a number, or one per feature).

    Raises TypeError for features that are no whole numbers or values that are no numbers, ValueError for a
    feature that the SAE does not have, values that are not one per feature, or an unknown mode.
    """
    ones, numbers = _ones(sae), check_features(sae, features)
    return _make(sae, ones, (0 * ones).at[numbers].set(_of_each(amount, numbers, "amount")), mode)


def set_to(sae: Any, features: ArrayLike, values: ArrayLike, *, mode: str = "delta") -> FeatureEdit:
    """Set the named features, position by position, to the values that they have in another run.

        changed = sae.encode(classifier(changed_images)[1][site])       # [B, H, W, F]
        logits, _ = classifier(images, edits={site: set_to(sae, [12, 407], changed)})

    is what the change of the images does by way of these two features; the other way round it is how much
    of its effect they are needed for. In mode "delta" x' = x + sum over them of (value - f) * w_dec, so where
    a value equals f, to the last bit, x stays as it is; f is encoded from the activations that arrive, and
    programs compiled apart may round differently. With all features in mode "replace", x' = decode(values).

    Args:
      sae: the SAE.
      features: n feature numbers.
      values: raw units; all features of the other run [B, H, W, F], of which the named ones are taken, or
        [B, H, W, n] in the order named; or anything that broadcasts to the latter (a number is `clamp`).
      mode: "delta" or "replace".

    Raises TypeError for features that are no whole numbers or values that are no numbers, ValueError for a
    feature that the SAE does not have, another last axis, more than 4 axes, or an unknown mode; the edit
    raises ValueError when it meets other images or another grid than those of the values.
    """
    ones, numbers, values = _ones(sae), check_features(sae, features), _floats(values, "values")
    n, n_features = len(numbers), len(ones)
    last = values.shape[-1] if values.ndim else 1
    if values.ndim > 4 or last not in (1, n, n_features):
        raise ValueError(
            f"values are [B, H, W, {n_features}], all features of another run, or one for each of the {n} "
            f"named, [B, H, W, {n}], or broadcastable to that; got {list(values.shape)}"
        )
    if last == n_features:
        values = values[..., numbers]
    elif last == n:
        _check_named_once(numbers, "values")
    shift = jnp.zeros((*values.shape[:-1], n_features), jnp.float32).at[..., numbers].set(values)
    return _make(sae, ones.at[numbers].set(0.0), shift, mode)


def at(edit: FeatureEdit, where: ArrayLike) -> FeatureEdit:
    """The edit at chosen positions or images only; elsewhere features stay as they are.

    Args:
      edit: of mode "delta"; in mode "replace" other positions still lose the SAE's error.
      where: bool or 0..1, [H, W] for the same positions of every image, [B, H, W], or [B, 1, 1] for images.

    Raises ValueError for another number of axes.
    """
    where = jnp.asarray(where, jnp.float32)
    if where.ndim not in (2, 3):
        raise ValueError(f"positions are [H, W] or [B, H, W], got {list(where.shape)}")
    ndim = max(where.ndim + 1, edit.keep.ndim, edit.shift.ndim)
    where, keep, shift = (_align(each, ndim) for each in (where[..., None], edit.keep, edit.shift))
    return dataclasses.replace(edit, keep=1 - where * (1 - keep), shift=where * shift)


def compose(*edits: FeatureEdit) -> FeatureEdit:
    """One edit that maps the features, encoded once, through all of `edits` from the first to the last.

    Raises:
      ValueError: no edits, edits of different SAEs, or of different modes.
    """
    if not edits:
        raise ValueError("compose needs at least one edit")
    first = edits[0]
    for other in edits[1:]:
        if other.mode != first.mode:
            raise ValueError(f"edits of modes {first.mode!r} and {other.mode!r} cannot be one edit")
        if not _same(first.sae, other.sae):
            raise ValueError("the edits belong to different SAEs; compose joins edits of one SAE")
    keep, shift = first.keep, first.shift
    for other in edits[1:]:
        ndim = max(keep.ndim, shift.ndim, other.keep.ndim, other.shift.ndim)
        factor = _align(other.keep, ndim)
        keep, shift = _align(keep, ndim) * factor, _align(shift, ndim) * factor + _align(other.shift, ndim)
    return FeatureEdit(first.sae, keep, shift, first.mode)


def _same(a, b) -> bool:
    """Whether two SAEs are one; of traced ones only the structure and the shapes can be compared."""
    if a is b:
        return True
    if jax.tree.structure(a) != jax.tree.structure(b):  # type: ignore[operator]
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(
        x is y
        or (np.shape(x) == np.shape(y) and any(isinstance(v, jax.core.Tracer) for v in (x, y)))
        or (not any(isinstance(v, jax.core.Tracer) for v in (x, y)) and np.array_equal(x, y))
        for x, y in pairs
    )
