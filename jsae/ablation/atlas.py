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

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jsae.ablation import closed_form
from jsae.ablation.feature_space import TARGETS

__all__ = ["Effects", "Moments", "effects", "moments", "moments_of"]

_BLOCK_LOGITS = {"cpu": 2**20, "else": 2**26}  # B * features * L of a block; on a CPU it stays in the cache
_LANES = 16  # a block's features are a multiple, so that vector registers are full


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
    found, n_guarded = _every_block(*arguments, None, targets=tuple(targets), block=block)
    return Effects(*(_join(part, strength.shape[1]) for part in found), n_guarded)


def moments(
    *arguments, groups: jax.Array, n_groups: int, targets=TARGETS, block=None
) -> tuple[Moments, jax.Array]:
    """The same effects reduced over the images on which each feature fires, block by block.

    Args:
      arguments: those of `effects`, head to top_classes.
      groups: int [B], the group of each image, 0 .. n_groups - 1.
      n_groups: how many there are.
      targets, block: as for `effects`.

    Returns:
      (`Moments`, number of guarded pairs).
    """
    n_features = arguments[1].shape[0]
    member = jax.nn.one_hot(groups, n_groups, axis=0)  # [G, B]
    found, n_guarded = _every_block(*arguments, member, targets=tuple(targets), block=block)
    return Moments(*(_join(part, n_features) for part in found)), n_guarded


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
        kernel = head.norm.scale[:, None] * head.kernel  # G [C, L]
        squared = jnp.square(centred).sum(-1)  # |P|^2 [B]
        size = squared[:, None] - 2 * strength * (centred @ rows.T)
        size += strength**2 * jnp.square(rows).sum(-1)[None, :]  # q [B, F]
        images = {
            "pooled": pooled,
            "squared": squared,
            "projected": centred @ kernel,  # [B, L]
            "offset": head.norm.bias @ head.kernel + head.offset,  # [L]
            "label": labels,
            "prediction": predictions,
            "member": member,
        }
        images["rest"] = closed_form.offset_of_the_rest(images, targets)
        images["clean"] = closed_form.clean_by_class(head, images)
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


def _join(blocks: jax.Array, n_features: int) -> jax.Array:
    """[blocks, ..., f] -> [..., F], without what filled the last block up."""
    return jnp.moveaxis(blocks, 0, -2).reshape(*blocks.shape[1:-1], -1)[..., :n_features]


def _block_features(n_images: int, n_classes: int) -> int:
    budget = _BLOCK_LOGITS.get(jax.default_backend(), _BLOCK_LOGITS["else"])
    return max(1, budget // (n_images * n_classes * _LANES)) * _LANES


def _one_block(head, images, features, targets):
    """Effects of a block of f features: (deltas [target, measure, B, f], flips [B, f]) or their moments."""
    values, flips, n_guarded = closed_form.ablated(head, images, features, targets)
    index, active = closed_form.index_of(images, features), features["strength"] != 0
    pairs = zip(values, targets, strict=True)
    deltas = jnp.stack([value - closed_form.clean_of(images["clean"], index[name]) for value, name in pairs])
    deltas = jnp.where(active[None, None], deltas, 0)
    flips &= active
    if images["member"] is None:
        return (deltas, flips), n_guarded
    statistics = jnp.concatenate([deltas.reshape(-1, *active.shape), flips[None].astype(jnp.float32)])
    return moments_of(statistics, active, images["member"]), n_guarded
