"""Stage `classifier`: train a network, keep the latest and the best checkpoint, evaluate on test."""

import time

import jax
import numpy as np

from jsae.classifier import baseline, evaluate, families, picture, pretrained, train
from jsae.classifier.model import Params
from jsae.data import augment, identity, mixing, order, pipeline
from jsae.data import settings as data_settings
from jsae.runtime import artifacts, checkpoints, logs, mesh, preemption, profiling, settings, stages
from jsae.runtime.context import RunContext

BEST = "val/mean_per_class_accuracy"
METRICS_FILE = "metrics.jsonl"
RANGES = {
    "stem_stride": settings.COUNT,
    "depths": settings.NONE_OR_MORE,
    "dims": settings.COUNT,
    "layer_scale": settings.NOT_NEGATIVE,
    "n_epochs": settings.POSITIVE,
    "warmup_epochs": settings.NONE_OR_MORE,
    "batch_size": settings.COUNT,
    "learning_rate": settings.POSITIVE,
    "weight_decay": settings.NONE_OR_MORE,
    "clip_norm": settings.Range("above 0; a large one never clips", lambda value: value > 0),
    "label_smoothing": settings.BELOW_ONE,
    "drop_path": settings.BELOW_ONE,
    "ema_decay": settings.BELOW_ONE,
    "layer_decay": settings.PART,
    "micro_batches": settings.COUNT,
    "log_every_steps": settings.EVERY_STEPS,
    "eval_every_steps": settings.EVERY_STEPS,
    "save_every_steps": settings.EVERY_STEPS,
    "keep_checkpoints": settings.COUNT,
}


