"""The sparse autoencoder as a small pytree, and encode and decode as pure functions on it.

Inside, activations are centred and scaled by two constants that were measured once on the train split
(`mean` mu, a vector; `scale` s, one number) and travel with the weights:

    x_n = (x - mu) / s
    f_n = act((x_n - b_dec) @ w_enc.T + b_enc)
    x_hat_n = f_n @ w_dec + b_dec

The public functions speak raw units, those of the activations themselves: features are f = s * f_n, so
x_hat = f @ w_dec + s * b_dec + mu, and a feature's contribution to x is its value times its decoder row.
Decoder rows have unit norm (but for relu_l1 trained with decoder_norm "free"). `w_enc` is kept as [F, C],
so that a sparse gradient writes whole rows. `act` belongs to the variant (see `jsae.sae.variants`), and so
do the arrays in `own`, all in scaled units. Arithmetic is float32 with float32 products.

With a `mesh` the F rows of the dictionary are dealt over its `model` axis, and `encode` and `decode` run on
every device for the features it holds: no device ever holds the whole dictionary or all features of a vector.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from jsae.runtime.pytrees import pytree
from jsae.sae import variants

TRAINABLE = ("w_enc", "b_enc", "w_dec", "b_dec")
BY_FEATURE = ("w_enc", "b_enc", "w_dec")  # arrays with F rows, beside those of the variant


@pytree
class SAE:
    """A sparse autoencoder.

    Attributes:
      w_enc: encoder rows [F, C].
      b_enc: encoder bias [F], in scaled units.
      w_dec: decoder rows [F, C], unit norm.
      b_dec: decoder bias [C], in scaled units; starts at 0 because the mean is already out.
      mean: train mean of the raw activations [C]; a constant, not trained.
      scale: sqrt(mean ||x - mean||^2 / C) over the train split, a scalar; a constant, not trained.
      variant: the variant with its settings (`variants.make`); static.
      own: the arrays of the variant by name, for example {"threshold": [F]}; see its file.
      mesh: the mesh with axes "data" and "model" that the arrays are dealt over (`over_mesh`), None for one
        device; static.
    """

    w_enc: jax.Array
    b_enc: jax.Array
    w_dec: jax.Array
    b_dec: jax.Array
    mean: jax.Array
    scale: jax.Array
    variant: variants.Variant = dataclasses.field(metadata={"static": True})
    own: dict = dataclasses.field(default_factory=dict)
    mesh: Mesh | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def n_features(self) -> int:
        """F."""
        return self.w_dec.shape[-2]

    @property
    def n_channels(self) -> int:
        """C."""
        return self.w_dec.shape[-1]

    @property
    def k(self) -> int | None:
        """Features active per vector, on average where a batch shares them; None for a variant without k."""
        return self.variant.k

    @property
    def params(self) -> dict:
        """The trainable part by name: `TRAINABLE` and the variant's learned arrays; not mean and scale."""
        learned = {name: self.own[name] for name in self.variant.learned}
        return {name: getattr(self, name) for name in TRAINABLE} | learned

    def with_params(self, params: dict, own: dict | None = None) -> "SAE":
        """This SAE with other values of `params`, and of the arrays in `own` that are not trained."""
        own = self.own if own is None else own
        return dataclasses.replace(
            self,
            **{name: params[name] for name in TRAINABLE},
            own={name: params.get(name, value) for name, value in own.items()},
        )

    def encode(self, x: jax.Array | np.ndarray) -> jax.Array:
        """Features [..., F] in raw units of raw activations x [..., C]; see `encode`."""
        return encode(self, x)

    def decode(self, feats: jax.Array) -> jax.Array:
        """Raw activations [..., C] of features [..., F] in raw units; see `decode`."""
        return decode(self, feats)


def init(
    key: jax.Array,
    *,
    n_channels: int,
    n_features: int,
    variant: str | variants.Variant = "topk",
    mean: ArrayLike,
    scale: ArrayLike,
    **settings: Any,
) -> SAE:
    """A new SAE: random decoder rows of unit norm, the encoder tied to them, biases 0.

    Args:
      key: a jax random key.
      n_channels, n_features: C and F.
      variant: a key of `variants.VARIANTS`, or a variant with its settings.
      mean, scale: train mean [C] and scale of the raw activations, constants of the SAE.
      **settings: of a variant that is named, for example k=32; the others are at their defaults.

    Raises:
      ValueError: unknown variant or setting, C or F < 1, a setting out of its range.
    """
    if n_features < 1 or n_channels < 1:
        raise ValueError(f"n_features={n_features} and n_channels={n_channels} must both be at least 1")
    if isinstance(variant, str):
        variant = variants.make(variant, **settings)
    elif settings:
        raise ValueError(f"settings {', '.join(settings)} beside a variant that has its settings")
    variant.check(n_features)
    rows = unit_rows(jax.random.normal(key, (n_features, n_channels), jnp.float32))
    return SAE(
        w_enc=jnp.array(rows, copy=True),
        b_enc=jnp.zeros(n_features, jnp.float32),
        w_dec=rows,
        b_dec=jnp.zeros(n_channels, jnp.float32),
        mean=jnp.asarray(mean, jnp.float32),
        scale=jnp.asarray(scale, jnp.float32),
        variant=variant,
        own=variant.own(n_features),
    )


