"""Which entries are the largest, without a sort where a sort is slow.

A selection keeps every entry above a cut. The bits of positive floats are ordered as the floats are, so the
cut is found digit by digit, from the highest bit down: a cut is raised while enough entries reach it. On an
accelerator each pass over [N, F] counts seven candidates at once; where a row fits on the chip, a kernel
(Pallas: Triton on CUDA, Mosaic on TPU) reads it once and takes all passes there. CPUs keep `lax.top_k` for
rows. Negative entries, -inf among them, are 0 after the relu and never selected.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from jsae.sae.variants.shard import Shard

_INFINITY = 0x7F800000  # its bits; NaNs lie above
_NAN = 0x7FC00000
_BITS = 31  # of a float32 that is not negative
_WIDTH = 3  # bits a pass finds on accelerators: seven counts are one reduction there
_KERNEL_FEATURES = 1 << 16  # of a row that a kernel holds on the chip
_TPU_ROWS = 8  # of a kernel's block
_GPU_FEATURES_PER_WARP = 1024


def largest(holds: Callable, n_bits: int, width: int, start: jax.Array) -> jax.Array:
    """The largest t below 2**n_bits for which a condition holds; it holds for 0 and for all below t.

    Args:
      holds: [t, ...] -> [condition of each], int32 and bool arrays of one shape.
      n_bits: at most 31.
      width: bits found in one pass, which asks for 2**width - 1 conditions.
      start: zeros of the shape.
    """

    def digit(i, found):
        shift = jnp.maximum(n_bits - width * (i + 1), 0)
        conditions = holds([found + (jnp.int32(step) << shift) for step in range(1, 2**width)])
        return found + (sum(c.astype(jnp.int32) for c in conditions) << shift)

    return lax.fori_loop(0, -(-n_bits // width), digit, start)


def cut_of_all(values: jax.Array, n_keep: jax.Array, total: Callable = lambda value: value) -> jax.Array:
    """The n_keep-th largest of the positive `values` over all shards.

    Args:
      values: float32, any shape; a NaN counts as larger than all numbers.
      n_keep: how many to keep, a traced integer; if fewer values are positive, the smallest of them is
        the cut.
      total: adds counts up over the shards.

    Returns:
      The cut, a scalar; infinity where no value is positive. Counts are int32.
    """

    def find(bits, n_keep, width):
        def counts(thresholds):
            rows = jnp.stack([(bits >= t).sum(-1, dtype=jnp.int32) for t in thresholds])  # [.., ...]
            # More than n_keep says no more than n_keep + 1, and the sum over many devices stays an int32
            return total(jnp.minimum(rows.sum(tuple(range(1, rows.ndim))), n_keep + 1))

        wanted = jnp.minimum(n_keep, counts([jnp.int32(1)])[0])
        found = largest(lambda thresholds: list(counts(thresholds) >= wanted), _BITS, width, jnp.int32(0))
        found = lax.bitcast_convert_type(jnp.minimum(found, _INFINITY), jnp.float32)
        return jnp.where(wanted > 0, found, jnp.inf)

    bits = lax.bitcast_convert_type(values, jnp.int32)
    forms = {name: functools.partial(find, width=width) for name, width in (("cpu", 1), ("default", _WIDTH))}
    return lax.platform_dependent(bits, jnp.int32(n_keep), **forms)


@functools.partial(jax.jit, static_argnums=(1, 2))
def cut_of_rows(pre: jax.Array, k: int, shard: Shard) -> tuple[jax.Array, jax.Array]:
    """(threshold, last) [N, 1] of rows [N, F]: what is selected is above the threshold, or equal to it in a
    column of this shard up to `last`. Of the positive entries of all shards these are the k largest, equal
    ones by rising index. A row with a NaN has the threshold NaN.

    Not differentiable; `pre` float32.
    """
    forms = {"cpu": by_sorting, "default": by_counting}
    if shard.kernels and shard.n_model == 1 and pre.shape[1] <= _KERNEL_FEATURES:
        forms |= {"cuda": by_triton, "tpu": by_mosaic}
    return lax.platform_dependent(
        pre, **{name: functools.partial(form, k=k, shard=shard) for name, form in forms.items()}
    )


def by_sorting(pre: jax.Array, k: int, shard: Shard) -> tuple[jax.Array, jax.Array]:
    """`cut_of_rows` by top_k; each device offers the k largest of its values. The cut may be negative."""
    values, indices = lax.top_k(pre, min(k, pre.shape[1]))  # [N, k], ties by index
    kept = among_largest(values, k, shard)
    # Reductions, not values[:, -1:]: XLA:CPU folds that slice into the top_k and sorts whole rows, 18x slower
    threshold = jnp.where(kept, values, jnp.inf).min(axis=-1, keepdims=True)  # [N, 1]
    last = jnp.where(kept & (values == threshold), indices, -1).max(axis=-1, keepdims=True)
    return threshold, last


def among_largest(values: jax.Array, k: int, shard: Shard) -> jax.Array:
    """Which of this device's largest values of each row, falling [N, m], are among the k largest of all."""
    if shard.n_model == 1:
        return jnp.ones(values.shape, bool)
    everyone = shard.candidates(values)  # [N, n_model * m]
    top, places = lax.top_k(everyone, k)
    threshold = top.min(axis=-1, keepdims=True)
    last = jnp.where(top == threshold, places, -1).max(axis=-1, keepdims=True)
    place = shard.index() * values.shape[1] + lax.broadcasted_iota(jnp.int32, values.shape, 1)
    return ~((values < threshold) | ((values == threshold) & (place > last)))


