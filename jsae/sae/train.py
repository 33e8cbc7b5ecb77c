"""One training step of an SAE as a pure function, and many of them in one dispatch.

    grads   = sum over shards of the gradient / real vectors          (jsae.sae.losses)
    w_dec's gradient loses its component along each row, before Adam   (where rows are kept at norm 1)
    params  = Adam(params, grads / ||grads||); decoder rows renormalised, thresholds kept at 0 or above
    own     = the arrays that follow the batches (BatchTopK's threshold), after the step

A step is refused if its loss, the norm of its gradient or an array that follows the batches is not finite:
parameters, thresholds, Adam's moments and counters, the mean of the weights and the counters of silence stay
as they were, bit for bit, and the refusal is counted. Nothing else that it would write can be: gradients of
norm 1 leave Adam's moments at 1 or below, and a parameter moves by the learning rate times a bounded ratio.
So what to keep is known before anything is written, and the state is read and written once.

The data's order is a function of (seed, step) and comes from `jsae.sae.batches.blocks`; the state carries no
random key. `make_dispatch` runs a number of steps that is known only at run time inside one compiled program:
results do not depend on how the steps are grouped.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jsae.runtime.pytrees import pytree
from jsae.sae import losses, model, paths, variants
from jsae.sae.batches import blocks
from jsae.sae.recipe import Recipe, learning_rate, scaled

BOTH_AXES = PartitionSpec(("model", "data"))
METRICS = ("loss", "mse", "l1", "aux", "l0", "fvu", "dead_fraction", "learning_rate", "sparsity", "refused")


@pytree
class TrainState:
    """All that a run carries from step to step.

    Attributes:
      sae: the SAE, with its constants.
      adam: optax's state for `sae.params`; its count is that of the steps taken, refused ones left out.
      step: batches drawn so far, refused ones included, int32: a refused batch is not drawn again.
      silent_steps: steps since each feature fired last, refused ones left out [F] int32.
      bad_in_row: refused steps up to now without a good one between, int32.
      bad_total: all refused steps, int32.
      ema: running mean of `sae.params` by name; empty where the recipe keeps none.
    """

    sae: model.SAE
    adam: optax.OptState
    step: jax.Array
    silent_steps: jax.Array
    bad_in_row: jax.Array
    bad_total: jax.Array
    ema: dict = dataclasses.field(default_factory=dict)


def init_state(sae: model.SAE, recipe: Recipe) -> TrainState:
    """The state before the first step."""
    return empty_state(sae, has_ema=recipe.ema_decay > 0)


def empty_state(sae: model.SAE, *, has_ema: bool) -> TrainState:
    """A state with no step taken; `has_ema` says whether it carries a mean of the weights."""
    return TrainState(
        sae=sae,
        adam=optax.adam(lambda _: 0.0).init(sae.params),
        step=jnp.zeros((), jnp.int32),
        silent_steps=jnp.zeros(sae.n_features, jnp.int32),
        bad_in_row=jnp.zeros((), jnp.int32),
        bad_total=jnp.zeros((), jnp.int32),
        ema=jax.tree.map(jnp.copy, sae.params) if has_ema else {},
    )


def trained_sae(state: TrainState) -> model.SAE:
    """The SAE of a state that evaluation, export and load use: of the mean weights, where they are kept."""
    return with_mean_weights(state.sae, state.ema) if state.ema else state.sae


def with_mean_weights(sae: model.SAE, ema: dict) -> model.SAE:
    """The SAE with the running mean of its parameters.

    The mean of unit rows is shorter than 1; rows are scaled back to the norm of the last step's.
    """
    norms = jnp.linalg.norm(sae.w_dec, axis=-1, keepdims=True)  # [F, 1]
    return sae.with_params(ema | {"w_dec": model.unit_rows(ema["w_dec"]) * norms})


def spec_of(mesh: Mesh, variant: variants.Variant, n_features: int, name: str) -> PartitionSpec:
    """How an array of this name is dealt in training: F rows over both axes, or `model` if that is uneven.

    Each device keeps and updates its own rows of parameters, Adam's moments and mean weights; a step brings
    the parameters of a shard of `model` together, and adds gradients up where their rows are (arXiv
    1910.02054).
    """
    spec = PartitionSpec("model") if name == "silent_steps" else model.spec_of(name, variant)
    is_even = n_features % (mesh.shape["model"] * mesh.shape["data"]) == 0
    return BOTH_AXES if spec and is_even and mesh.shape["data"] > 1 else spec


def shardings(mesh: Mesh, state: TrainState) -> TrainState:
    """The shardings of a state. Raises ValueError if F cannot be dealt evenly over the mesh's model axis."""
    n_features = state.silent_steps.shape[0]
    model.check_features(mesh, n_features)

    def rule(path, _):
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return NamedSharding(mesh, spec_of(mesh, state.sae.variant, n_features, name))

    return jax.tree_util.tree_map_with_path(rule, state)


