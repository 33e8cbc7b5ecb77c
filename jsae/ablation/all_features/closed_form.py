"""Every feature removed from every image, in closed form: the final site, where pooling and the head follow.

Behind the final site come the mean over the grid, perhaps a layer norm (scale g, bias b) and a linear head
(kernel W, offset c). Removing a feature moves the pooled vector p by -a * w: w is its decoder row, a the mean
over the grid of what is removed of it, in raw units (removed at its peak cell only: peak / cells). With P and
V the vectors p and w less their own mean, and G = g * W,

    logits = (P @ G - a * V @ G) / sqrt(q / C + eps) + b @ W + c,     q = |P|^2 - 2 a P.V + a^2 |V|^2

so three small products (P.G, V.G, P.V) leave O(L) work per pair; without a layer norm the logits are linear
in a: (p - a w) @ W + c. Pairs are taken in blocks of features, reduced at once: [B, F, L] never exists. Where
little of an image remains, float32 cancels in q: pairs with q < GUARD * |P|^2 are computed again directly, by
subtracting first and normalising then; they are counted. The clean side comes from the same formula with
a = 0, and a silent pair (a = 0) has an effect of exactly 0.

On a mesh every device takes the blocks of the features that it holds, on its images. Any other site or head
takes the patched forward pass (`jsae.ablation.all_features.forward_pass`).
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jsae.ablation.all_features import formula
from jsae.ablation.effects import TARGETS
from jsae.classifier import Head
from jsae.sae import dealt

_BLOCK_LOGITS = {"cpu": 2**20, "else": 2**26}  # B * features * L of a block; on a CPU it stays in the cache
_LANES = 16  # a block's features are a multiple, so that vector registers are full


class Effects(NamedTuple):
    """Effects of all pairs: deltas [target, measure, B, F], flips bool [B, F], guarded pairs (a count)."""

    deltas: jax.Array
    flips: jax.Array
    n_guarded: jax.Array


class EffectMoments(NamedTuple):
    """Moments of effects over the images on which a feature fires, perhaps in groups of images.

    Attributes:
      n: images (of the group) on which the feature fires, [..., F].
      mean: over those images, [..., statistic, F]; 0 where n is 0.
      m2: sum of squares about that mean, [..., statistic, F].
    """

    n: jax.Array | np.ndarray
    mean: jax.Array | np.ndarray
    m2: jax.Array | np.ndarray


def effects(
    head: Head,
    w_dec: jax.Array,
    pooled: jax.Array,
    strength: jax.Array,
    labels: jax.Array,
    predictions: jax.Array,
    top_classes: jax.Array,
    *,
    targets: Sequence[str] = TARGETS,
    block: int | None = None,
) -> Effects:
    """Effects of removing each feature from each image, ablated minus clean, all pairs kept.

    Args:
      head: the classifier's head.
      w_dec: decoder rows [F, C].
      pooled: mean over the grid of the raw activations [B, C].
      strength: a [B, F], mean over the grid of what is removed, raw units; negative values add the feature.
      labels, predictions: int [B]; the clean prediction is given, since `pooled` may itself be ablated.
      top_classes: int [F]; a feature without one takes any class, and what it gets there means nothing.
      targets: which of TARGETS.
      block: features at a time (`block_features`). No number depends on it but for rounding.

    Returns:
      `Effects`. Margins are NaN with one class only. A flip is a class that exceeds the prediction's logit.

    Raises ValueError for an unknown target.
    """
    images = (pooled, labels, predictions)
    block = block or block_features(len(pooled), len(head.offset), _platform(w_dec))
    found, n_guarded = _every_block(
        head, w_dec, strength, top_classes, images, None, targets=_known(targets), block=block
    )
    deltas, flips = (_join(part, strength.shape[1]) for part in found)
    return Effects(deltas, flips, n_guarded)


def moments(
    head: Head,
    w_dec: jax.Array,
    pooled: jax.Array,
    strength: jax.Array,
    labels: jax.Array,
    predictions: jax.Array,
    top_classes: jax.Array,
    *,
    groups: jax.Array,
    n_groups: int,
    targets: Sequence[str] = TARGETS,
    block: int | None = None,
    mesh: Mesh | None = None,
) -> tuple[EffectMoments, jax.Array]:
    """The same effects reduced over the images on which each feature fires, block by block.

    Args:
      head to top_classes: as for `effects`; on a mesh F is dealt over `model` and B over `data`.
      groups: int [B], the group of each image, 0 .. n_groups - 1.
      n_groups: how many there are.
      targets, block: as for `effects`; the block is of one device.
      mesh: that the arrays are dealt over, None if they are whole.

    Returns:
      (`EffectMoments` [group, ...], number of guarded pairs); the statistics are target by target the
      MEASURES, then the flips.
    """
    block = block or block_features(len(pooled), len(head.offset), _platform(w_dec))
    by_feature, by_image = PartitionSpec("model"), PartitionSpec("data")
    dealt_moments = dealt.map_shards(
        functools.partial(_moments, n_groups=n_groups, targets=_known(targets), block=block, mesh=mesh),
        mesh,
        (PartitionSpec(), by_feature, PartitionSpec("data", "model"), by_feature, by_image, by_image),
        (PartitionSpec(None, "model"), *[PartitionSpec(None, None, "model")] * 2, PartitionSpec()),
    )
    images = (pooled, labels, predictions)
    *found, n_guarded = dealt_moments(head, w_dec, strength, top_classes, images, groups)
    return EffectMoments(*found), n_guarded


def block_features(n_images: int, n_classes: int, platform: str) -> int:
    """Features at a time whose logits for all images fit the cache of a CPU, or keep another device busy."""
    budget = _BLOCK_LOGITS.get(platform, _BLOCK_LOGITS["else"])
    return max(1, budget // (n_images * n_classes * _LANES)) * _LANES


def moments_of(
    values: jax.Array,
    active: jax.Array,
    member: jax.Array,
    over_images: Callable[[jax.Array], jax.Array] = lambda total: total,
) -> EffectMoments:
    """Moments of values [statistic, B, F] over the images that are active [B, F], by group [G, B].

    `over_images` adds up sums over the images of this device and of the others.
    """

    def total(form, *arrays):
        return over_images(jnp.einsum(form, member, *arrays, precision="float32"))

    counts = total("gb,bf->gf", active.astype(jnp.float32))  # [G, F]
    values = jnp.where(active[None], values, 0)
    mean = total("gb,sbf->gsf", values) / jnp.maximum(counts, 1)[:, None, :]
    of_group = jnp.einsum("gb,gsf->sbf", member, mean, precision="float32")
    spread = jnp.where(active[None], values - of_group, 0)
    return EffectMoments(counts, mean, total("gb,sbf->gsf", spread**2))


def _known(targets: Sequence[str]) -> tuple[str, ...]:
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise ValueError(f"there is no target {unknown[0]!r}; the targets are {', '.join(TARGETS)}")
    return tuple(targets)


def _platform(array) -> str:
    """Where an array lies; a traced or numpy one counts as on a CPU, whose blocks any device can hold."""
    lies = isinstance(array, jax.Array) and not isinstance(array, jax.core.Tracer)
    return next(iter(array.devices())).platform if lies else "cpu"


def _moments(head, w_dec, strength, top_classes, images, groups, *, n_groups, targets, block, mesh):
    """n [G, f], mean and m2 [G, statistic, f] of one device's features, over all images; guarded pairs."""
    member = jax.nn.one_hot(groups, n_groups, axis=0)  # [G, B]
    found, n_guarded = _every_block(
        head, w_dec, strength, top_classes, images, member, targets=targets, block=block, mesh=mesh
    )
    n_guarded = n_guarded if mesh is None else lax.psum(n_guarded, ("data", "model"))
    return *(_join(part, strength.shape[1]) for part in found), n_guarded


