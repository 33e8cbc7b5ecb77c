"""How an SAE is trained: the settings that all variants share, checked, and the learning rate."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

AUTO = "auto"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an SAE is trained, whichever its variant; static under jit.

    Attributes:
      n_steps: length of the whole run.
      learning_rate: the peak.
      lr_warmup_steps: steps of linear warm-up from 0.
      lr_decay_share: the last share of the run over which a cosine takes the learning rate to 0: 1 begins
        right after the warm-up, 0 never.
      dead_after_steps: a feature silent for this many steps counts as dead.
      ema_decay: of the running mean of the weights that evaluation, export and load use; 0 keeps none.
      frozen: "" trains all, "decoder" or "encoder" leaves that matrix as it was drawn: the baselines of
        arXiv 2602.14111.
      precision: of the products in training: "float32", "default" (TF32 or bfloat16 on accelerators),
        "bfloat16" operands with float32 sums, or "auto" (`jsae.sae.paths`); the state is float32 always.
    """

    n_steps: int
    learning_rate: float
    lr_warmup_steps: int = 0
    lr_decay_share: float = 0.2
    dead_after_steps: int = 1
    ema_decay: float = 0.0
    frozen: str = ""
    precision: str = AUTO

    def __post_init__(self):
        if self.n_steps < 1:
            raise ValueError(f"a run needs at least one step; got n_steps={self.n_steps}")
        if not 0 <= self.lr_warmup_steps < self.n_steps:
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps} must lie in 0..{self.n_steps - 1}: "
                f"the run has {self.n_steps} steps"
            )
        for name, valid in (
            ("precision", (AUTO, "float32", "default", "bfloat16")),
            ("frozen", ("", "decoder", "encoder")),
        ):
            if getattr(self, name) not in valid:
                listed = " and ".join(", ".join(map(repr, valid)).rsplit(", ", 1))
                raise ValueError(f"{name}={getattr(self, name)!r}; the valid values are {listed}")
        for name in ("learning_rate", "dead_after_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} must lie in 0 <= ema_decay < 1")
        if not 0 <= self.lr_decay_share <= 1:
            raise ValueError(f"lr_decay_share={self.lr_decay_share} must lie in 0..1, a share of the run")


def learning_rate(recipe: Recipe) -> optax.Schedule:
    """Step -> learning rate: linear warm-up to the peak, the peak, a cosine to 0 at the last step."""
    after_warmup = recipe.n_steps - recipe.lr_warmup_steps
    decay_steps = min(round(recipe.lr_decay_share * recipe.n_steps), after_warmup)
    parts = [
        (recipe.lr_warmup_steps, optax.linear_schedule(0.0, recipe.learning_rate, recipe.lr_warmup_steps)),
        (after_warmup - decay_steps, optax.constant_schedule(recipe.learning_rate)),
        (decay_steps, optax.cosine_decay_schedule(recipe.learning_rate, max(1, decay_steps))),
    ]
    parts = [part for part in parts if part[0] > 0]
    ends = [sum(length for length, _ in parts[: i + 1]) for i in range(len(parts) - 1)]
    return optax.join_schedules([schedule for _, schedule in parts], ends)


def scaled(grads: Any, norm: jax.Array) -> Any:
    """The gradients at norm 1 over all parameters, from their norm; all 0 as they are.

    Adam divides by the root of a mean square over about a thousand steps. The first gradients of an SAE are
    many times as long as the later ones and would make every step of a run of some hundred too short.
    """
    norm = jnp.where(norm > 0, norm, 1.0)
    return jax.tree.map(lambda g: g / norm, grads)
