"""Training the classifier: a pure step, the optimizer, prediction of a whole split, and loading.

The state is a dict of arrays: "params", "opt", "ema" (an average of the weights, which evaluation,
extraction and `load` use) and "step". A step's randomness is fold_in(key(seed), step), so a resumed run
equals an uninterrupted one.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jsae.classifier import convnext
from jsae.data import augment, pipeline
from jsae.runtime import artifacts, checkpoints, mesh


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
      augmentation: keyword arguments of `data.augment.augment`.
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
    dtype: str = "float32"

    def __post_init__(self):
        if self.dtype not in ("float32", "bfloat16"):
            raise ValueError(f"classifier.dtype={self.dtype!r} must be float32 or bfloat16")
        if self.n_steps < 1:
            raise ValueError(f"training takes at least one step, got {self.n_steps}")


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """AdamW with clipping, warm-up and cosine decay; no decay on biases, norms and layer scales."""
    warmup = min(recipe.warmup_steps, recipe.n_steps - 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, recipe.learning_rate, warmup, recipe.n_steps)

    def decays(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    return optax.chain(
        optax.clip_by_global_norm(recipe.clip_norm),
        optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=decays),
    )


def init_state(key: jax.Array, arch: convnext.Arch, recipe: Recipe, *, images=None, **init) -> dict:
    """The state before the first step.

    Args:
      images: uint8 [B, S, S, 3] to calibrate the layer norms on, or None to leave them at 1 and 0.
      init: goes to `convnext.init`.
    """
    params = convnext.init(key, arch, **init)
    if images is not None:
        params = convnext.calibrate_norms(params, augment.normalise(images))
    return {
        "params": params.variables,
        "opt": make_optimizer(recipe).init(params.variables),
        "ema": jax.tree.map(jnp.copy, params.variables),
        "step": jnp.zeros((), jnp.int32),
    }


def loss_of(params: convnext.Params, images, labels, key, recipe: Recipe):
    """Mean smoothed cross-entropy over the batch, and the logits.

    Args:
      images: float32 [B, S, S, 3], normalised and augmented.
      labels: int32 [B].
    """
    logits = convnext.forward_train(params, images.astype(recipe.dtype), key, drop_path=recipe.drop_path)
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), recipe.label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean(), logits


def make_step(arch: convnext.Arch, recipe: Recipe, seed: int):
    """The pure training step (state, batch) -> (state, metrics).

    batch: "image" uint8 [B, S, S, 3], "label" int32 [B], "index" int32 [B]. metrics: "train/loss",
    "train/accuracy", "train/gradient_norm", means over the batch.
    """
    optimizer = make_optimizer(recipe)

    def step(state, batch):
        key = jax.random.fold_in(jax.random.key(seed), state["step"])
        images = augment.augment(key, batch["image"], batch["index"], **recipe.augmentation)
        drop_key = jax.random.fold_in(key, 1)

        def objective(variables):
            return loss_of(convnext.Params(variables, arch), images, batch["label"], drop_key, recipe)

        (loss, logits), grads = jax.value_and_grad(objective, has_aux=True)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        t = state["step"].astype(jnp.float32)
        decay = jnp.minimum(recipe.ema_decay, (1 + t) / (10 + t))
        ema = jax.tree.map(lambda average, p: decay * average + (1 - decay) * p, state["ema"], params)
        metrics = {
            "train/loss": loss,
            "train/accuracy": (logits.argmax(-1) == batch["label"]).mean(),
            "train/gradient_norm": optax.tree.norm(grads),
        }
        return {"params": params, "opt": opt, "ema": ema, "step": state["step"] + 1}, metrics

    return step


def make_predict(device_mesh):
    """A jitted (params, images uint8 [B, S, S, 3]) -> logits [B, L], images sharded over `data`."""

    def predict(params, images):
        with jax.default_matmul_precision("float32"):
            return convnext.apply(params, augment.normalise(images))[0]

    return jax.jit(predict, out_shardings=mesh.replicated(device_mesh))


def predict_split(predict, params, split, device_mesh, batch_size: int, between=lambda: None) -> np.ndarray:
    """Logits float32 [N, L] of a whole split; `between` is called after every batch."""
    rows = []
    batches = pipeline.eval_batches(split, batch_size=batch_size, process=mesh.process_slice())
    for batch in batches:
        rows.append(
            mesh.to_host(predict(params, mesh.put_batch(device_mesh, {"image": batch["image"]})["image"]))
        )
        between()
    return np.concatenate(rows)[: len(split.labels)]


def load(folder) -> convnext.Params:
    """EMA weights of the last step of a finished classifier stage, on the first local device.

    Args:
      folder: the stage's folder, workdir/classifier.

    Raises:
      FileNotFoundError: the stage was never finished there.
    """
    arch, abstract = _describe(folder)
    with_sharding = checkpoints.abstract(abstract, jax.sharding.SingleDeviceSharding(jax.local_devices()[0]))
    store = checkpoints.Checkpoints(folder / "checkpoints")
    restored = store.restore({"ema": with_sharding})
    if restored is None:
        raise FileNotFoundError(f"{folder / 'checkpoints'} holds no checkpoint")
    store.close()
    return convnext.Params(restored[1]["ema"], arch)


def _describe(folder):
    path = folder / "manifest.json"
    manifest = artifacts.read_json(path) if path.exists() else {}
    if manifest.get("status") != "complete":
        raise FileNotFoundError(f"{folder} holds no finished classifier")
    fields = manifest["results"]["arch"]
    arch = convnext.Arch(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
    abstract = jax.eval_shape(lambda key: convnext.init(key, arch), jax.random.key(0)).variables
    return arch, abstract
