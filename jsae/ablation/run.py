"""The stage `ablation`: what single features do to the prediction, with controls, as tables.

Reads features.parquet, parts.parquet, the stores of train (for the covariance) and test, the test images, the
classifier and the SAE. Writes feature_space.parquet, input_space.parquet, agreement.parquet and
sigma_sweep.parquet for the chosen features; at the final site also atlas.parquet and atlas_classes.parquet
for all features and cumulative.parquet for many at once; where parts are known known_answer.parquet. Hands
the headline numbers to the manifest. An interrupted stage goes on behind the last whole pass.

Every process of a multi-process run computes the same on its first local device, and one writes.
"""

import jax
import numpy as np

from jsae import classifier, sae
from jsae.ablation import (
    agreement,
    atlas_survey,
    choice,
    controls,
    cumulative,
    feature_space,
    fill_sweep,
    fills,
    input_space,
    splice,
    stage_tables,
    statistics,
    tables,
)
from jsae.ablation.feature_space import MEASURES, SCOPES, TARGETS
from jsae.activations import ActivationStore
from jsae.analysis import cells
from jsae.classifier.forward import LogitsAndActs, LogitsFromActs
from jsae.data import augment, identity
from jsae.runtime import artifacts, logs, passes, preemption, settings, stages
from jsae.runtime.context import RunContext

KEPT = (  # what the passes return
    feature_space.FeatureEffects,
    input_space.InputEffects,
    atlas_survey.AtlasEffects,
    cumulative.Curves,
)

RANGES = {
    "n_features": settings.COUNT,
    "features": settings.NOT_NEGATIVE,
    "max_images": settings.COUNT,
    "sigma_px": settings.POSITIVE,
    "size_cells": settings.COUNT,
    "batch_size": settings.COUNT,
    "n_bootstrap": settings.at_least(2, "of which the interval is made; 1000 is usual"),
    "n_joint": settings.COUNT,
    "n_atlas_images": settings.COUNT,
    "sweep_sigmas_px": settings.POSITIVE,
    "sweep_sizes_cells": settings.COUNT,
    "n_sweep_features": settings.NONE_OR_MORE,
    "n_sweep_images": settings.NONE_OR_MORE,
}


def run(config, workdir, context: RunContext | None = None) -> None:
    """Make the ablation stage of a workdir.

    Raises:
      stages.StageMissing: an earlier stage is not finished.
      ValueError: an unknown feature in config.ablation.features, or other test images than the store's.
    """
    stage = stages.begin(config, workdir, "ablation")
    if stage.up_to_date:
        return
    with jax.default_matmul_precision("float32"):
        results, written = _measure(config, workdir, passes.Passes(stage.folder, KEPT))
    for name, table in written.items():
        artifacts.write_table(stage.folder / f"{name}.parquet", table, stage.manifest)
    stage.finish(results)


def check_config(config) -> None:
    """Raise ValueError for settings of this stage that cannot be right, before anything has run."""
    c = config.ablation
    settings.check("config", config, {"seed": settings.SEED})
    settings.check("config.ablation", c, RANGES)
    for fill in c.sweep_fills:
        fills.check(fill)
    choice.check_given(c.features, config.sae.n_features)


