"""Stage `sae`: train an SAE on the activations of the train split, evaluate it on test, export it.

The activations lie on the devices or are streamed to them (`jsae.sae.sources`), `jsae.sae.fit` is the loop
over them. In the stage's folder:

    model.json        variant, n_channels, n_features, k, has_ema
    source.json       whether the vectors are resident or streamed, which a resumed run keeps
    checkpoints/      the train state: parameters, constants, Adam's moments, counters, mean weights if kept
    metrics.jsonl     rows train/* every log_every_steps, eval/* (on val) every eval_every_steps
    export/           cfg.json and sae_weights.safetensors, which SAELens reads
    manifest.json     with the headline results
"""

import contextlib
import functools

import jax
import numpy as np

from jsae import metrics
from jsae.activations import ActivationStore
from jsae.runtime import checkpoints, logs, preemption, settings, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.sae import blocks, evaluate, export, fit, mixing, model, resident, restore, sources, train, variants

METRICS_FILE = "metrics.jsonl"
RANGES = {
    "n_features": settings.COUNT,
    "k": settings.NOT_NEGATIVE,
    "l1": settings.NOT_NEGATIVE,
    "l1_warmup_steps": settings.NONE_OR_MORE,
    "l0": settings.NOT_NEGATIVE,
    "l0_warmup_steps": settings.NONE_OR_MORE,
    "bandwidth": settings.NOT_NEGATIVE,
    "prefix_shares": settings.PART,
    "threshold_decay": settings.BELOW_ONE,
    "learning_rate": settings.POSITIVE,
    "lr_warmup_steps": settings.NONE_OR_MORE,
    "lr_decay_share": settings.SHARE,
    "ema_decay": settings.BELOW_ONE,
    "n_epochs": settings.POSITIVE,
    "batch_size": settings.COUNT,
    "buffer_mib": settings.POSITIVE,
    "aux_alpha": settings.NOT_NEGATIVE,
    "dead_after_epochs": settings.POSITIVE,
    "steps_per_dispatch": settings.COUNT,
    "save_every_steps": settings.EVERY_STEPS,
    "log_every_steps": settings.EVERY_STEPS,
    "eval_every_steps": settings.EVERY_STEPS,
    "max_bad_steps": settings.COUNT,
    "keep_checkpoints": settings.COUNT,
}
_LONG = 1 << 40  # steps; how long the run is depends on the activations


def run(config, workdir, context: RunContext | None = None, where=None) -> None:
    """Train `config.sae`, or go on with it, in `where` or the stage's own folder.

    Raises:
      ValueError: a setting that makes no SAE, batch or mesh; the message lists the valid values.
      FloatingPointError: max_bad_steps steps in a row had a loss or gradient that is not finite.
      stages.StageMissing: no finished activations.
    """
    stage = stages.begin(config, workdir, "sae", where=where)
    if stage.up_to_date:
        return
    c = config.sae
    stores = {
        name: ActivationStore.open(stages.folder(config, workdir, "activations") / name)
        for name in ("train", "val", "test")
    }
    train_store = stores["train"]
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    blocks.check_mesh(mesh)
    variants.check_name(c.variant)
    is_streamed, shape = sources.choose(
        mesh, train_store, c, stage.folder, config.seed, deterministic=config.runtime.deterministic
    )
    recipe = recipe_of(
        c,
        n_steps=max(1, round(c.n_epochs * shape.steps_per_epoch)),
        dead_after_steps=max(1, round(c.dead_after_epochs * shape.steps_per_epoch)),
        deterministic=config.runtime.deterministic,
    )

    def fresh(mean, scale):
        sae = model.init(
            jax.random.key(config.seed),
            n_channels=train_store.n_channels,
            n_features=c.n_features,
            variant=c.variant,
            k=c.k if variants.VARIANTS[c.variant].has_k else None,
            mean=mean,
            scale=scale,
        )
        return train.init_state(sae, recipe)

    constants = {"mean": train_store.mean, "scale": np.float32(train_store.scale)}
    abstract = jax.eval_shape(fresh, **constants)
    shardings = train.shardings(mesh, abstract)
    sources.remember(stage.folder, is_streamed)
    restore.describe(stage.folder, abstract.sae, has_ema=recipe.ema_decay > 0)
    saved = checkpoints.Checkpoints(stage.folder / "checkpoints", keep=c.keep_checkpoints)
    found = saved.restore(checkpoints.abstract(abstract, shardings))
    if found is None:
        step, state = 0, jax.jit(fresh, out_shardings=shardings)(**constants)
    else:
        step, state = found
        logs.get_logger().info("sae: going on from step %d of %d", step, recipe.n_steps)
    log = logs.MetricsLog(stage.folder / METRICS_FILE)
    log.rewind(step)

    source = sources.open_source(
        mesh, train_store, c, shape, is_streamed=is_streamed, seed=config.seed, last_step=recipe.n_steps
    )
    sums = evaluate.make_sums(mesh)
    over = functools.partial(evaluate.over_store, sums, mesh=mesh, n_vectors=c.batch_size)
    dispatch = train.make_dispatch(mesh, abstract.sae, recipe, shape, c.steps_per_dispatch)
    with contextlib.closing(source):
        state, rate = fit.fit(
            *(state, step, source, dispatch),
            recipe=recipe,
            every={name: c[f"{name}_every_steps"] for name in ("log", "save", "eval")},
            steps_per_dispatch=c.steps_per_dispatch,
            max_bad_steps=c.max_bad_steps,
            bad_vectors=lambda bad_step: blocks.bad_vectors(mesh, source, bad_step),
            validate=lambda sae: over(sae, stores["val"], stop=preemption.requested),
            saved=saved,
            log=log,
            last_eval=meshes.of_writer(lambda: fit.last_eval(stage.folder / METRICS_FILE)),
        )
        cells = train_store.n_vectors // train_store.n_images
        mixed = mixing.shares(source, train_store.labels, cells, seed=config.seed)
    saved.close()
    sae = jax.jit(train.trained_sae, out_shardings=shardings.sae)(state)
    results = final_numbers(over, sae, stores)
    export.save(stage.folder / "export", meshes.collect(sae), metadata={"site": train_store.site})
    stage.finish(
        {
            "variant": state.sae.variant,
            "n_channels": state.sae.n_channels,
            "n_features": state.sae.n_features,
            "k": state.sae.k,
            **results,
            "gamma": stages.results(config, workdir, "activations").get("gamma"),
            "steps": recipe.n_steps,
            "refused_steps": int(state.bad_total),
            "vectors_per_s": rate,
            "store": "streamed" if is_streamed else "resident",
            "mixing": mixed,
        }
    )


