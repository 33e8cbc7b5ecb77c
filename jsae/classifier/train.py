"""Training the classifier: a pure step and its optimizer.

The state is a dict of arrays: "params", "opt", "ema" (an average of the weights, which evaluation,
extraction and `load` use) and "step". A step's randomness is fold_in(key(seed), step), so a resumed run
equals an uninterrupted one.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jsae.classifier.model import Params, Trainable, init
from jsae.data import augment, mixing


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a classifier is trained; the fields are the config's `classifier` keys.

    Attributes:
      n_steps: optimizer steps in all.
      warmup_steps: steps of linear warm-up; then the rate falls to 0 as a cosine.
      learning_rate: peak rate of AdamW (arXiv 1711.05101).
      weight_decay: on matrices and convolution kernels only.
      clip_norm: the gradient's largest global norm.
      label_smoothing: share of the target spread over all classes (arXiv 1512.00567).
      drop_path: stochastic depth rate of the last block.
      ema_decay: of the weight average, min(ema_decay, (1 + t) / (10 + t)) at step t.
      augmentation: arguments of `data.augment.augment`; "mix" and "mix_alpha" are `data.mixing.mix`'s.
      layer_decay: the rate of a block is this to the power of its distance from the head (arXiv 2106.08254);
        1 trains all alike, 0.65 to 0.9 suit fine-tuning.
      micro_batches: parts a batch is computed in, one after the other, to save memory; changes no result.
      remat: compute blocks again in the backward pass, to save memory; changes no result.
      dtype: of the computation; the state is float32.
    """

    n_steps: int
    warmup_steps: int
    learning_rate: float
    weight_decay: float
    clip_norm: float
    label_smoothing: float
    drop_path: float
    ema_decay: float
    augmentation: dict
    layer_decay: float = 1.0
    micro_batches: int = 1
    remat: bool = False
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"classifier.dtype={self.dtype!r} must be float32 or bfloat16")
        if self.n_steps < 1:
            raise ValueError(f"training takes at least one step, got {self.n_steps}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"classifier.layer_decay={self.layer_decay} must be above 0 and at most 1")
        if self.micro_batches < 1:
            raise ValueError(f"classifier.micro_batches={self.micro_batches} must be at least 1")


def make_optimizer(recipe: Recipe, model: Trainable) -> optax.GradientTransformation:
    """AdamW with clipping, warm-up and cosine decay; no decay on biases, norms and layer scales."""
    warmup = min(recipe.warmup_steps, recipe.n_steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warmup, recipe.n_steps)

    def decays(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    def scale_layers(updates, params):
        del params
        return jax.tree_util.tree_map_with_path(
            lambda path, u: u * recipe.layer_decay ** model.depth_from_head(path[0].key), updates
        )

    def clip(updates, params):
        del params
        norm = gradient_norm(updates)
        return jax.tree.map(
            lambda u: jnp.where(norm < recipe.clip_norm, u, u / norm * recipe.clip_norm), updates
        )

    return optax.chain(
        optax.stateless(clip),
        optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=decays),
        *([optax.stateless(scale_layers)] if recipe.layer_decay < 1 else []),
    )


def gradient_norm(grads: Any) -> jax.Array:
    """The global norm; on accelerators that of all biases and scales in one sum, as each costs a start."""

    def of_two(grads):
        leaves = jax.tree.leaves(grads)
        vectors = jnp.concatenate([leaf for leaf in leaves if leaf.ndim == 1])
        return optax.tree.norm([vectors, *(leaf for leaf in leaves if leaf.ndim != 1)])

    return jax.lax.platform_dependent(grads, cpu=optax.tree.norm, default=of_two)


def init_state(
    key: jax.Array,
    model: Trainable,
    recipe: Recipe,
    *,
    pretrained: Any = None,
    images: jax.Array | np.ndarray | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """The state before the first step.

    Args:
      pretrained: variables to start from instead of fresh ones.
      images: uint8 [B, S, S, 3] to calibrate fresh layer norms on, or None to leave them at 1 and 0.
      settings: go to `init`.
    """
    variables = init(key, model, **settings).variables if pretrained is None else pretrained
    if pretrained is None and images is not None:
        variables = model.calibrate_norms(variables, augment.normalise(images))
    state = {
        "params": variables,
        "opt": make_optimizer(recipe, model).init(variables),
        "ema": jax.tree.map(jnp.copy, variables),
        "step": jnp.zeros((), jnp.int32),
    }
    # fresh biases are weakly typed and those of a step are not: the second step would be compiled again
    return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), state)


