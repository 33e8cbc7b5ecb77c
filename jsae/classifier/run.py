"""Stage `classifier`: train a network, keep the latest and the best checkpoint, evaluate on test."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh

from jsae.classifier import baseline, evaluate, families, feeding, picture, pretrained, train
from jsae.classifier.model import Params, Trainable
from jsae.data import augment, cache, identity, mixing, order
from jsae.data import settings as data_settings
from jsae.runtime import artifacts, checkpoints, logs, mesh, pace, preemption, settings, stages
from jsae.runtime.context import RunContext
from jsae.runtime.pace import Pace

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
    "save_every_s": pace.SAVE_EVERY_S,
    "steps_per_dispatch": pace.STEPS_PER_DISPATCH,
    "keep_checkpoints": settings.COUNT,
}


@dataclasses.dataclass(frozen=True)
class _Run:
    """What stays the same over a run of the stage."""

    stage: stages.Stage
    config: Any
    mesh: Mesh
    splits: dict[str, cache.Split]
    saved: checkpoints.Checkpoints
    rows: logs.MetricsLog
    model: Trainable
    recipe: train.Recipe
    predict: Callable

    @property
    def has_val(self) -> bool:
        """With trainval nothing is held out to score: val is trained on, and no step is best."""
        return self.config.data.train_split != "trainval"

    def is_scored(self, step: int) -> bool:
        """Whether val is scored after this step."""
        every = self.config.classifier.eval_every_steps
        return self.has_val and (_is_due(every, step) or step == self.recipe.n_steps)

    def logits(self, state: dict, name: str) -> np.ndarray:
        """Logits of a split by the averaged weights. Raises Preempted between batches if asked to stop."""
        return evaluate.predict_split(
            self.predict,
            Params(state["ema"], self.model),
            self.splits[name],
            self.mesh,
            self.config.classifier.batch_size,
            self.stage.context.check,
        )

    def save_and_stop(self, step: int, state: dict) -> NoReturn:
        """Save the state and raise Preempted."""
        self.saved.save(step, state)
        self.saved.close()
        raise preemption.Preempted

    def score_and_save(self, step: int, state: dict) -> None:
        """Score val and save the state with its score."""
        try:
            scores = evaluate.score(self.logits(state, "val"), self.splits["val"].labels)
        except preemption.Preempted:
            self.save_and_stop(step, state)  # without a score, which the next start makes up for
        self.saved.save(step, state, {BEST: scores["mean_per_class_accuracy"]})
        self.rows.write(step, {f"val/{key}": value for key, value in scores.items()})
        self.stage.context.log.info("classifier: step %d, val accuracy %.3f", step, scores["accuracy"])


def run(config: Any, workdir: str | os.PathLike, context: RunContext | None = None) -> None:
    """Train the classifier of `config` in workdir/classifier, or resume, or find it up to date.

    Raises:
      stages.ConfigMismatch: the folder holds a classifier of another config.
      ValueError: a batch size the mesh cannot deal, an unknown size, a data set without classes to tell.
      FloatingPointError: the loss is not finite.
    """
    context = context or RunContext()
    stage = stages.begin(config, workdir, "classifier", context)
    if stage.up_to_date:
        return
    device_mesh = mesh.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    _check_batch(config.classifier, device_mesh)
    splits = identity.splits_of(config, workdir, stage)
    this, start, state = _begin(stage, config, device_mesh, splits)
    state = _train(this, start, state)
    context.end_profile("classifier")
    this.saved.wait()
    logits, n_params = this.logits(state, "test"), sum(x.size for x in jax.tree.leaves(state["params"]))
    this.saved.close()
    stage.finish(_results(this, logits, n_params))


def _begin(stage: stages.Stage, config: Any, device_mesh: Mesh, splits: dict) -> tuple[_Run, int, dict]:
    """What the run needs, the step that it goes on after, and the state after that step, on the mesh."""
    c, path = config.classifier, stage.folder / METRICS_FILE
    best = BEST if config.data.train_split != "trainval" else None
    saved = checkpoints.Checkpoints(
        stage.folder / "checkpoints", stage=stage, keep=c.keep_checkpoints, best=best
    )
    if saved.latest_step() is not None and "arch" in stage.manifest:
        model, weights = families.model_of(stage.manifest["arch"]), None  # the weights are in the checkpoint
    else:
        model, weights = _network(c, len(splits["train"].class_names), config.seed)
        stage.note(arch=families.describe(model), forms=model.forms(device_mesh.devices.flat[0].platform))
    recipe = _recipe(c, len(splits["train"].labels))
    rows, predict = stage.context.metrics_log(path), evaluate.make_predict(device_mesh)
    this = _Run(stage, config, device_mesh, splits, saved, rows, model, recipe, predict)
    start, state = _state(this, weights)
    rows.rewind(start)
    is_scored_already = mesh.of_writer(lambda: _has_score(path, start))
    if start:
        stage.context.log.info("classifier: restored step %d of %d", start, recipe.n_steps)
        if this.is_scored(start) and not is_scored_already:
            this.score_and_save(start, state)
    else:
        grid = picture.augmentation_grid(splits["train"], recipe, config.seed)
        artifacts.write_bytes(stage.folder / "augmented.png", grid)
    return this, start, state


def _recipe(c: Any, n_images: int) -> train.Recipe:
    """The recipe of config.classifier; epochs become steps."""
    return train.Recipe(
        n_steps=max(1, round(c.n_epochs * n_images / c.batch_size)),
        warmup_steps=round(c.warmup_epochs * n_images / c.batch_size),
        learning_rate=c.learning_rate,
        weight_decay=c.weight_decay,
        clip_norm=c.clip_norm,
        label_smoothing=c.label_smoothing,
        drop_path=c.drop_path,
        ema_decay=c.ema_decay,
        augmentation=dict(c.augmentation),
        layer_decay=c.layer_decay,
        micro_batches=c.micro_batches,
        remat=c.remat,
        dtype=c.dtype,
    )


def _state(this: _Run, weights: Any) -> tuple[int, dict]:
    """(step, state): the last checkpoint, or step 0 made of `weights`, or fresh ones where these are None.

    It is built on the mesh, so that nothing aliases what a donated step consumes.
    """
    config, c = this.config, this.config.classifier
    calibrates = c.calibrate_norms and not c.pretrained
    images = _calibration_images(this.splits["train"], config.seed) if calibrates else None

    def make(weights, images):
        return train.init_state(
            jax.random.key(config.seed),
            this.model,
            this.recipe,
            pretrained=weights,
            images=images,
            layer_scale=c.layer_scale,
            kernels=c.init,
        )

    replicated = mesh.replicated(this.mesh)
    make_state = jax.jit(make, out_shardings=replicated)
    abstract = checkpoints.abstract(jax.eval_shape(make_state, weights, images), replicated)
    return this.saved.restore(abstract) or (0, make_state(weights, images))


def _train(this: _Run, start: int, state: dict) -> dict:
    """The state after the last step. Raises Preempted, the state being saved, if the run is asked to stop."""
    c, context, n_steps = this.config.classifier, this.stage.context, this.recipe.n_steps
    n_params = sum(x.size for x in jax.tree.leaves(state["params"]))
    said = "classifier: %s, %d parameters, %d steps of %d images"
    context.log.info(said, this.model.name, n_params, n_steps, c.batch_size)
    feed = feeding.open_feed(
        this.mesh,
        this.splits["train"],
        train.make_step(this.model, this.recipe, this.config.seed),
        seed=this.config.seed,
        batch_size=c.batch_size,
        start=start,
        store=c.image_store,
    )
    rhythm = Pace.of_stage(this.stage, c, n_steps, start=start, most_steps=feed.most_steps)
    step, pending = start, None  # metrics are read one dispatch late: the device never waits
    with contextlib.closing(feed), context.progress(n_steps, start=start, label="classifier") as progress:
        reader = _Reader(this.rows, rhythm, start, c.batch_size)
        while step < n_steps:
            n = rhythm.length(step, *context.profile_bounds())
            context.profile("classifier", step, state["step"])
            state, values = feed(state, step, n)
            sent, step = (step, n, values), step + n
            if pending is not None:
                reader.read(*pending)
            progress.update(n)
            stopping, is_scored = context.requested_by_any(), this.is_scored(step)
            saving = stopping or is_scored or rhythm.saves(step) or step == n_steps
            if saving:  # rows up to a checkpoint are on disk before it is
                reader.read(*sent)
            pending = None if saving else sent
            if stopping:
                this.save_and_stop(step, state)
            if is_scored:
                this.score_and_save(step, state)
            elif saving:
                this.saved.save(step, state)
            if saving:
                rhythm.saved(step)
                reader.stop_clock()
    return state


class _Reader:
    """Reads the metrics of dispatches, writes the rows that are due, and measures the time between them."""

    def __init__(self, rows: logs.MetricsLog, rhythm: Pace, start: int, batch_size: int) -> None:
        self._rows, self._rhythm, self._batch_size = rows, rhythm, batch_size
        self._last_s: float | None = time.monotonic()
        self._since = time.monotonic(), start  # of the last row

    def read(self, first: int, n: int, values: dict) -> None:
        """The metrics of steps first + 1 to first + n, arrays [n or more]; waits for them.

        Raises FloatingPointError if a loss is not finite.
        """
        values = {name: np.asarray(value)[:n] for name, value in values.items()}
        now = time.monotonic()
        self._rhythm.measured(n, None if self._last_s is None else now - self._last_s)
        self._last_s = now
        bad = np.flatnonzero(~np.isfinite(values["train/loss"]))
        if len(bad):
            raise FloatingPointError(
                f"classifier: the loss at step {first + bad[0] + 1} is {values['train/loss'][bad[0]]}; "
                "lower the learning rate"
            )
        due = [
            s for s in range(first + 1, first + n + 1) if self._rhythm.logs(s) or s == self._rhythm.n_steps
        ]
        if not due:
            return
        rate = self._batch_size * (first + n - self._since[1]) / max(now - self._since[0], 1e-9)
        self._since = now, first + n
        for step in due:
            row = {name: value[step - first - 1].item() for name, value in values.items()}
            self._rows.write(step, row | {"images_per_s": rate})

    def stop_clock(self) -> None:
        """What was done last is no training: the next dispatch has no seconds, and rows count from now."""
        self._last_s, self._since = None, (time.monotonic(), self._since[1])


def _results(this: _Run, logits: np.ndarray, n_params: int) -> dict:
    """The stage's headline results from the logits of test; writes the tables behind them."""
    stage, test = this.stage, this.splits["test"]
    scores = evaluate.score(logits, test.labels)
    for name, table in evaluate.tables(logits, test.labels, test.class_names).items():
        artifacts.write_table(stage.folder / f"{name}.parquet", table, stage.manifest)
    stage.context.log.info("classifier: test accuracy %.4f", scores["accuracy"])
    return {
        "arch": families.describe(this.model),
        "n_parameters": n_params,
        "n_steps": this.recipe.n_steps,
        "test_accuracy": scores["accuracy"],
        "test_mean_per_class_accuracy": scores["mean_per_class_accuracy"],
        "test_ece": scores["ece"],
        "pixel_baseline_test_accuracy": _pixel_baseline(this),
        "test_coarser": evaluate.coarser_scores(logits, test.labels, test.levels),
        "skipped_images": {name: len(split.skipped) for name, split in this.splits.items()},
    }


def check_config(config: Any) -> None:
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
        ("image_store", c.image_store, feeding.STORES),
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


def _pixel_baseline(this: _Run) -> float:
    """In the first process: how many iterations the fit takes depends on how a machine adds up."""
    check = this.stage.context.check_here
    return mesh.of_writer(lambda: baseline.pixel_baseline(this.splits, this.config.seed, check))


def _calibration_images(split, seed: int) -> np.ndarray:
    """The first 256 images of the training order, uint8 [256, S, S, 3]; every process has the same."""
    return split.images[order.batch_indices(seed, 0, len(split.labels), 256)]


def _has_score(path, step: int) -> bool:
    """Whether a metrics.jsonl has the row of val at `step`: a run told to stop there saves without it."""
    rows = logs.read_metrics(path) if path.exists() else []
    return any(row["step"] == step and "val/accuracy" in row for row in rows)
