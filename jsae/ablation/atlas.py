"""Every feature removed from every image, in closed form: the final site, where pooling and the head follow.

Behind the final site come the mean over the grid, a layer norm (scale g, bias b) and a linear head (kernel
W, offset c). Removing a feature moves the pooled vector p by -a * w: w is its decoder row, a the mean over
the grid of what is removed of it, in raw units (removed at its peak cell only: peak / cells). With P and V
the vectors p and w less their own mean, and G = g * W,

    logits = (P @ G - a * V @ G) / sqrt(q / C + eps) + b @ W + c,     q = |P|^2 - 2 a P.V + a^2 |V|^2

so three small products (P.G, V.G, P.V) leave O(L) work a pair. Pairs are taken in blocks of features,
reduced at once: [B, F, L] never exists. Where little of an image remains, float32 cancels in q: pairs with
q < GUARD * |P|^2 are computed again directly, by subtracting first and normalising then; they are counted.
The clean side comes from the same formula with a = 0, and a silent pair (a = 0) has an effect of exactly 0.

Any other site or head takes the patched forward pass (`jsae.ablation.feature_space`).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jsae import metrics
from jsae.ablation.feature_space import MEASURES, TARGETS
from jsae.classifier import convnext

GUARD = 0.05  # below this share of |P|^2 the closed form loses digits to cancellation
_DIRECT_PAIRS = 256  # guarded pairs computed again at a time
_BLOCK_LOGITS = {"cpu": 2**20, "else": 2**26}  # B * features * L of a block: on a CPU what its cache holds


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """Layer norm over channels, then a linear map: scale [C], bias [C], kernel [C, L], offset [L]."""

    scale: jax.Array
    bias: jax.Array
    kernel: jax.Array
    offset: jax.Array
    eps: float = dataclasses.field(metadata={"static": True})


class Effects(NamedTuple):
    """Effects of all pairs: deltas [target, measure, B, F], flips bool [B, F], guarded pairs (a count)."""

    deltas: jax.Array
    flips: jax.Array
    n_guarded: jax.Array


class Moments(NamedTuple):
    """Moments of effects over the images on which a feature fires, in groups of images.

    Attributes:
      n: images of the group on which the feature fires, [group, F].
      mean: over those images, [group, statistic, F]; the statistics are target by target the MEASURES, then
        the flips. 0 where n is 0.
      m2: sum of squares about that mean, [group, statistic, F].
    """

    n: jax.Array
    mean: jax.Array
    m2: jax.Array


def head_of(params: convnext.Params) -> Head:
    """The head of a classifier, with the epsilon that came with its weights."""
    norm, linear = params.variables["head_norm"], params.variables["head"]
    return Head(norm["scale"], norm["bias"], linear["kernel"], linear["bias"], params.arch.head_eps)


def head_logits(head: Head, pooled: jax.Array) -> jax.Array:
    """Logits [N, L] of pooled vectors [N, C], by a two-pass layer norm."""
    normal = convnext.layer_norm(pooled, head.scale, head.bias, head.eps)
    return jnp.matmul(normal, head.kernel, precision="float32") + head.offset[None, :]


def effects(head, w_dec, pooled, strength, labels, predictions, top_classes, *, targets=TARGETS, block=None):
    """Effects of removing each feature from each image, ablated minus clean, all pairs kept.

    Args:
      head: the classifier's head.
      w_dec: decoder rows [F, C].
      pooled: mean over the grid of the raw activations [B, C].
      strength: a [B, F], mean over the grid of what is removed, raw units; negative values add the feature.
      labels, predictions: int [B]; the clean prediction is given, since `pooled` may itself be ablated.
      top_classes: int [F]; a feature without one takes any class, and what it gets there means nothing.
      targets: which of TARGETS.
      block: features at a time; None sizes it for the device. No number depends on it but for rounding.

    Returns:
      `Effects`. Margins are NaN with one class only. A flip is a class that exceeds the prediction's logit.

    Raises ValueError for an unknown target.
    """
    arguments = (head, w_dec, pooled, strength, labels, predictions, top_classes)
    (deltas, flips), n_guarded = _every_block(*arguments, None, targets=tuple(targets), block=block)
    n_features = strength.shape[1]
    deltas = jnp.moveaxis(deltas, 0, -2).reshape(*deltas.shape[1:-1], -1)[..., :n_features]
    flips = jnp.moveaxis(flips, 0, -2).reshape(flips.shape[1], -1)[:, :n_features]
    return Effects(deltas, flips, n_guarded)


def moments(
    head,
    w_dec,
    pooled,
    strength,
    labels,
    predictions,
    top_classes,
    groups,
    n_groups,
    *,
    targets=TARGETS,
    block=None,
):
    """The same effects reduced over the images on which each feature fires, block by block.

    Args:
      groups: int [B], the group of each image, 0 .. n_groups - 1.
      n_groups: how many there are.
      Otherwise as for `effects`.

    Returns:
      (`Moments`, number of guarded pairs).
    """
    arguments = (head, w_dec, pooled, strength, labels, predictions, top_classes)
    member = jax.nn.one_hot(groups, n_groups, axis=0)  # [G, B]
    found, n_guarded = _every_block(*arguments, member, targets=tuple(targets), block=block)

    def join(blocks):  # [blocks, ..., f] -> [..., F]
        return jnp.moveaxis(blocks, 0, -2).reshape(*blocks.shape[1:-1], -1)[..., : strength.shape[1]]

    return Moments(*map(join, found)), n_guarded


def moments_of(values: jax.Array, active: jax.Array, member: jax.Array) -> Moments:
    """Moments of values [statistic, B, F] over the images that are active [B, F], by group [G, B]."""
    counts = jnp.matmul(member, active.astype(jnp.float32), precision="float32")  # [G, F]
    values = jnp.where(active[None], values, 0)
    mean = jnp.einsum("gb,sbf->gsf", member, values, precision="float32")
    mean /= jnp.maximum(counts, 1)[:, None, :]
    own_mean = jnp.einsum("gb,gsf->sbf", member, mean, precision="float32")
    spread = jnp.where(active[None], values - own_mean, 0)
    return Moments(counts, mean, jnp.einsum("gb,sbf->gsf", member, spread**2, precision="float32"))


@functools.partial(jax.jit, static_argnames=("targets", "block"))
def _every_block(head, w_dec, pooled, strength, labels, predictions, top_classes, member, *, targets, block):
    """What `_one_block` returns for each block of features, stacked, and the number of guarded pairs."""
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise ValueError(f"there is no target {unknown[0]!r}; the targets are {', '.join(TARGETS)}")
    (n_images, n_features), n_classes = strength.shape, head.offset.shape[0]
    block = block or _block_features(n_images, n_classes)
    block = min(block, n_features)
    with jax.default_matmul_precision("float32"):
        centred = pooled - pooled.mean(-1, keepdims=True)  # P [B, C]
        rows = w_dec - w_dec.mean(-1, keepdims=True)  # V [F, C]
        kernel = head.scale[:, None] * head.kernel  # G [C, L]
        squared = jnp.square(centred).sum(-1)  # |P|^2 [B]
        size = squared[:, None] - 2 * strength * (centred @ rows.T)
        size += strength**2 * jnp.square(rows).sum(-1)[None, :]  # q [B, F]
        images = {
            "pooled": pooled,
            "squared": squared,
            "projected": centred @ kernel,  # [B, L]
            "offset": head.bias @ head.kernel + head.offset,  # [L]
            "label": labels,
            "prediction": predictions,
            "member": member,
        }
        scale = jax.lax.rsqrt(squared / pooled.shape[1] + head.eps)  # of the clean images [B]
        images["clean"] = _measures_by_class(images["projected"] * scale[:, None] + images["offset"][None, :])
        n_blocks = -(-n_features // block)

        def cut(array, axis):
            """[..., F, ...] -> [blocks, ..., f, ...], zeros behind the last feature."""
            widths = [(0, 0)] * array.ndim
            widths[axis] = (0, n_blocks * block - n_features)
            array = jnp.pad(array, widths)
            array = array.reshape(*array.shape[:axis], n_blocks, block, *array.shape[axis + 1 :])
            return jnp.moveaxis(array, axis, 0)

        blocks = {
            "strength": cut(strength, 1),
            "size": cut(jnp.maximum(size, 0), 1),
            "w_dec": cut(w_dec, 0),
            "projected": cut(rows @ kernel, 0),
            "top_class": cut(top_classes, 0),
        }
        found, n_guarded = jax.lax.map(lambda features: _one_block(head, images, features, targets), blocks)
    return found, n_guarded.sum()


def _block_features(n_images: int, n_classes: int) -> int:
    budget = _BLOCK_LOGITS.get(jax.default_backend(), _BLOCK_LOGITS["else"])
    return max(8, budget // (n_images * n_classes))


def _measures_by_class(logits: jax.Array) -> jax.Array:
    """Every class taken as the target: the MEASURES of logits [B, L], [measure, B, L]."""

    def of_class(target):
        found = metrics.measures(logits, jnp.full(logits.shape[0], target))
        return jnp.stack([found[name] for name in MEASURES])

    return jnp.moveaxis(jax.lax.map(of_class, jnp.arange(logits.shape[1])), 0, -1)


def _one_block(head, images, features, targets):
    """Effects of a block of f features: (deltas [target, measure, B, f], flips [B, f]) or their moments."""
    strength, size = features["strength"], features["size"]  # [B, f]
    scale = jax.lax.rsqrt(size / head.scale.shape[0] + head.eps)
    moved = images["projected"][:, None, :] - strength[:, :, None] * features["projected"][None]
    logits = moved * scale[:, :, None] + images["offset"][None, None, :]  # [B, f, L]
    index = {
        "label": images["label"][:, None],
        "prediction": images["prediction"][:, None],
        "top_class": features["top_class"][None, :],
    }  # [B, 1] or [1, f]
    classes = jnp.arange(logits.shape[-1])[None, None, :]
    logit, others = {}, {}
    for name in dict.fromkeys((*targets, "prediction")):
        full = jnp.broadcast_to(index[name], strength.shape)
        logit[name] = jnp.take_along_axis(logits, full[:, :, None], axis=-1)[..., 0]
        hidden = jnp.where(classes == index[name][:, :, None], -jnp.inf, 0.0)
        others[name] = jnp.max(logits + hidden, axis=-1)
    largest = jnp.maximum(logit["prediction"], others["prediction"])
    log_total = largest + jnp.log(jnp.sum(jnp.exp(logits - largest[:, :, None]), axis=-1))

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
    pairs = zip(values, targets, strict=True)
    deltas = jnp.stack([value - _clean(images["clean"], index[name]) for value, name in pairs])
    active = strength != 0
    deltas = jnp.where(active[None, None], deltas, 0)
    flips &= active
    if images["member"] is None:
        return (deltas, flips), n_guarded
    statistics = jnp.concatenate([deltas.reshape(-1, *size.shape), flips[None].astype(jnp.float32)])
    return moments_of(statistics, active, images["member"]), n_guarded


def _clean(by_class: jax.Array, index: jax.Array) -> jax.Array:
    """Clean measures [measure, B, 1 or f] of the classes `index`, [B, 1] or [1, f], from [measure, B, L]."""
    if index.shape[0] == 1:
        return by_class[:, :, index[0]]
    return jnp.take_along_axis(by_class, index[None], axis=-1)


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