def loss_of(
    params: Params,
    images: jax.Array,
    targets: jax.Array,
    examples: jax.Array,
    key: jax.Array,
    recipe: Recipe,
) -> tuple[jax.Array, jax.Array]:
    """Sum of the cross-entropy over the images, and the logits.

    Args:
      images: float32 [B, S, S, 3], normalised and augmented.
      targets: class probabilities [B, L].
      examples: int32 [B], numbers of the examples (`model.Trainable.train_logits`).
    """
    logits = params.model.train_logits(
        params.variables,
        images.astype(recipe.dtype),
        key,
        examples,
        drop_path=recipe.drop_path,
        remat=recipe.remat,
    )
    return optax.softmax_cross_entropy(logits, targets).sum(), logits


def grads_of(
    params: Params,
    images: jax.Array,
    targets: jax.Array,
    examples: jax.Array,
    key: jax.Array,
    recipe: Recipe,
) -> tuple[tuple[jax.Array, jax.Array], Any]:
    """((mean loss, logits [B, L]), gradient) over a batch, `recipe.micro_batches` parts after each other.

    Part m takes the rows m, m + M, m + 2 M, ..., so that each device cuts up the rows that it has.
    """
    parts, n = recipe.micro_batches, len(images)
    # the mean's division: off the CPU of the loss, where it is one number, not of each gradient
    share, divisor = jax.lax.platform_dependent(
        cpu=lambda: (jnp.float32(1), jnp.float32(n)), default=lambda: (jnp.float32(1 / n), jnp.float32(1))
    )

    def grads_of_part(part):
        def objective(variables):
            loss, logits = loss_of(Params(variables, params.model), *part, key, recipe)
            return loss * share, logits

        return jax.value_and_grad(objective, has_aux=True)(params.variables)

    def cut(x):
        return x.reshape(n // parts, parts, *x.shape[1:]).swapaxes(0, 1)

    def add(total, part):
        (loss, logits), grads = grads_of_part(part)
        return jax.tree.map(jnp.add, total, (loss, grads)), logits

    if parts == 1:
        (loss, logits), grads = grads_of_part((images, targets, examples))
    else:
        zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params.variables)
        (loss, grads), logits = jax.lax.scan(add, zeros, jax.tree.map(cut, (images, targets, examples)))
        logits = logits.swapaxes(0, 1).reshape(n, -1)
    return (loss / divisor, logits), jax.tree.map(lambda g: g / divisor, grads)


def make_step(model: Trainable, recipe: Recipe, seed: int) -> Callable:
    """The pure training step (state, batch) -> (state, metrics).

    batch: "image" uint8 [B, S, S, 3], "label" int32 [B], "index" int32 [B]. metrics: "train/loss",
    "train/accuracy", "train/gradient_norm", means over the batch as it was augmented (the accuracy with
    respect to the label with the largest share, where images are mixed).
    """
    optimizer = make_optimizer(recipe, model)

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        images, targets = augmented(key, batch, model.n_classes, recipe)
        params = Params(state["params"], model)
        (loss, logits), grads = grads_of(
            params, images, targets, batch["index"], jax.random.fold_in(key, 1), recipe
        )
        t = state["step"].astype(jnp.float32)
        decay = jnp.minimum(recipe.ema_decay, (1 + t) / (10 + t))
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        ema = jax.tree.map(lambda average, p: decay * average + (1 - decay) * p, state["ema"], params)
        metrics = {
            "train/loss": loss,
            "train/accuracy": (logits.argmax(-1) == targets.argmax(-1)).mean(),
            "train/gradient_norm": gradient_norm(grads),
        }
        return {"params": params, "opt": opt, "ema": ema, "step": state["step"] + 1}, metrics

    return step


def augmented(
    key: jax.Array, batch: Mapping[str, Any], n_classes: int, recipe: Recipe
) -> tuple[jax.Array, jax.Array]:
    """A batch as it is trained on: images float32 [B, S, S, 3] and targets [B, L]."""
    settings = dict(recipe.augmentation)
    kind, alpha = settings.pop("mix", "none"), settings.pop("mix_alpha", 1.0)
    images = augment.augment(key, batch["image"], batch["index"], **settings)
    targets = optax.smooth_labels(jax.nn.one_hot(batch["label"], n_classes), recipe.label_smoothing)
    keys = augment.example_keys(jax.random.fold_in(key, 2), batch["index"])
    return mixing.mix(keys, images, targets, kind=kind, alpha=alpha)