def make_trained(mesh: Mesh, sae: model.SAE) -> Callable[[TrainState], model.SAE]:
    """A jitted `trained_sae` whose arrays are dealt as encode and decode take them (`model.shardings`)."""
    return jax.jit(trained_sae, out_shardings=model.shardings(sae, mesh))


def sums_over_mesh(mesh: Mesh, sae: model.SAE, recipe: Recipe, sparse: bool | None = None) -> Callable:
    """(params, x [64, n, C], mask [64, n], dead [F], sparsity) -> (sums, gradients, batch_stats) of a batch.

    sums and gradients are added up over the shards; see `losses.sums_and_grads`. Each device works on its
    rows of the batch and its features, with every collective written out (`jsae.sae.variants.shard`). The
    gradients are dealt as the parameters are (`spec_of`).
    """
    shard = paths.shard_of(mesh, recipe)
    is_full = paths.precision_of(mesh, recipe.precision) == "float32"
    if sparse is None:
        sparse = paths.is_sparse(mesh, sae.variant, sae.n_features)
    spec = functools.partial(spec_of, mesh, sae.variant, sae.n_features)

    def of_shard(params, x, mask, dead, sparsity):
        params = {
            name: shard.gather_rows(value) if spec(name) == BOTH_AXES else value
            for name, value in params.items()
        }
        batch = variants.Batch(x.reshape(-1, x.shape[-1]), mask.reshape(-1), sparsity, shard)
        with jax.default_matmul_precision("float32" if is_full else "default"):
            sums, grads, batch_stats = losses.sums_and_grads(
                params, batch, dead, variant=sae.variant, sparse=sparse
            )
        grads = {
            name: shard.deal_rows(g) if spec(name) == BOTH_AXES else shard.over_rows(g)
            for name, g in grads.items()
        }
        return shard.over_rows(sums), grads, batch_stats

    def of_batch(params, x, mask, dead, sparsity):
        by_param = {name: spec(name) for name in params}
        whole, rows, features = PartitionSpec(), PartitionSpec("data"), PartitionSpec("model")
        return jax.shard_map(
            of_shard,
            mesh=mesh,
            in_specs=(by_param, rows, rows, features, whole),
            out_specs=(dict.fromkeys(losses.SUMS, whole) | {"fired": features}, by_param, whole),
            check_vma=False,
        )(params, x, mask, dead, sparsity)

    return of_batch


