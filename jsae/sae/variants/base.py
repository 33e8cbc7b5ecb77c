"""What a variant is, and the arithmetic that all of them share.

A variant is a frozen dataclass: its fields are its settings, with their defaults; its methods say how
features come from pre-activations and what is minimised. Every variant starts from the same pre-activations,
pre = (x_n - b_dec) @ w_enc.T + b_enc. An objective is a plain differentiable function of `pre` and of the
parameters behind the encoder; `jsae.sae.variants.backward` differentiates it and does the encoder's part of
the backward pass.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
from jax import lax

from jsae.runtime import settings
from jsae.runtime.pytrees import pytree
from jsae.sae.variants.shard import WHOLE, Shard


@dataclasses.dataclass(frozen=True)
class Batch:
    """One shard of a training batch, as an objective takes it; F counts the features of this device.

    Attributes:
      x_n: scaled activations [N, C]; padding rows are finite.
      mask: 1 for real rows, 0 for padding [N].
      sparsity: the variant's sparsity coefficient at this step, a scalar.
      shard: which rows and features are on this device, and how it computes.
    """

    x_n: jax.Array
    mask: jax.Array
    sparsity: jax.Array | float
    shard: Shard = WHOLE


@pytree
class Parts:
    """What an objective returns beside its value; sums over the rows of the shard, in scaled units.

    Attributes:
      feats: features [N, F], 0 in padding rows.
      resid: x_n - x_hat_n [N, C].
      penalty: the sparsity term before its coefficient, divided by C, a scalar over all features.
      aux: an auxiliary term before its coefficient, divided by C, a scalar over all features.
      batch_stats: what `Variant.follow` needs, the same on all shards.
    """

    feats: jax.Array
    resid: jax.Array
    penalty: jax.Array | float = 0.0
    aux: jax.Array | float = 0.0
    batch_stats: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class SaeLens:
    """How a variant stands in SAELens' files (`jsae.sae.export`).

    Attributes:
      architecture: its name there.
      bias: what b_enc is called there.
      arrays: the variant's arrays there, all [F], and whether they are in units of the activations.
      is_read: whether files of this architecture are read as this variant.
    """

    architecture: str
    bias: str = "b_enc"
    arrays: dict[str, bool] = dataclasses.field(default_factory=dict)
    is_read: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant with its settings; a subclass adds fields and overrides what differs.

    Class attributes:
      name: in `VARIANTS`, config.sae.variant and config.sae.<name>.
      saelens: its form in SAELens' files.
      ranges: the valid numbers of its settings.
      learned: those of its arrays that are trained by gradient.
      by_feature: those of its arrays that have F rows.
      sparse: a faster way than the objective, (self, params, batch, centred, pre) -> (sums, grads, resid,
        batch_stats), where the platform makes it pay (`jsae.sae.paths`); None: there is none.
      selects: features are chosen by comparing pre-activations with each other, which then stay in float32.
      k: active features per vector, where that is a setting; None elsewhere.
      aux_alpha: coefficient of AuxK (`jsae.sae.auxk`), where that is a setting; 0 elsewhere.
    """

    name: ClassVar[str]
    saelens: ClassVar[SaeLens]
    ranges: ClassVar[dict[str, settings.Range]] = {}
    learned: ClassVar[tuple[str, ...]] = ()
    by_feature: ClassVar[tuple[str, ...]] = ()
    sparse: ClassVar[Callable | None] = None
    selects: ClassVar[bool] = False
    # Comments, for annotated they would be settings of every variant
    k = None  # type: int | None
    aux_alpha = 0.0  # type: float

    def check(self, n_features: int) -> None:
        """Raise ValueError, with what is valid, unless these settings make an SAE of F features."""
        settings.check(f"sae.{self.name}", dataclasses.asdict(self), self.ranges)

    def sparsity(self, step: jax.Array | None = None) -> jax.Array | float:
        """The coefficient of the sparsity term at a step, from 0; None: at its full value."""
        return 0.0

    @property
    def has_unit_rows(self) -> bool:
        """Whether decoder rows are kept at norm 1."""
        return True

    def own(self, n_features: int) -> dict[str, jax.Array]:
        """The variant's arrays at the start, by name, in scaled units."""
        return {}

    def activate(self, pre: jax.Array, arrays: dict, shard: Shard = WHOLE) -> jax.Array:
        """Features [N, F] at inference of pre-activations [N, F]; `arrays` are all of the SAE by name."""
        raise NotImplementedError

    def objective(self, pre: jax.Array, params: dict, batch: Batch) -> tuple[jax.Array, Parts]:
        """The loss summed over real rows, divided by C; `params` are the trainable arrays without w_enc."""
        raise NotImplementedError

    def project(self, params: dict) -> dict:
        """The parameters after a step, where a step may lead out of their range."""
        return params

    def follow(self, own: dict, batch_stats: dict, t: jax.Array) -> dict:
        """The arrays that follow the batches, after a step; t counts the steps taken before."""
        return own

    def to_saelens(self) -> dict[str, Any]:
        """The settings that cfg.json needs beside those of every variant."""
        return {}

    @classmethod
    def from_saelens(cls, config: dict) -> Self:
        """The variant of a cfg.json."""
        return cls()

    def fold_input_bias(self, own: dict, shift: Any) -> dict:
        """The arrays of an SAE whose input bias moves into b_enc, which grows by `shift` [F]."""
        return own


def warm_up(value: float, n_steps: int, step: jax.Array | None) -> jax.Array | float:
    """A coefficient that rises linearly over the first n_steps; `value` where step is None."""
    return value if step is None else jnp.float32(value) * jnp.minimum(1.0, (step + 1) / max(1, n_steps))


def check_k(variant: Variant, n_features: int) -> None:
    """Raise ValueError unless k is an integer in 1..F."""
    if not isinstance(variant.k, int) or not 1 <= variant.k <= n_features:
        raise ValueError(
            f"variant {variant.name!r} needs an integer k in 1..n_features={n_features}; got k={variant.k!r}"
        )


def preactivations(params: dict, x_n: jax.Array, *, precision: str | None = None) -> jax.Array:
    """(x_n - b_dec) @ w_enc.T + b_enc of scaled activations x_n [N, C] -> [N, F]."""
    centred = x_n - params["b_dec"][None, :]
    product = lax.dot_general(centred, params["w_enc"], (((1,), (1,)), ((), ())), precision=precision)
    return product + params["b_enc"][None, :]


def reconstruct(feats: jax.Array, params: dict, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(sum over real rows of ||x_n - x_hat_n||^2 / C, x_n - x_hat_n [N, C]) of features [N, F]."""
    x_hat = batch.shard.over_features(batch.shard.product(feats, params["w_dec"]))  # [N, C]
    resid = batch.x_n - (x_hat + params["b_dec"][None, :])
    return squares(resid, batch), resid


def squares(resid: jax.Array, batch: Batch) -> jax.Array:
    """Sum over real rows of ||resid||^2 / C, by rows first."""
    return (batch.mask * (resid**2).sum(-1)).sum() / batch.x_n.shape[1]


def relu(pre: jax.Array) -> jax.Array:
    """max(pre, 0); a NaN stays visible, and the gradient at 0 is 0."""
    return jax.nn.relu(pre)


def above(pre: jax.Array, threshold: jax.Array) -> jax.Array:
    """relu(pre) [N, F] where pre is above the threshold ([] or [F]), 0 elsewhere; a NaN stays visible."""
    threshold = jnp.broadcast_to(threshold, pre.shape[1:])
    return jnp.where(pre <= threshold[None, :], 0.0, relu(pre))
