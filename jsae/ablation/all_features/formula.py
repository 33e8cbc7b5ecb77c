"""The formula of `closed_form` itself: a block of features removed from a batch of images.

A pair costs O(L): its logits are formed where they are reduced, and again for each reduction, which costs
less than keeping them. `closed_form` cuts the features into blocks, takes the clean side away and reduces
over images.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jsae.ablation.effects import measures_of
from jsae.classifier import Head, head_logits

GUARD = 0.05  # below this share of |P|^2 the closed form loses digits to cancellation
_LOG2_E = 1.4426950408889634
_EXP2 = (0.0013276472, 0.009675541, 0.05550713, 0.2402212, 0.69314694, 1.0000001)  # highest power first
_DIRECT_PAIRS = 256  # guarded pairs computed again at a time


def sides(
    head: Head,
    w_dec: jax.Array,
    strength: jax.Array,
    top_classes: jax.Array,
    pooled: jax.Array,
    labels: jax.Array,
    predictions: jax.Array,
    targets: Sequence[str],
) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
    """What the formula needs of B images and of F features; arguments as for `closed_form.effects`.

    Returns:
      images: pooled [B, C], squared |P|^2 [B], projected P @ G [B, L], offset b @ W + c [L], label and
        prediction int [B], rest and clean of `_offset_of_the_rest` and `_clean_by_class`.
      features: strength a and size q [B, F], w_dec [F, C], projected V @ G [F, L], top_class int [F].
    """
    norm = head.norm
    if norm is None:
        centred, rows, kernel, offset = pooled, w_dec, head.kernel, head.offset
    else:
        centred = pooled - pooled.mean(-1, keepdims=True)  # P [B, C]
        rows = w_dec - w_dec.mean(-1, keepdims=True)  # V [F, C]
        kernel, offset = norm.scale[:, None] * head.kernel, norm.bias @ head.kernel + head.offset  # G, [L]
    squared = jnp.square(centred).sum(-1)
    size = squared[:, None] - 2 * strength * (centred @ rows.T)
    size += strength**2 * jnp.square(rows).sum(-1)[None, :]
    images = {
        "pooled": pooled,
        "squared": squared,
        "projected": centred @ kernel,
        "offset": offset,
        "label": labels,
        "prediction": predictions,
    }
    images["rest"] = _offset_of_the_rest(images, targets)
    images["clean"] = _clean_by_class(head, images)
    features = {
        "strength": strength,
        "size": jnp.maximum(size, 0),
        "w_dec": w_dec,
        "projected": rows @ kernel,
        "top_class": top_classes,
    }
    return images, features


def ablated(
    head: Head, images: dict[str, jax.Array], features: dict[str, jax.Array], targets: Sequence[str]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Measures of all pairs of B images and f features, each feature removed from each image.

    Args:
      head: the classifier's head.
      images, features: from `sides`; of the features, f.
      targets: names of TARGETS.

    Returns:
      values [target, measure, B, f], flips [B, f], the number of pairs computed directly.
    """
    strength, size = features["strength"], features["size"]  # [B, f]
    scale = _scale(head, size)
    index = index_of(images, features)
    names = list(dict.fromkeys((*targets, "prediction")))
    logit = {name: _logit_of(images, features, scale, index[name]) for name in names}
    rest = _largest_of_the_rest(images, features, scale, index["top_class"] if "top_class" in names else None)
    others = {name: _largest_other(name, logit, index, rest) for name in names}
    largest = functools.reduce(jnp.maximum, logit.values(), rest)
    log_total = largest + jnp.log(_total_exp(images, features, scale, largest))

    def values_of(name):
        margin = logit[name] - others[name]  # infinite with one class, whose clean margin is NaN
        log_confidence = logit[name] - log_total
        return jnp.stack([logit[name], margin, jnp.exp(log_confidence), log_confidence])

    values = jnp.stack([values_of(name) for name in targets])  # [target, measure, B, f]
    flips = others["prediction"] > logit["prediction"]
    if head.norm is None:  # linear: nothing cancels
        return values, flips, jnp.zeros((), jnp.int32)
    guarded = (size < GUARD * images["squared"][:, None]) & (strength != 0)
    n_guarded = guarded.sum()
    values, flips = jax.lax.cond(
        n_guarded > 0,
        lambda *found: _directly(head, images, features, index, targets, guarded, *found),
        lambda *found: found,
        *(values, flips),
    )
    return values, flips, n_guarded


def clean_of(by_class: jax.Array, index: jax.Array) -> jax.Array:
    """Clean measures [measure, B, 1 or f] of the classes `index`, [B, 1] or [1, f], from [measure, B, L]."""
    if index.shape[0] == 1:
        return by_class[:, :, index[0]]
    return jnp.take_along_axis(by_class, index[None], axis=-1)


