"""One training step of an SAE as a pure function, and many of them in one dispatch.

    grads   = sum over shards of the gradient / real vectors          (jsae.sae.losses)
    w_dec's gradient loses its component along each row, before Adam
    params  = Adam(params, grads); decoder rows renormalised

A step whose gradient or loss is not finite is refused: parameters, Adam's moments and counters stay as
they were, bit for bit, and the refusal is counted. The data's order is a function of (seed, step) and
comes from `jsae.sae.blocks`; the state carries no random key.

`make_dispatch` runs a number of steps that is known only at run time inside one compiled program, so
that results do not depend on how the steps are grouped.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jsae.sae import blocks, losses, model

METRICS = ("loss", "mse", "l1", "aux", "l0", "fvu", "dead_fraction", "learning_rate", "refused")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How an SAE is trained; static under jit.

    Attributes:
      n_steps: length of the whole run.
      learning_rate: the peak.
      lr_warmup_steps: steps of linear warm-up from 0; a cosine down to 0 follows.
      l1: coefficient of the L1 term ("relu_l1"), reached linearly over l1_warmup_steps.
      l1_warmup_steps: see l1.
      aux_alpha: coefficient of AuxK ("topk").
      dead_after_steps: a feature silent for this many steps counts as dead.
      precision: of the products in training: "float32" or "default" (TF32 or bfloat16 on accelerators).
    """

    n_steps: int
    learning_rate: float
    lr_warmup_steps: int = 0
    l1: float = 0.0
    l1_warmup_steps: int = 0
    aux_alpha: float = 0.0
    dead_after_steps: int = 1
    precision: str = "float32"

    def __post_init__(self):
        if self.n_steps < 1:
            raise ValueError(f"a run needs at least one step; got n_steps={self.n_steps}")
        if not 0 <= self.lr_warmup_steps < self.n_steps:
            raise ValueError(
                f"lr_warmup_steps={self.lr_warmup_steps} must lie in 0..{self.n_steps - 1}: "
                f"the run has {self.n_steps} steps"
            )
        if self.precision not in ("float32", "default"):
            raise ValueError(f"precision={self.precision!r}; the valid values are 'float32' and 'default'")
        for name in ("learning_rate", "dead_after_steps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")
        for name in ("l1", "l1_warmup_steps", "aux_alpha"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      sae: the SAE, with its constants.
      adam: optax's state for `sae.params`.
      step: batches drawn so far, refused ones included, int32.
      silent_steps: steps since each feature fired last [F] int32.
      bad_in_row: refused steps up to now without a good one between, int32.
      bad_total: all refused steps, int32.
    """

    sae: model.SAE
    adam: optax.OptState
    step: jax.Array
    silent_steps: jax.Array
    bad_in_row: jax.Array
    bad_total: jax.Array


def learning_rate(recipe: Recipe):
    """Step -> learning rate: linear warm-up to the peak, then a cosine to 0 at the last step."""
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if recipe.lr_warmup_steps else recipe.learning_rate,
        peak_value=recipe.learning_rate,
        warmup_steps=recipe.lr_warmup_steps,
        decay_steps=recipe.n_steps,
    )


def optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Adam in float32 with the recipe's schedule."""
    return optax.adam(learning_rate(recipe))


def init_state(sae: model.SAE, recipe: Recipe) -> TrainState:
    """The state before the first step."""
    return TrainState(
        sae=sae,
        adam=optimizer(recipe).init(sae.params),
        step=jnp.zeros((), jnp.int32),
        silent_steps=jnp.zeros(sae.n_features, jnp.int32),
        bad_in_row=jnp.zeros((), jnp.int32),
        bad_total=jnp.zeros((), jnp.int32),
    )


def shardings(mesh, state):
    """The shardings of a state: whatever has F rows is dealt over `model`, all else is replicated."""
    n_features = state.silent_steps.shape[0]
    rows = NamedSharding(mesh, PartitionSpec("model"))
    whole = NamedSharding(mesh, PartitionSpec())
    names = ("w_enc", "b_enc", "w_dec", "silent_steps")

    def rule(path, _):
        return rows if jax.tree_util.keystr(path[-1:], simple=True) in names else whole

    if n_features % mesh.shape["model"]:
        raise ValueError(
            f"n_features={n_features} must be a multiple of the mesh's model axis, {mesh.shape['model']}"
        )
    return jax.tree_util.tree_map_with_path(rule, state)


def takes_sparse_path(mesh, sae: model.SAE) -> bool:
    """Whether TopK trains on gathered rows: measured on CPU, from 8 features per active one on.

    With F sharded over `model`, and on GPU and TPU, the dense products stay: a float32 scatter-add is slow
    there in some versions of jaxlib.
    """
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    return sae.k is not None and on_cpu and mesh.shape["model"] == 1 and sae.n_features >= 8 * sae.k


def sums_over_mesh(mesh, sae: model.SAE, recipe: Recipe, sparse: bool | None = None):
    """(params, x [64, n, C], mask [64, n], dead [F], l1) -> sums and gradients over the whole batch."""
    sparse = takes_sparse_path(mesh, sae) if sparse is None else sparse
    local = functools.partial(
        losses.sums_and_grads, variant=sae.variant, k=sae.k, aux_alpha=recipe.aux_alpha, sparse=sparse
    )

    def of_rows(params, x, mask, dead, l1):
        with jax.default_matmul_precision(recipe.precision):
            return local(params, x.reshape(-1, x.shape[-1]), mask.reshape(-1), dead, l1)

    if mesh.shape["model"] > 1:
        return of_rows  # the compiler shards the dense products over both axes

    def of_shard(params, x, mask, dead, l1):
        return lax.psum(of_rows(params, x, mask, dead, l1), "data")

    whole, dealt = PartitionSpec(), PartitionSpec("data")
    return jax.shard_map(
        of_shard, mesh=mesh, in_specs=(whole, dealt, dealt, whole, whole), out_specs=whole, check_vma=False
    )


def make_step(mesh, sae: model.SAE, recipe: Recipe, sparse: bool | None = None):
    """The pure step (state, batch) -> (state, metrics).

    Args:
      mesh: the mesh the batch is dealt over.
      sae: gives the static settings (variant, k, F, C); its arrays are not used.
      recipe: how to train.
      sparse: force the sparse or dense path of "topk"; None chooses.

    The batch is {"x": scaled activations [64, n, C], "mask": [64, n]}; the metrics are the scalars named in
    `METRICS`, each over the real vectors of the batch.
    """
    sums_of = sums_over_mesh(mesh, sae, recipe, sparse)
    adam, schedule = optimizer(recipe), learning_rate(recipe)
    c = sae.n_channels

    def step(state: TrainState, batch: dict):
        params = state.sae.params
        dead = state.silent_steps >= recipe.dead_after_steps  # [F]
        warm = (state.step + 1) / max(1, recipe.l1_warmup_steps)
        l1 = jnp.float32(recipe.l1) * jnp.minimum(1.0, warm)
        sums, grads = sums_of(params, batch["x"], batch["mask"], dead, l1)
        n = jnp.maximum(sums["n"], 1.0)
        grads = jax.tree.map(lambda g: g / n, grads)

        along = (grads["w_dec"] * params["w_dec"]).sum(-1, keepdims=True)  # [F, 1]
        grads["w_dec"] = grads["w_dec"] - along * params["w_dec"]
        updates, adam_state = adam.update(grads, state.adam, params)
        params = optax.apply_updates(params, updates)
        params["w_dec"] = model.unit_rows(params["w_dec"])

        mse, l1_term, aux = sums["sse"] / n / c, sums["l1"] / n / c, sums["aux"] / n
        loss = mse + recipe.aux_alpha * aux + (l1 * l1_term if sae.k is None else 0.0)
        finite = [jnp.isfinite(g).all() for g in jax.tree.leaves(grads)]
        good = functools.reduce(jnp.logical_and, finite, jnp.isfinite(loss))
        bad = (~good).astype(jnp.int32)
        trained = dataclasses.replace(
            state,
            sae=dataclasses.replace(state.sae, **params),
            adam=adam_state,
            silent_steps=jnp.where(sums["fired"] > 0, 0, state.silent_steps + 1),
        )
        kept = jax.tree.map(lambda new, old: jnp.where(good, new, old), trained, state)
        new_state = dataclasses.replace(
            kept,
            step=state.step + 1,
            bad_in_row=jnp.where(good, 0, state.bad_in_row + 1),
            bad_total=state.bad_total + bad,
        )
        spread = sums["x_sq"] - (sums["x_sum"] ** 2).sum() / n
        metrics = {
            "loss": loss,
            "mse": mse,
            "l1": l1_term,
            "aux": aux,
            "l0": sums["l0"] / n,
            "fvu": sums["sse"] / spread,
            "dead_fraction": dead.mean(dtype=jnp.float32),
            "learning_rate": schedule(state.step),
            "refused": bad,
        }
        return new_state, {name: metrics[name].astype(jnp.float32) for name in METRICS}

    return step


def make_dispatch(mesh, sae: model.SAE, recipe: Recipe, shape: blocks.Shape, max_steps: int, sparse=None):
    """A jitted (state, x, mask, order, n_steps) -> (state, metrics) of many steps.

    Args:
      mesh, sae, recipe, sparse: as for `make_step`.
      shape: of the resident blocks.
      max_steps: size of the metrics' buffers.

    The state is donated. `x` [64, L, C], `mask` [64, L] and the epoch's `order` [64, L] are dealt over
    `data`; n_steps <= max_steps is traced, and the steps must not run over the end of the epoch. Metrics
    are arrays [max_steps] of which the first n_steps are filled.
    """
    step = make_step(mesh, sae, recipe, sparse)

    def dispatch(state, x, mask, order, n_steps):
        def body(i, carry):
            state, buffers = carry
            batch = blocks.take(x, mask, order, state.step % shape.steps_per_epoch, shape)
            state, metrics = step(state, batch)
            return state, {name: buffers[name].at[i].set(metrics[name]) for name in METRICS}

        buffers = {name: jnp.zeros(max_steps, jnp.float32) for name in METRICS}
        return lax.fori_loop(0, n_steps, body, (state, buffers))

    abstract = jax.eval_shape(lambda: init_state(sae, recipe))
    states = shardings(mesh, abstract)
    dealt, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        dispatch,
        donate_argnums=0,
        in_shardings=(states, dealt, dealt, dealt, whole),
        out_shardings=(states, whole),
    )