def run(config, workdir, context: RunContext | None = None) -> None:
    """Train the classifier of `config` in workdir/classifier, or resume, or find it up to date.

    Raises:
      stages.ConfigMismatch: the folder holds a classifier of another config.
      ValueError: a batch size the mesh cannot deal, an unknown size, a data set without classes to tell.
      FloatingPointError: the loss is not finite.
    """
    stage = stages.begin(config, workdir, "classifier")
    if stage.up_to_date:
        return
    c, log = config.classifier, logs.get_logger()
    device_mesh = mesh.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    _check_batch(c, device_mesh)
    splits = identity.splits_of(config, workdir, stage)
    # With trainval nothing is held out to score: val is trained on, and no step is better than the last
    has_val = config.data.train_split != "trainval"
    best = BEST if has_val else None
    saved = checkpoints.Checkpoints(stage.folder / "checkpoints", keep=c.keep_checkpoints, best=best)
    if saved.latest_step() is not None and "arch" in stage.manifest:
        model, weights = families.model_of(stage.manifest["arch"]), None  # all weights are in the checkpoint
    else:
        model, weights = _network(c, len(splits["train"].class_names), config.seed)
        stage.note(arch=families.describe(model))
    n_images = len(splits["train"].labels)
    n_steps = max(1, round(c.n_epochs * n_images / c.batch_size))
    recipe = train.Recipe(
        n_steps=n_steps,
        warmup_steps=round(c.warmup_epochs * n_images / c.batch_size),
        learning_rate=c.learning_rate,
        weight_decay=c.weight_decay,
        clip_norm=c.clip_norm,
        label_smoothing=c.label_smoothing,
        drop_path=c.drop_path,
        ema_decay=c.ema_decay,
        augmentation=dict(c.augmentation, one_by_one=augment.is_serial(device_mesh)),
        layer_decay=c.layer_decay,
        micro_batches=c.micro_batches,
        remat=c.remat,
        dtype=c.dtype,
    )

    # State: built on the mesh, so that nothing aliases what a donated step consumes.
    everywhere = mesh.replicated(device_mesh)
    calibrates = c.calibrate_norms and not c.pretrained
    calibration = _calibration_images(splits["train"], config.seed) if calibrates else None
    make_state = jax.jit(
        lambda weights, images: train.init_state(
            jax.random.key(config.seed),
            model,
            recipe,
            pretrained=weights,
            images=images,
            layer_scale=c.layer_scale,
            kernels=c.init,
        ),
        out_shardings=everywhere,
    )
    abstract = checkpoints.abstract(jax.eval_shape(make_state, weights, calibration), everywhere)
    restored = saved.restore(abstract)
    start, state = restored if restored else (0, make_state(weights, calibration))
    del weights
    rows = logs.MetricsLog(stage.folder / METRICS_FILE)
    rows.rewind(start)
    is_scored_already = mesh.of_writer(lambda: _has_score(stage.folder / METRICS_FILE, start))
    if start:
        log.info("classifier: restored step %d of %d", start, n_steps)
    else:
        grid = picture.augmentation_grid(splits["train"], recipe, config.seed)
        artifacts.write_bytes(stage.folder / "augmented.png", grid)

    batch_sharding = mesh.sharded(device_mesh)
    step_fn = jax.jit(
        train.make_step(model, recipe, config.seed),
        in_shardings=(everywhere, batch_sharding),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
    predict = evaluate.make_predict(device_mesh)

    def logits_of(name):
        """Raises Preempted between two batches if the run was asked to stop."""
        params = Params(state["ema"], model)
        return evaluate.predict_split(
            predict, params, splits[name], device_mesh, c.batch_size, preemption.check
        )

    def is_scored(step) -> bool:
        """Whether val is looked at after this step."""
        return has_val and (_is_due(c.eval_every_steps, step) or step == n_steps)

    def save_and_stop(step):
        saved.save(step, state)
        saved.close()
        raise preemption.Preempted

    def score_and_save(step):
        try:
            scores = evaluate.score(logits_of("val"), splits["val"].labels)
        except preemption.Preempted:
            save_and_stop(step)  # without a score, which the next start makes up for
        saved.save(step, state, {BEST: scores["mean_per_class_accuracy"]})
        rows.write(step, {f"val/{key}": value for key, value in scores.items()})
        log.info("classifier: step %d, val accuracy %.3f", step, scores["accuracy"])

    n_params = sum(x.size for x in jax.tree.leaves(state["params"]))
    log.info(
        "classifier: %s, %d parameters, %d steps of %d images", model.name, n_params, n_steps, c.batch_size
    )
    batches = pipeline.train_batches(
        splits["train"],
        seed=config.seed,
        batch_size=c.batch_size,
        start_step=start,
        process=mesh.process_slice(device_mesh),
    )
    if start and is_scored(start) and not is_scored_already:
        score_and_save(start)
    pending, since = None, (time.monotonic(), start)  # metrics are read one step late: the device never waits
    with logs.progress(n_steps, start=start, label="classifier") as progress:
        for step in range(start + 1, n_steps + 1):
            profiling.at("classifier", step - 1, state["step"])
            state, values = step_fn(state, mesh.put_batch(device_mesh, next(batches)))
            if pending is not None:
                _write(rows, *pending)
                pending = None
            if _is_due(c.log_every_steps, step) or step == n_steps:
                now = time.monotonic()
                rate = c.batch_size * (step - since[1]) / (now - since[0])
                since = (now, step)
                pending = step, values | {"images_per_s": rate}
            progress.update(1)
            stopping = preemption.requested()
            saving = stopping or is_scored(step) or _is_due(c.save_every_steps, step) or step == n_steps
            if pending is not None and saving:  # rows up to a checkpoint are on disk before it is
                _write(rows, *pending)
                pending = None
            if stopping:
                save_and_stop(step)
            if is_scored(step):
                score_and_save(step)
                since = (time.monotonic(), step)
            elif saving:
                saved.save(step, state)
    profiling.end("classifier")
    saved.wait()
    logits = logits_of("test")
    saved.close()
    test = evaluate.score(logits, splits["test"].labels)
    for name, table in evaluate.tables(logits, splits["test"].labels, splits["test"].class_names).items():
        artifacts.write_table(stage.folder / f"{name}.parquet", table, stage.manifest)
    log.info("classifier: test accuracy %.4f", test["accuracy"])
    stage.finish(
        {
            "arch": families.describe(model),
            "n_parameters": n_params,
            "n_steps": n_steps,
            "test_accuracy": test["accuracy"],
            "test_mean_per_class_accuracy": test["mean_per_class_accuracy"],
            "test_ece": test["ece"],
            "pixel_baseline_test_accuracy": _pixel_baseline(splits, config.seed),
            "test_coarser": evaluate.coarser_scores(logits, splits["test"].labels, splits["test"].levels),
            "skipped_images": {name: len(split.skipped) for name, split in splits.items()},
        }
    )


def check_config(config) -> None:
    """Raise ValueError for settings of this stage that cannot be right, before anything has run.

    A classifier that is taken from another workdir has its own.
    """
    c = config.classifier
    settings.check("config", config, {"seed": settings.SEED})
    settings.check("config.runtime", config.runtime, settings.RUNTIME)
    data_settings.check(config.data)
    if c.workdir:
        return
    settings.check("config.classifier", c, RANGES)
    given = {name: valid for name, valid in data_settings.AUGMENTATION.items() if name in c.augmentation}
    settings.check("config.classifier.augmentation", c.augmentation, given)
    for key, value, valid in (
        ("dtype", c.dtype, ("float32", "bfloat16")),
        ("augmentation.crop", c.augmentation.crop, augment.CROPS),
        ("augmentation.mix", c.augmentation.get("mix", "none"), mixing.MIXES),
    ):
        settings.check_choice(f"config.classifier.{key}", value, valid)
    if c.augmentation.crop == "pad" and c.augmentation.pad_px >= config.data.image_size:
        raise ValueError(
            f"config.classifier.augmentation.pad_px={c.augmentation.pad_px} must be below "
            f"config.data.image_size={config.data.image_size}: images are padded by reflection"
        )
    if not c.pretrained:
        model = families.make_model(c.arch, 1, stem_stride=c.stem_stride, depths=c.depths, dims=c.dims)
        settings.check_choice("config.classifier.init", c.init, model.inits)
    _check_batch(c, mesh.make_mesh(config.runtime.data_axis, config.runtime.model_axis))


def _check_batch(c, device_mesh) -> None:
    mesh.check_batch(device_mesh, c.batch_size, "config.classifier.batch_size")
    if c.batch_size % c.micro_batches:
        raise ValueError(
            f"config.classifier.batch_size={c.batch_size} must be a multiple of "
            f"config.classifier.micro_batches={c.micro_batches}"
        )
    micro_batch = "config.classifier.batch_size / config.classifier.micro_batches"
    mesh.check_batch(device_mesh, c.batch_size // c.micro_batches, micro_batch)


def _is_due(every_steps: int, step: int) -> bool:
    return every_steps > 0 and step % every_steps == 0


def _network(c, n_classes: int, seed: int):
    """The network, and the weights of `c.pretrained` with a fresh head; None to start from scratch."""
    if not c.pretrained:
        sizes = {"stem_stride": c.stem_stride, "depths": c.depths, "dims": c.dims}
        return families.make_model(c.arch, n_classes, **sizes), None
    params, _ = pretrained.load(c.pretrained, n_classes, seed=seed)
    if c.arch not in ("", params.model.name):
        title = families.FAMILIES[params.model.family].title
        raise ValueError(
            f"config.classifier.arch={c.arch!r}, but {c.pretrained} holds a {title} {params.model.name!r}; "
            'set it to that, or to ""'
        )
    return params.model, mesh.to_host(params.variables)


def _pixel_baseline(splits, seed: int) -> float:
    """In the first process: how many iterations the fit takes depends on how a machine adds up."""
    return mesh.of_writer(lambda: baseline.pixel_baseline(splits, seed, preemption.check_here))


def _calibration_images(split, seed: int) -> np.ndarray:
    """The first 256 images of the training order, uint8 [256, S, S, 3]; every process has the same."""
    return split.images[order.batch_indices(seed, 0, len(split.labels), 256)]


def _has_score(path, step: int) -> bool:
    """Whether a metrics.jsonl has the row of val at `step`: a run told to stop there saves without it."""
    rows = logs.read_metrics(path) if path.exists() else []
    return any(row["step"] == step and "val/accuracy" in row for row in rows)


def _write(rows, step, values):
    values = {key: np.asarray(value).item() for key, value in values.items()}
    if not np.isfinite(values["train/loss"]):
        raise FloatingPointError(
            f"classifier: the loss at step {step} is {values['train/loss']}; lower the learning rate"
        )
    rows.write(step, values)