def check_config(config) -> None:
    """Raise ValueError for settings of this stage that cannot be right, before anything has run."""
    c = config.sae
    settings.check("config", config, {"seed": settings.SEED})
    variants.check_name(c.variant)
    resident.shape_of(1, 1, c.batch_size)
    k = c.k if variants.VARIANTS[c.variant].has_k else None
    variants.check(c.variant, n_channels=1, n_features=c.n_features, k=k)
    settings.check("config.sae", c, RANGES)
    settings.check_choice("config.sae.store", c.store, sources.STORES)
    variants.check_terms(c.variant, recipe_of(c, n_steps=_LONG, dead_after_steps=1), c.n_features)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    blocks.check_mesh(mesh)
    model.check_features(mesh, c.n_features)


def _warmup_steps(wanted: int, n_steps: int) -> int:
    """The steps of warm-up; a tenth of a run that is shorter than them, as a set of few photos makes it."""
    if wanted < n_steps:
        return wanted
    logs.note(
        f"config.sae.lr_warmup_steps={wanted}, and the run has {n_steps} steps: {n_steps // 10} are taken"
    )
    return n_steps // 10


def recipe_of(c, *, n_steps: int, dead_after_steps: int, deterministic: bool | None = None) -> train.Recipe:
    """The recipe of `config.sae` for a run of this length; terms that the variant does not read stay out.

    deterministic: config.runtime.deterministic; None: top_k as if it were, and the step that pays.
    """
    kind, matryoshka = variants.VARIANTS[c.variant], c.variant == "matryoshka"
    return train.Recipe(
        n_steps=n_steps,
        learning_rate=c.learning_rate,
        lr_warmup_steps=_warmup_steps(c.lr_warmup_steps, n_steps),
        lr_decay_share=c.lr_decay_share,
        l1=c.l1 if kind.coefficient == "l1" else 0.0,
        l1_warmup_steps=c.l1_warmup_steps,
        l0=c.l0 if kind.coefficient == "l0" else 0.0,
        l0_warmup_steps=c.l0_warmup_steps,
        bandwidth=c.bandwidth,
        aux_alpha=c.aux_alpha if kind.has_auxk else 0.0,
        prefixes=prefixes_of(c.prefix_shares, c.n_features) if matryoshka else (),
        decoder_norm=c.decoder_norm,
        threshold_decay=c.threshold_decay,
        dead_after_steps=dead_after_steps,
        ema_decay=c.ema_decay,
        frozen=c.frozen,
        precision=c.precision,
        stable_top_k=deterministic is None or deterministic,
        deterministic=bool(deterministic),
    )


def prefixes_of(shares, n_features: int) -> tuple[int, ...]:
    """Sizes of the nested dictionaries whose shares of F are given, for example (1/16, 1/4, 1.0)."""
    return tuple(round(share * n_features) for share in shares)


def final_numbers(over, sae: model.SAE, stores: dict) -> dict:
    """l0, fvu and mean density on test, pca_fvu with round(l0) components, dead_fraction over train.

    `over` is (sae, store, stop=...) -> (SaeSums, Moments); a signal ends the stage here, with the last
    checkpoint already saved. Numbers of an empty test split are None.
    """
    found = {}
    for name in ("train", "test"):
        found[name] = over(sae, stores[name], stop=preemption.requested)
        if found[name] is None:
            preemption.check()
    (train_sums, train_moments), (test_sums, test_moments) = found["train"], found["test"]
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
            *(train_moments.mean, metrics.covariance(train_moments)),
            *(test_moments.mean, metrics.covariance(test_moments)),
            k=round(on_test["l0"]),
        ),
    }