def index_of(images: dict[str, jax.Array], features: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Target -> its class, [B, 1] where it belongs to the image, [1, f] where it belongs to the feature."""
    return {
        "label": images["label"][:, None],
        "prediction": images["prediction"][:, None],
        "top_class": features["top_class"][None, :],
    }


def _scale(head: Head, size: jax.Array) -> jax.Array:
    """What the layer norm multiplies with where |P|^2 is `size`; 1 without one."""
    if head.norm is None:
        return jnp.ones_like(size)
    return jax.lax.rsqrt(size / len(head.norm.scale) + head.norm.eps)


# XLA fuses elementwise work into a reduction that is its only user; with several users it writes the array to
# memory first. So each reduction over the classes spells out the logits for itself, in axes of its own.


def _logit_of(images, features, scale, index) -> jax.Array:
    """The logit [B, f] of one class per pair, `index` being [B, 1] or [1, f]."""
    if index.shape[0] == 1:
        image_side = images["projected"][:, index[0]]  # [B, f]
        feature_side = jnp.take_along_axis(features["projected"], index.T, axis=1).T  # [1, f]
    else:
        image_side = jnp.take_along_axis(images["projected"], index, axis=1)  # [B, 1]
        feature_side = features["projected"].T[index[:, 0]]  # [B, f]
    return (image_side - features["strength"] * feature_side) * scale + images["offset"][index]


def _offset_of_the_rest(images: dict, targets: Sequence[str]) -> jax.Array:
    """The offset [B, L], -inf at the prediction and, where it is a target, the label of each image."""
    index = [images[name] for name in ("label", "prediction") if name in (*targets, "prediction")]
    hidden = jnp.stack(index)[..., None] == jnp.arange(images["offset"].shape[0])[None, None, :]
    return jnp.where(hidden.any(0), -jnp.inf, images["offset"][None, :])


def _largest_of_the_rest(images, features, scale, top_class) -> jax.Array:
    """The largest logit [B, f] of the classes that are no target, -inf if there is none; one pass for all."""
    offset = images["rest"][:, None, :]  # [B, 1, L]
    if top_class is not None:
        classes = jnp.arange(offset.shape[-1])[None, None, :]
        offset = jnp.where(top_class[..., None] == classes, -jnp.inf, offset)  # [B, f, L]
    moved = features["strength"][..., None] * features["projected"][None]
    logits = (images["projected"][:, None, :] - moved) * scale[..., None]
    return jnp.max(logits + offset, axis=-1)


def _largest_other(name: str, logit: dict, index: dict, rest: jax.Array) -> jax.Array:
    """The largest logit [B, f] of all classes but that of target `name`: of the rest or another target."""
    for other in logit:
        if other != name:
            rest = jnp.maximum(rest, jnp.where(index[other] == index[name], -jnp.inf, logit[other]))
    return rest


def _total_exp(images, features, scale, largest) -> jax.Array:
    """Sum over the classes of exp(logit - largest), [B, f]; powers of two are cheaper than exp."""
    scale, offset, largest = (array * _LOG2_E for array in (scale, images["offset"], largest))
    moved = features["strength"].T[..., None] * features["projected"][:, None, :]  # [f, B, L]
    logits = (images["projected"][None] - moved) * scale.T[..., None] + offset[None, None, :]

    def total(exp2):
        return lambda logits, largest: jnp.sum(exp2(logits - largest.T[..., None]), axis=-1).T

    return jax.lax.platform_dependent(logits, largest, cpu=total(_exp2), default=total(jnp.exp2))


def _exp2(x: jax.Array) -> jax.Array:
    """2^x for x <= 0 within 3e-7 of it, not below 2^-126.

    On a CPU XLA's exp would take a third of the whole time, and this takes half of that: 2^x = 2^n 2^r with n
    the nearest integer, 2^r by a polynomial (of those of degree 5 the one with the smallest relative error on
    [-1/2, 1/2], 8e-8), and n added to its exponent.
    """
    x = jnp.maximum(x, -126)
    whole = jnp.round(x)
    power: Any = _EXP2[0]
    for factor in _EXP2[1:]:
        power = power * (x - whole) + factor
    bits = jax.lax.bitcast_convert_type(power, jnp.int32) + (whole.astype(jnp.int32) << 23)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def _clean_by_class(head: Head, images: dict) -> jax.Array:
    """The same with nothing removed and every class as the target, [measure, B, L]."""
    logits = images["projected"] * _scale(head, images["squared"])[:, None] + images["offset"][None, :]
    of_class = jax.lax.map(
        lambda target: measures_of(logits, jnp.full(logits.shape[0], target)), jnp.arange(logits.shape[1])
    )
    return jnp.moveaxis(of_class, 0, -1)


def _directly(head, images, features, index, targets, guarded, values, flips):
    """The values and flips of a block with the guarded pairs computed again, a fixed number at a time."""
    n_pairs, width = guarded.size, guarded.shape[1]
    at_once = min(_DIRECT_PAIRS, n_pairs)
    listed = jnp.nonzero(guarded.ravel(), size=n_pairs, fill_value=n_pairs)[0]
    listed = jnp.pad(listed, (0, at_once), constant_values=n_pairs)

    def compute(state):
        start, values, flips = state
        pairs = jax.lax.dynamic_slice(listed, (start,), (at_once,))
        b, f = pairs // width, pairs % width  # past the last pair b is B: read as B - 1, never written
        taken = features["strength"].at[b, f].get(mode="clip")[:, None] * features["w_dec"][f]
        logits = head_logits(head, images["pooled"].at[b].get(mode="clip") - taken)
        found = []
        for name in targets:
            target = jnp.broadcast_to(index[name], guarded.shape).at[b, f].get(mode="clip")
            found.append(measures_of(logits, target))
        flipped = jnp.argmax(logits, -1) != images["prediction"].at[b].get(mode="clip")
        values = values.at[:, :, b, f].set(jnp.stack(found), mode="drop")
        return start + at_once, values, flips.at[b, f].set(flipped, mode="drop")

    n_guarded = guarded.sum()
    return jax.lax.while_loop(lambda state: state[0] < n_guarded, compute, (0, values, flips))[1:]