def by_counting(pre: jax.Array, k: int, shard: Shard) -> tuple[jax.Array, jax.Array]:
    """`cut_of_rows` by passes over [N, F], each with one sum of counts over the shards of the features."""

    def earlier(ties):
        before = jnp.arange(shard.n_model)[None, :] < shard.index()
        return jnp.where(before, shard.candidates(ties), 0).sum(-1, keepdims=True)

    def count(masks):
        return list(shard.over_features(jnp.stack(_count(masks))))

    cut, last = _cut(pre, k, _WIDTH, count, earlier if shard.n_model > 1 else None)
    return lax.bitcast_convert_type(cut, jnp.float32), last


def by_triton(pre: jax.Array, k: int, shard: Shard, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """`cut_of_rows` as a kernel for CUDA, one row in the registers of a block of threads."""
    from jax.experimental import pallas

    try:
        from jax.experimental.pallas import triton
    except ImportError:  # deprecated since jax 0.11
        return by_counting(pre, k, shard)

    f = pre.shape[1]
    width = 1 << (f - 1).bit_length()  # lengths are powers of two there

    def read(row):
        is_real = lax.broadcasted_iota(jnp.int32, (1, width), 1) < f
        return triton.load(row.at[:, pallas.ds(0, width)], mask=is_real, other=-1.0)

    n_warps = min(32, max(4, width // _GPU_FEATURES_PER_WARP))
    params = triton.CompilerParams(num_warps=n_warps, num_stages=1)
    return _call_kernel(pre, k, 1, read, compiler_params=params, interpret=interpret)


def by_mosaic(pre: jax.Array, k: int, shard: Shard, interpret: bool = False) -> tuple[jax.Array, jax.Array]:
    """`cut_of_rows` as a kernel for TPU, a few rows in vector memory."""
    return _call_kernel(pre, k, min(_TPU_ROWS, len(pre)), lambda rows: rows[...], interpret=interpret)


def _call_kernel(pre, k: int, n_rows: int, read: Callable, **options):
    from jax.experimental import pallas

    (n, f), column = pre.shape, pallas.BlockSpec((n_rows, 1), lambda i: (i, 0))

    def kernel(rows, cut, last):
        cut[...], last[...] = _cut(read(rows), k, 1)

    cut, last = pallas.pallas_call(
        kernel,
        grid=(pallas.cdiv(n, n_rows),),
        in_specs=[pallas.BlockSpec((n_rows, f), lambda i: (i, 0))],
        out_specs=[column, column],
        out_shape=[jax.ShapeDtypeStruct((n, 1), jnp.int32)] * 2,
        name="cut_of_rows",
        **options,
    )(pre)
    return lax.bitcast_convert_type(cut, jnp.float32), last


def _count(masks: list) -> list:
    return [mask.astype(jnp.int32).sum(-1, keepdims=True) for mask in masks]


def _cut(rows, k: int, width: int, count: Callable = _count, earlier: Callable | None = None):
    """(bits of the cut, last) [N, 1] int32; also the body of the kernels.

    count: [mask [N, F], ...] -> [how many are True in a row of all shards [N, 1], ...].
    earlier: ties of this shard [N, 1] -> ties of all shards before it; None: there is no other.
    """
    bits = lax.bitcast_convert_type(rows, jnp.int32)
    is_nan = (bits & (2**_BITS - 1)) > _INFINITY
    bits = jnp.maximum(bits, 0)
    n_positive, n_nan = count([bits > 0, is_nan])
    wanted, zero = jnp.minimum(n_positive, k), jnp.zeros_like(n_positive)
    cut = largest(lambda ts: [n >= wanted for n in count([bits >= t for t in ts])], _BITS, width, zero)

    ties = bits == cut
    spare = wanted - count([bits > cut])[0]  # ties to keep, of all shards
    spare = spare if earlier is None else spare - earlier(_count([ties])[0])
    column = lax.broadcasted_iota(jnp.int32, bits.shape, 1)
    last = largest(
        lambda ts: [n < spare for n in _count([ties & (column < t) for t in ts])],
        max(1, (bits.shape[1] - 1).bit_length()),
        width,
        zero,
    )
    # A NaN as threshold drops nothing: the relu of the row stays, NaN and all
    return jnp.where(n_nan > 0, _NAN, cut), jnp.where(spare > 0, last, -1)