@functools.partial(jax.jit, static_argnames=("targets", "block", "mesh"))
def _every_block(head, w_dec, strength, top_classes, images, member, *, targets, block, mesh=None):
    """What `_one_block` returns for each block of features, stacked, and the number of guarded pairs."""
    n_features = strength.shape[1]
    block = min(block, n_features)
    n_blocks = -(-n_features // block)

    def cut(array, axis):
        """[..., F, ...] -> [blocks, ..., f, ...], zeros behind the last feature."""
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, n_blocks * block - n_features)
        array = jnp.pad(array, widths)
        array = array.reshape(*array.shape[:axis], n_blocks, block, *array.shape[axis + 1 :])
        return jnp.moveaxis(array, axis, 0)

    with jax.default_matmul_precision("float32"):
        images, features = formula.sides(head, w_dec, strength, top_classes, *images, targets)
        axes = {name: 1 if name in ("strength", "size") else 0 for name in features}
        blocks = {name: cut(value, axes[name]) for name, value in features.items()}
        over_images = (lambda total: total) if mesh is None else (lambda total: lax.psum(total, "data"))
        found, n_guarded = lax.map(
            lambda features: _one_block(head, images, features, member, targets, over_images), blocks
        )
    return found, n_guarded.sum()


def _join(blocks: jax.Array, n_features: int) -> jax.Array:
    """[blocks, ..., f] -> [..., F], without what filled the last block up."""
    return jnp.moveaxis(blocks, 0, -2).reshape(*blocks.shape[1:-1], -1)[..., :n_features]


def _one_block(head, images, features, member, targets, over_images):
    """Effects of a block of f features: (deltas [target, measure, B, f], flips [B, f]) or their moments."""
    values, flips, n_guarded = formula.ablated(head, images, features, targets)
    index, active = formula.index_of(images, features), features["strength"] != 0
    pairs = zip(values, targets, strict=True)
    deltas = jnp.stack([value - formula.clean_of(images["clean"], index[name]) for value, name in pairs])
    deltas = jnp.where(active[None, None], deltas, 0)
    flips &= active
    if member is None:
        return (deltas, flips), n_guarded
    statistics = jnp.concatenate([deltas.reshape(-1, *active.shape), flips[None].astype(jnp.float32)])
    return moments_of(statistics, active, member, over_images), n_guarded