def _measure(config, workdir, keep: passes.Passes) -> tuple[dict, dict]:
    """(results, table name -> pa.Table); `keep` keeps what each pass has found."""
    c = config.ablation
    where = {name: stages.folder(config, workdir, name) for name in stages.STAGES}
    table = artifacts.read_table(where["analysis"] / "features.parquet").to_pydict()
    stores = {name: ActivationStore.open(where["activations"] / name) for name in ("train", "test")}
    splits = {name: split for name, split in identity.splits_of(config, workdir).items() if name in stores}
    (train, test), split = stores.values(), splits["test"]
    if list(split.ids) != list(test.image_ids):
        raise ValueError(
            f"the {len(split.ids)} test images of config.data are not the {test.n_images} whose activations "
            f"lie in {test.folder}; extract them anew with --restart=activations"
        )
    params, model = classifier.load(where["classifier"]), sae.load(where["sae"])
    from_acts = LogitsFromActs(params, test.site)
    features = choice.choose_features(table, c.n_features, c.features)
    tops = {f: -1 if table["top_class"][f] is None else int(table["top_class"][f]) for f in features}

    with logs.progress(test.n_images, label="ablation: splice", unit="image") as bar:
        spliced = keep("splice", splice.measure)(
            from_acts,
            model,
            test.batches(c.batch_size),
            labels=test.labels,
            mean=test.mean,
            on_batch=lambda n: stage_tables.step(bar, n),
        )
    root = controls.covariance_root(_unpadded(train, c.batch_size), train.mean)
    with logs.progress(test.n_images, label="ablation: feature space", unit="image") as bar:
        inside = keep("feature_space", feature_space.measure)(
            from_acts,
            model,
            test.batches(c.batch_size),
            labels=test.labels,
            features=features,
            top_classes=[tops[f] for f in features],
            root=root,
            key=jax.random.key(config.seed),
            pair_batch=c.batch_size,
            on_batch=lambda n: stage_tables.step(bar, n),
        )
    pairs = input_space.choose_images(inside.features, inside.images, c.max_images, config.seed)
    stride_px = params.model.stride_px(test.site)
    n_passes = len(np.unique(inside.images[pairs])) + 2 * len(pairs)
    normalised, on_aircraft = (
        _normalised(split, c.batch_size),
        cells.aircraft_cells(split, test.grid, stride_px),
    )

    def blurring(rows):
        """Arguments of `input_space.measure` for rows of `inside`, less the fill."""
        return (LogitsAndActs(params, test.site), model, normalised), {
            "features": inside.features[rows],
            "images": inside.images[rows],
            "peaks": inside.peaks[rows],
            "labels": test.labels[inside.images[rows]],
            "top_classes": np.array([tops[f] for f in inside.features[rows].tolist()], np.int32),
            "grid": test.grid,
            "stride_px": stride_px,
            "batch_size": c.batch_size,
            "on_aircraft": on_aircraft,
        }

    with logs.progress(n_passes, label="ablation: input space", unit="image") as bar:
        measured, of_pairs = blurring(pairs)
        outside = keep("input_space", input_space.measure)(
            *measured,
            **of_pairs,
            sigma_px=c.sigma_px,
            size_cells=c.size_cells,
            on_batch=lambda n: stage_tables.step(bar, n),
        )
    n_active = {f: int((inside.features == f).sum()) for f in features}
    agreed = agreement.rows(inside, outside, pairs, features)
    of_tables = {
        "feature_space": (
            tables.feature_space_rows(inside, features, c.n_bootstrap, config.seed),
            tables.FEATURE_SPACE,
        ),
        "input_space": (
            tables.input_space_rows(outside, features, n_active, c.n_bootstrap, config.seed),
            tables.INPUT_SPACE,
        ),
        "agreement": (agreed, tables.AGREEMENT),
    }
    stated = [f for f in features if n_active[f] >= statistics.MIN_ACTIVE]
    selective = [f for f in stated if table["class_selective"][f]]
    if not selective:
        logs.get_logger().warning(
            "ablation: no class-selective feature was ablated; mean_effect_minus_control_margin is null"
        )
    seen = (stated, selective, c.n_bootstrap, config.seed)
    at = SCOPES.index("map")
    results = {
        "feature_space": headline(inside.features, inside.images, inside.deltas[:, at], *seen),
        "input_space": headline(outside.features, outside.images, outside.deltas, *seen),
        "agreement": agreement.summary(agreed, c.n_bootstrap, config.seed),
        "splice": spliced,
        "n_features_ablated": len(features),
        "n_pairs": {"feature_space": len(inside.features), "input_space": len(outside.features)},
    }
    written = {name: tables.table(*parts) for name, parts in of_tables.items()}
    of_atlas = params, model, test, table["top_class"]
    results["atlas"], more = stage_tables.every_feature(config, keep, *of_atlas)
    results["known_answer"], known = stage_tables.known_parts(
        config, keep, where, from_acts, model, stores, splits, stride_px, root
    )
    kept = fill_sweep.first_of_each(inside.features[pairs], features[: c.n_sweep_features], c.n_sweep_images)
    swept = stage_tables.fills(config, keep, *blurring(pairs[kept]), n_active)
    return results, written | more | known | swept


def _unpadded(store: ActivationStore, batch_size: int):
    for _, acts, mask in store.batches(batch_size):
        preemption.check_here()
        yield acts[mask > 0]


def _normalised(split, batch_size: int):
    """A function image numbers [n <= batch_size] -> float32 [n, S, S, 3], always computed in one shape."""

    def read(images: np.ndarray) -> np.ndarray:
        pixels = np.zeros((batch_size, *split.images.shape[1:]), np.uint8)
        pixels[: len(images)] = split.images[images]
        return np.asarray(augment.normalise(pixels))[: len(images)]

    return read


def headline(features, images, deltas, stated, selective, n_bootstrap: int, seed: int) -> dict:
    """The numbers of summary.json for one space, each mean with its `_ci95`.

    Args:
      features, images: int [M], the pairs.
      deltas: [M, kind, target, measure]; kind 0 the effect, 1 its control (direction or matched patch),
        2 the matched feature (feature space only).
      stated: features with enough active images; the means are over these.
      selective: the class-selective ones among them.
      n_bootstrap, seed: of the intervals, which resample images.
    """
    label, top = TARGETS.index("label"), TARGETS.index("top_class")
    margin = MEASURES.index("margin")
    ours = np.isin(features, stated)
    numbers = {
        "n_features": len(np.unique(features[ours])),
        "n_images": len(np.unique(images[ours])),
    }

    def add(name, values, rows):
        rng = np.random.default_rng([seed, 3])
        found = None, None, None
        if values is not None:
            found = statistics.mean_over_features(
                values[rows], features[rows], images[rows], n_bootstrap, rng
            )
        numbers[name] = found[0]
        numbers[f"{name}_ci95"] = None if found[0] is None else [found[1], found[2]]

    for measure in ("logit", "margin", "confidence"):
        add(f"mean_delta_{measure}", deltas[:, 0, label, MEASURES.index(measure)], ours)
    add("control_mean_delta_margin", deltas[:, 1, label, margin], ours)
    of_feature = deltas[:, 2, label, margin] if deltas.shape[1] > 2 else None
    add("control_feature_mean_delta_margin", of_feature, ours)
    difference = deltas[:, 0, top, margin].astype(np.float64) - deltas[:, 1, top, margin]
    add("mean_effect_minus_control_margin", difference, np.isin(features, selective))
    return numbers