def unit_rows(w: jax.Array, where: jax.Array | bool = True) -> jax.Array:
    """Rows [F, C] divided by their norms, bit for bit as they are if not `where`; a zero row stays zero."""
    norms = jnp.linalg.norm(w, axis=-1, keepdims=True)  # [F, 1]
    return w / jnp.where((norms > 0) & where, norms, 1.0)


def normalise(sae: SAE, x: jax.Array) -> jax.Array:
    """Scaled activations x_n = (x - mean) / scale of raw x [N, C]."""
    return (x.astype(jnp.float32) - sae.mean[None, :]) / sae.scale


def encode(sae: SAE, x: jax.Array | np.ndarray) -> jax.Array:
    """Features of raw activations.

    Args:
      sae: the SAE.
      x: raw activations [..., C]; every vector along the last axis is encoded by itself, whatever the
        leading axes are: k counts the active features of one vector, and variants whose k belongs to a
        batch use their learned threshold.

    Returns:
      Features [..., F] in raw units, float32, >= 0. With a mesh, dealt over it: F over `model`, the first
      axis over `data` where that divides it.
    """
    _check_last_axis(x, sae.n_channels, "activations", "C")
    if not _on_one_device(sae):
        return _over_mesh(_encode, sae, x, None, "model")
    return _encode(sae, x, variants.WHOLE if sae.mesh is None else variants.shard.of_mesh(sae.mesh))


def decode(sae: SAE, feats: jax.Array) -> jax.Array:
    """Raw activations [..., C] from features [..., F] in raw units; with a mesh, dealt over `data`."""
    _check_last_axis(feats, sae.n_features, "features", "F")
    return _decode(sae, feats) if _on_one_device(sae) else _over_mesh(_decode, sae, feats, "model", None)


def _on_one_device(sae: SAE) -> bool:
    return sae.mesh is None or sae.mesh.size == 1


def _encode(sae: SAE, x, shard: variants.Shard = variants.WHOLE):
    x_n = normalise(sae, x.reshape(-1, sae.n_channels))  # [N, C]
    pre = variants.preactivations(sae.params, x_n, precision="float32")  # [N, F]
    feats = sae.scale * sae.variant.activate(pre, sae.params | sae.own, shard)
    return feats.reshape(*x.shape[:-1], sae.n_features)


def _decode(sae: SAE, feats, shard: variants.Shard = variants.WHOLE):
    flat = feats.reshape(-1, sae.n_features).astype(jnp.float32)  # [N, F]
    bias = sae.scale * sae.b_dec + sae.mean  # [C]
    x_hat = jnp.matmul(flat, sae.w_dec, precision="float32")
    # Not over_features: the transpose of a plain psum is right for what leaves the shard_map replicated
    x_hat = (lax.psum(x_hat, shard.model) if shard.model else x_hat) + bias[None, :]
    return x_hat.reshape(*feats.shape[:-1], sae.n_channels)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _over_mesh(function, sae: SAE, array, last_in, last_out):
    """function(sae, array, shard) on each device's share; the last axis is dealt as named, in and out."""
    mesh: Any = sae.mesh  # there is one
    shard = variants.shard.of_mesh(mesh)
    divides = array.ndim > 1 and array.shape[0] % mesh.shape["data"] == 0
    leading = ("data" if divides else None, *(None,) * (array.ndim - 2))[: array.ndim - 1]
    spec_in, spec_out = (PartitionSpec(*leading, last) for last in (last_in, last_out))
    dealt = jax.shard_map(
        functools.partial(function, shard=shard),
        mesh=mesh,
        in_specs=(specs(sae), spec_in),
        out_specs=spec_out,
        check_vma=False,
    )
    return dealt(sae, array)


def spec_of(name: str, variant: variants.Variant) -> PartitionSpec:
    """How an array of this name is dealt: F rows over `model`; all else is replicated."""
    return PartitionSpec("model") if name in (*BY_FEATURE, *variant.by_feature) else PartitionSpec()


def specs(sae: SAE) -> SAE:
    """The partition spec of every array of an SAE, as an SAE."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: spec_of(jax.tree_util.keystr(path[-1:], simple=True), sae.variant), sae
    )


def shardings(sae: SAE, mesh: Mesh) -> SAE:
    """The sharding of every array over a mesh, as an SAE. Raises ValueError if F cannot be dealt evenly."""
    check_features(mesh, sae.n_features)
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs(sae), is_leaf=lambda x: isinstance(x, PartitionSpec)
    )


def over_mesh(sae: SAE, mesh: Mesh) -> SAE:
    """The SAE dealt over a mesh. Raises ValueError if F cannot be dealt evenly over its model axis."""
    return dataclasses.replace(jax.device_put(sae, shardings(sae, mesh)), mesh=mesh)


def check_features(mesh: Mesh, n_features: int) -> None:
    """Raise ValueError unless F can be dealt evenly over the mesh's model axis."""
    if n_features % mesh.shape["model"]:
        raise ValueError(
            f"n_features={n_features} must be a multiple of the mesh's model axis, {mesh.shape['model']}"
        )


def _check_last_axis(array, size: int, what: str, letter: str) -> None:
    dtype = getattr(array, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        got = type(array).__name__ if dtype is None else dtype
        raise TypeError(f"{what} are an array of numbers [..., {letter}] with {letter}={size}, got {got}")
    if array.ndim < 1 or array.shape[-1] != size:
        raise ValueError(
            f"{what} have shape {tuple(array.shape)}; this SAE expects [..., {letter}] with {letter}={size}"
        )
