"""Stage `sae`: train an SAE on the activations of the train split, evaluate it on test, export it.

The activations lie on the devices or are streamed to them (`jsae.sae.batches`), `jsae.sae.loop` runs over
them. In the stage's folder:

    model.json        variant, its settings, n_channels, n_features, has_ema
    source.json       what a resumed run keeps: whether vectors are resident or streamed, and the precision
    checkpoints/      the train state: parameters, constants, Adam's moments, counters, mean weights if kept
    metrics.jsonl     rows train/* every log_every_steps, eval/* (on val) every eval_every_steps
    export/           cfg.json and sae_weights.safetensors, which SAELens reads
    manifest.json     with the headline results
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from etils import epath

from jsae import metrics
from jsae.activations import ActivationStore
from jsae.runtime import checkpoints, settings, stages
from jsae.runtime import mesh as meshes
from jsae.runtime import pace as paces
from jsae.runtime.context import RunContext
from jsae.sae import evaluate, export, loop, model, paths, restore, train, variants
from jsae.sae.batches import blocks, mixing, resident, sources

METRICS_FILE = "metrics.jsonl"
RANGES = {  # of the settings that all variants share
    "n_features": settings.COUNT,
    "learning_rate": settings.POSITIVE,
    "lr_warmup_steps": settings.NONE_OR_MORE,
    "lr_decay_share": settings.SHARE,
    "ema_decay": settings.BELOW_ONE,
    "n_epochs": settings.POSITIVE,
    "batch_size": settings.COUNT,
    "buffer_mib": settings.POSITIVE,
    "dead_after_epochs": settings.POSITIVE,
    "steps_per_dispatch": paces.STEPS_PER_DISPATCH,
    "save_every_s": paces.SAVE_EVERY_S,
    "save_every_steps": settings.EVERY_STEPS,
    "log_every_steps": settings.EVERY_STEPS,
    "eval_every_steps": settings.EVERY_STEPS,
    "max_bad_steps": settings.COUNT,
    "keep_checkpoints": settings.COUNT,
}
_LONG = 1 << 40  # steps; how long the run is depends on the activations


def run(
    config: Any,
    workdir: epath.PathLike,
    context: RunContext | None = None,
    where: epath.PathLike | None = None,
) -> None:
    """Train `config.sae`, or go on with it, in `where` or the stage's folder.

    Raises:
      ValueError: a setting that makes no SAE, batch or mesh; the message lists the valid values.
      FloatingPointError: max_bad_steps steps in a row had a loss or gradient that is not finite.
      stages.StageMissing: no finished activations.
    """
    context = context or RunContext()
    stage = stages.begin(config, workdir, "sae", context, where=where)
    if stage.up_to_date:
        return
    c = config.sae
    activations = stages.folder(config, workdir, "activations")
    stores = {name: ActivationStore.open(activations / name) for name in ("train", "val", "test")}
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    blocks.check_mesh(mesh)
    variant = variants.of_section(c)
    is_streamed, shape = sources.choose(mesh, stores["train"], c, variant, stage.folder, config.seed)
    recipe = recipe_of(
        c,
        n_steps=max(1, round(c.n_epochs * shape.steps_per_epoch)),
        dead_after_steps=max(1, round(c.dead_after_epochs * shape.steps_per_epoch)),
    )
    note_warmup(c, recipe, context)
    recipe = dataclasses.replace(recipe, precision=sources.precision(mesh, c.precision, stage.folder))
    is_sparse = paths.is_sparse(mesh, variant, c.n_features)
    way = "on rows of active features" if is_sparse else "dense"
    context.log.info("sae: steps are %s; products in %s", way, recipe.precision)
    fresh = functools.partial(_fresh, config.seed, stores["train"], c.n_features, variant, recipe)
    abstract = jax.eval_shape(fresh)
    shardings = train.shardings(mesh, abstract)
    sources.remember(stage.folder, is_streamed, recipe.precision)
    restore.describe(stage.folder, abstract.sae, has_ema=recipe.ema_decay > 0)
    saved = checkpoints.Checkpoints(stage.folder / "checkpoints", stage=stage, keep=c.keep_checkpoints)
    step, state = saved.restore(checkpoints.abstract(abstract, shardings)) or (0, None)
    if state is None:
        state = jax.jit(fresh, out_shardings=shardings)()
    else:
        context.log.info("sae: going on from step %d of %d", step, recipe.n_steps)
    log = context.metrics_log(stage.folder / METRICS_FILE)
    log.rewind(step)
    trained = train.make_trained(mesh, abstract.sae)
    over = functools.partial(evaluate.over_store, mesh=mesh, n_vectors=c.batch_size, context=context)
    order = {"is_streamed": is_streamed, "seed": config.seed, "last_step": recipe.n_steps}
    source = sources.open_source(mesh, stores["train"], c, shape, context, **order)
    cells = stores["train"].n_vectors // stores["train"].n_images
    pace = paces.Pace.of_stage(stage, c, recipe.n_steps, start=step, most_steps=source.most_steps)
    with contextlib.closing(source):
        state, rate = loop.run_steps(
            state,
            step,
            source,
            train.make_dispatch(mesh, abstract.sae, recipe, shape, pace.most_steps),
            pace=pace,
            max_bad_steps=c.max_bad_steps,
            bad_vectors=lambda bad_step: blocks.bad_vectors(mesh, source, bad_step),
            validate=lambda state: over(trained(state), stores["val"]),
            saved=saved,
            log=log,
            last_eval=meshes.of_writer(lambda: loop.last_eval(stage.folder / METRICS_FILE)),
            context=context,
        )
        mixed = mixing.shares(source, stores["train"].labels, cells, seed=config.seed)
    saved.close()
    sae = trained(state)
    results = final_numbers(over, sae, stores) | _described(sae)
    export.save(stage.folder / "export", meshes.collect(sae), metadata={"site": stores["train"].site})
    results |= {
        "gamma": stages.results(config, workdir, "activations").get("gamma"),
        "steps": recipe.n_steps,
        "refused_steps": int(state.bad_total),
        "vectors_per_s": rate,
        "store": "streamed" if is_streamed else "resident",
        "precision": recipe.precision,
        "mixing": mixed,
    }
    stage.finish(results)


def _fresh(seed: int, store: ActivationStore, n_features: int, variant, recipe) -> train.TrainState:
    """The state before the first step."""
    sae = model.init(
        jax.random.key(seed),
        n_channels=store.n_channels,
        n_features=n_features,
        variant=variant,
        mean=store.mean,
        scale=np.float32(store.scale),
    )
    return train.init_state(sae, recipe)


def _described(sae: model.SAE) -> dict:
    sizes = {"n_channels": sae.n_channels, "n_features": sae.n_features}
    return {"variant": sae.variant.name, "k": sae.k} | sizes


def check_config(config: Any) -> None:
    """Raise ValueError for settings of this stage that cannot be right, before anything has run."""
    c = config.sae
    settings.check("config", config, {"seed": settings.SEED})
    variant = variants.of_section(c)
    resident.shape_of(1, 1, c.batch_size)
    settings.check("config.sae", c, RANGES)
    variant.check(c.n_features)
    settings.check_choice("config.sae.store", c.store, sources.STORES)
    recipe_of(c, n_steps=_LONG, dead_after_steps=1)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    blocks.check_mesh(mesh)
    model.check_features(mesh, c.n_features)


def note_warmup(c: Any, recipe: train.Recipe, context: RunContext) -> None:
    """Say where the warm-up of the learning rate is shorter than `config.sae` wants it."""
    if recipe.lr_warmup_steps < c.lr_warmup_steps:
        context.note(
            f"config.sae.lr_warmup_steps={c.lr_warmup_steps}, and the run has {recipe.n_steps} steps: "
            f"{recipe.lr_warmup_steps} are taken"
        )


def recipe_of(c: Any, *, n_steps: int, dead_after_steps: int) -> train.Recipe:
    """The recipe of `config.sae` for a run of this length.

    A warm-up that is not shorter than the run, as a set of few photos makes it, becomes a tenth of it.
    """
    shared = ("learning_rate", "lr_decay_share", "ema_decay", "frozen", "precision")
    return train.Recipe(
        n_steps=n_steps,
        lr_warmup_steps=c.lr_warmup_steps if c.lr_warmup_steps < n_steps else n_steps // 10,
        dead_after_steps=dead_after_steps,
        **{name: c[name] for name in shared},
    )


def final_numbers(
    over: Callable[..., evaluate.Sums], sae: model.SAE, stores: dict[str, ActivationStore]
) -> dict[str, float | int | None]:
    """l0, fvu and mean density on test, pca_fvu with round(l0) components, dead_fraction over train.

    `over` is (sae, store) -> sums; a signal ends the stage here, with the last checkpoint already saved.
    Numbers of an empty test split are None.
    """
    (train_sums, train_moments), (test_sums, test_moments) = (
        over(sae, stores[name]) for name in ("train", "test")
    )
    on_train = metrics.sae_metrics(train_sums)
    results = {
        "dead_fraction": on_train["dead_fraction"],
        "n_vectors_train": on_train["n_vectors"],
        **dict.fromkeys(("l0", "fvu", "density_mean", "pca_fvu", "n_vectors_test")),
    }
    if test_sums is None:
        return results
    on_test = metrics.sae_metrics(test_sums)
    return results | {
        "l0": on_test["l0"],
        "fvu": on_test["fvu"],
        "density_mean": float(on_test["density"].mean()),
        "n_vectors_test": on_test["n_vectors"],
        "pca_fvu": metrics.pca_fvu(
            train_moments.mean,
            metrics.covariance(train_moments),
            test_moments.mean,
            metrics.covariance(test_moments),
            k=round(on_test["l0"]),
        ),
    }
