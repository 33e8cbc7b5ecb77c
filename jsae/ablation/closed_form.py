"""The closed form itself: a block of features removed from a batch of images, by one formula (see `atlas`).

A pair costs O(L): its logits are formed where they are reduced, and anew for each reduction, which costs less
than keeping them. `atlas` cuts the features into blocks, takes the clean side away and reduces over images.
"""

import functools

import jax
import jax.numpy as jnp

from jsae import metrics
from jsae.ablation.feature_space import MEASURES
from jsae.classifier.model import Head, head_logits

GUARD = 0.05  # below this share of |P|^2 the closed form loses digits to cancellation
_LOG2_E = 1.4426950408889634
_EXP2 = (0.0013276472, 0.009675541, 0.05550713, 0.2402212, 0.69314694, 1.0000001)  # highest power first
_DIRECT_PAIRS = 256  # guarded pairs computed again at a time


def ablated(head: Head, images: dict, features: dict, targets: tuple):
    """Measures of all pairs of B images and f features, each feature removed from each image.

    Args:
      head: the classifier's head.
      images: pooled [B, C], squared |P|^2 [B], projected P @ G [B, L], offset b @ W + c [L], label and
        prediction int [B], rest [B, L] from `offset_of_the_rest`.
      features: strength a and size q [B, f], w_dec [f, C], projected V @ G [f, L], top_class int [f].
      targets: names of TARGETS.

    Returns:
      values [target, measure, B, f], flips [B, f], the number of pairs computed directly.
    """
    strength, size = features["strength"], features["size"]  # [B, f]
    scale = jax.lax.rsqrt(size / head.kernel.shape[0] + head.norm.eps)
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
    guarded = (size < GUARD * images["squared"][:, None]) & (strength != 0)
    n_guarded = guarded.sum()
    values, flips = jax.lax.cond(
        n_guarded > 0,
        lambda *found: _directly(head, images, features, index, targets, guarded, *found),
        lambda *found: found,
        *(values, flips),
    )
    return values, flips, n_guarded


# XLA fuses elementwise work into a reduction that is its only user; with several users it writes the array to
# memory first. So each reduction over the classes spells out the logits for itself, in axes of its own.


def _logit_of(images, features, scale, index) -> jax.Array:
    """The logit [B, f] of one class a pair, `index` being [B, 1] or [1, f]."""
    if index.shape[0] == 1:
        image_side = images["projected"][:, index[0]]  # [B, f]
        feature_side = jnp.take_along_axis(features["projected"], index.T, axis=1).T  # [1, f]
    else:
        image_side = jnp.take_along_axis(images["projected"], index, axis=1)  # [B, 1]
        feature_side = features["projected"].T[index[:, 0]]  # [B, f]
    return (image_side - features["strength"] * feature_side) * scale + images["offset"][index]


def offset_of_the_rest(images: dict, targets: tuple) -> jax.Array:
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
    return jnp.sum(_exp2(logits - largest.T[..., None]), axis=-1).T


def _exp2(x: jax.Array) -> jax.Array:
    """2^x for x <= 0 within 3e-7 of it, not below 2^-126.

    On a CPU XLA's exp would take a third of the atlas's time, and this takes half of that: 2^x = 2^n 2^r with
    n the nearest integer, 2^r by a polynomial (of those of degree 5 the one with the smallest relative error
    on [-1/2, 1/2], 8e-8), and n added to its exponent.
    """
    if jax.default_backend() != "cpu":
        return jnp.exp2(x)
    x = jnp.maximum(x, -126)
    whole = jnp.round(x)
    power = functools.reduce(lambda total, factor: total * (x - whole) + factor, _EXP2)
    bits = jax.lax.bitcast_convert_type(power, jnp.int32) + (whole.astype(jnp.int32) << 23)
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


def clean_by_class(head: Head, images: dict) -> jax.Array:
    """The same with nothing removed and every class as the target, [measure, B, L]."""
    scale = jax.lax.rsqrt(images["squared"] / head.kernel.shape[0] + head.norm.eps)
    logits = images["projected"] * scale[:, None] + images["offset"][None, :]

    def of_class(target):
        found = metrics.measures(logits, jnp.full(logits.shape[0], target))
        return jnp.stack([found[name] for name in MEASURES])

    return jnp.moveaxis(jax.lax.map(of_class, jnp.arange(logits.shape[1])), 0, -1)


def clean_of(by_class: jax.Array, index: jax.Array) -> jax.Array:
    """Clean measures [measure, B, 1 or f] of the classes `index`, [B, 1] or [1, f], from [measure, B, L]."""
    if index.shape[0] == 1:
        return by_class[:, :, index[0]]
    return jnp.take_along_axis(by_class, index[None], axis=-1)


def index_of(images: dict, features: dict) -> dict:
    """Target -> its class, [B, 1] where it belongs to the image, [1, f] where it belongs to the feature."""
    return {
        "label": images["label"][:, None],
        "prediction": images["prediction"][:, None],
        "top_class": features["top_class"][None, :],
    }


def _directly(head, images, features, index, targets, guarded, values, flips):
    """The values and flips of a block with the guarded pairs computed anew, a fixed number at a time."""
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
            measured = metrics.measures(logits, target)
            found.append(jnp.stack([measured[measure] for measure in MEASURES]))
        flipped = jnp.argmax(logits, -1) != images["prediction"].at[b].get(mode="clip")
        values = values.at[:, :, b, f].set(jnp.stack(found), mode="drop")
        return start + at_once, values, flips.at[b, f].set(flipped, mode="drop")

    n_guarded = guarded.sum()
    return jax.lax.while_loop(lambda state: state[0] < n_guarded, compute, (0, values, flips))[1:]