def make_step(mesh: Mesh, sae: model.SAE, recipe: Recipe, sparse: bool | None = None) -> Callable:
    """The pure step (state, batch) -> (state, metrics).

    Args:
      mesh: the mesh the batch is dealt over.
      sae: gives the static settings (variant, F, C); its arrays are not used.
      recipe: how to train.
      sparse: force the sparse or dense path; None chooses (jsae.sae.paths).

    The batch is {"x": scaled activations [64, n, C], "mask": [64, n]}; the metrics are the scalars named in
    `METRICS`, each over the real vectors of the batch; "l1" is the mean sum of the features divided by C.
    """
    variant, c = sae.variant, sae.n_channels
    sums_of = sums_over_mesh(mesh, sae, recipe, sparse)
    rate = learning_rate(recipe)
    adam = optax.adam(rate)
    frozen = {"": (), "decoder": ("w_dec",), "encoder": ("w_enc",)}[recipe.frozen]

    def step(state: TrainState, batch: dict):
        old = state.sae.params
        taken = state.step - state.bad_total
        dead = state.silent_steps >= recipe.dead_after_steps  # [F]
        sparsity = jnp.asarray(variant.sparsity(state.step), jnp.float32)
        sums, grads, batch_stats = sums_of(old, batch["x"], batch["mask"], dead, sparsity)
        n = jnp.maximum(sums["n"], 1.0)
        grads = jax.tree.map(lambda g: g / n, grads)
        grads |= {name: jnp.zeros_like(grads[name]) for name in frozen}
        if variant.has_unit_rows:
            along = (grads["w_dec"] * old["w_dec"]).sum(-1, keepdims=True)  # [F, 1]
            grads["w_dec"] = grads["w_dec"] - along * old["w_dec"]
        loss, norm = sums["loss"] / n, optax.tree.norm(grads)
        own = variant.follow(state.sae.own, batch_stats, taken)
        good = jnp.isfinite(loss) & jnp.isfinite(norm)
        for name in own.keys() - old.keys():
            good = good & jnp.isfinite(own[name]).all()
        updates, adam_state = adam.update(scaled(grads, norm), state.adam, old)
        keep = functools.partial(jax.tree.map, lambda new, before: jnp.where(good, new, before))
        params = keep(variant.project(optax.apply_updates(old, updates)), old)
        if variant.has_unit_rows and "w_dec" not in frozen:
            params["w_dec"] = model.unit_rows(params["w_dec"], good)
        decay = jnp.minimum(recipe.ema_decay, (1.0 + taken) / (10.0 + taken))
        ema = {name: decay * mean + (1 - decay) * params[name] for name, mean in state.ema.items()}
        bad = (~good).astype(jnp.int32)
        new_state = TrainState(
            sae=state.sae.with_params(params, keep(own, state.sae.own)),
            adam=keep(adam_state, state.adam),
            silent_steps=jnp.where(
                good, jnp.where(sums["fired"] > 0, 0, state.silent_steps + 1), state.silent_steps
            ),
            ema=keep(ema, state.ema),
            step=state.step + 1,
            bad_in_row=jnp.where(good, 0, state.bad_in_row + 1),
            bad_total=state.bad_total + bad,
        )
        new_state = lax.with_sharding_constraint(new_state, shardings(mesh, new_state))
        spread = sums["x_sq"] - (sums["x_sum"] ** 2).sum() / n
        metrics = {
            "loss": loss,
            "mse": sums["sse"] / n / c,
            "l1": sums["l1"] / n / c,
            "aux": sums["aux"] / n,
            "l0": sums["l0"] / n,
            "fvu": sums["sse"] / spread,
            "dead_fraction": dead.mean(dtype=jnp.float32),
            "learning_rate": rate(taken),
            "sparsity": sparsity,
            "refused": bad,
        }
        return new_state, {name: jnp.asarray(metrics[name], jnp.float32) for name in METRICS}

    return step


def make_dispatch(
    mesh: Mesh,
    sae: model.SAE,
    recipe: Recipe,
    shape: blocks.Shape,
    max_steps: int,
    sparse: bool | None = None,
) -> Callable:
    """A jitted (state, x, mask, order, first, n_steps) -> (state, metrics) of many steps.

    Args:
      mesh, sae, recipe, sparse: as for `make_step`.
      shape: of the blocks.
      max_steps: size of the metrics' buffers.

    The state is donated. `x` [64, L, C], `mask` [64, L], `order` [64, L] and `first` are those of the window
    that holds the steps (`batches.blocks`), which must not run over its end; n_steps <= max_steps is traced.
    Metrics are arrays [max_steps] of which the first n_steps are filled.
    """
    step = make_step(mesh, sae, recipe, sparse)

    def dispatch(state, x, mask, order, first, n_steps):
        def body(i, carry):
            state, table = carry
            constants = state.sae.mean, state.sae.scale
            batch = blocks.take(x, mask, order, state.step - first, shape, *constants)
            state, metrics = step(state, batch)
            row = jnp.stack([metrics[name] for name in METRICS])
            return state, lax.dynamic_update_index_in_dim(table, row, i, axis=0)

        table = jnp.zeros((max_steps, len(METRICS)), jnp.float32)
        state, table = lax.fori_loop(0, n_steps, body, (state, table))
        return state, dict(zip(METRICS, table.T, strict=True))

    abstract = jax.eval_shape(lambda sae: init_state(sae, recipe), sae)
    states = shardings(mesh, abstract)
    dealt, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        dispatch,
        donate_argnums=0,
        in_shardings=(states, dealt, dealt, dealt, whole, whole),
        out_shardings=(states, whole),
    )
