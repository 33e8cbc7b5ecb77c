"""Stage `analysis`: what every feature of the SAE sees.

Reads the activations of train and test and the trained SAE; writes features.parquet, top_patches.parquet,
nearest.parquet and pixel_maps.parquet, where masks or boxes say where things are localisation.parquet and
parts.parquet, and with config.analysis.embedding_workdir monosemanticity.parquet. Train chooses (alive, top
class, part), test reports. The work takes a few passes over each split, on all devices; an interrupted stage
goes on behind the last whole pass.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from jsae.analysis import features, images, nearest, top_patches
from jsae.analysis.pixel_maps.attribution import METHODS
from jsae.analysis.strength import KeepPooled, MeasureStrength, Strength, spaced
from jsae.analysis.top_patches import KeepTopPatches, TopPatches
from jsae.runtime import artifacts, passes, settings, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.study import Study

MIN_TOP = 16
_VALUES = 2**28  # of train's pooled features, 4 bytes each on the host; more images are thinned out evenly
RANGES = {
    "n_top": settings.at_least(MIN_TOP, "which purity16 looks at"),
    "n_permutations": settings.at_least(2, "which a null needs; 100 is usual"),
    "batch_size": settings.COUNT,
}
PIXEL_MAP_RANGES = {"n_features": settings.NONE_OR_MORE, "n_patches": settings.COUNT}


def run(config: Any, workdir: Any, context: RunContext | None = None) -> None:
    """Analyse the SAE of the workdir.

    Raises:
      ValueError: n_top, n_permutations or batch_size out of range, embeddings by the study's own classifier
        or by none, or activations that are not finite.
      stages.StageMissing: no finished SAE.
    """
    context, c = context or RunContext(), config.analysis
    check_config(config)  # before the stage keeps these settings as its own
    images.check_embeddings(config, workdir)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    stage = stages.begin(config, workdir, "analysis", context)
    if stage.up_to_date:
        return
    study = Study(workdir, stages.plain(config), mesh)
    pass_over = functools.partial(study.run_pass, batch_size=c.batch_size, context=context)
    keep = passes.Passes(stage, (Strength, TopPatches))
    found = analyze(
        study,
        functools.partial(pass_over, keep=keep),
        n_top=c.n_top,
        n_permutations=c.n_permutations,
        seed=config.seed,
        context=context,
    )
    over_test = functools.partial(pass_over, "test", label="analysis: nearest features")
    alike = nearest.columns(over_test, study.sae.w_dec)
    results, written = images.tables_of(
        study,
        config,
        found.patches,
        found.features,
        found.pooled,
        pass_over,
        batch_size=c.batch_size,
        mesh=mesh,
        context=context,
    )
    written |= {
        "top_patches": found.patches,
        "nearest": nearest.TABLE.make(alike),
        "features": found.features,
    }
    for name, table in written.items():
        artifacts.write_table(stage.folder / f"{name}.parquet", table, stage.manifest)
    stage.finish(found.results | results)


def check_config(config: Any) -> None:
    """Raise ValueError for settings of this stage that cannot be right, before anything has run."""
    c = config.analysis
    settings.check("config", config, {"seed": settings.SEED})
    settings.check("config.analysis", c, RANGES)
    settings.check("config.analysis.pixel_maps", c.pixel_maps, PIXEL_MAP_RANGES)
    settings.check_choice("config.analysis.pixel_maps.method", c.pixel_maps.method, METHODS)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    meshes.check_batch(mesh, c.batch_size, "config.analysis.batch_size")
    if c.embedding_workdir:
        images.embedding_folder(config)


class Analysis(NamedTuple):
    """What `analyze` finds: top_patches.parquet, features.parquet, test features pooled over the grid
    float32 [n, F], and the headline numbers."""

    patches: pa.Table
    features: pa.Table
    pooled: np.ndarray
    results: dict[str, int]


def analyze(
    study: Any,
    pass_over: Callable[..., dict[str, Any]],
    *,
    n_top: int,
    n_permutations: int,
    seed: int,
    context: RunContext | None = None,
) -> Analysis:
    """What each feature of a dictionary sees, from one pass over train and one over test.

    The pooled activations [n, F] of test are kept in host memory, 4 bytes each, for ranks and permutations,
    those of train up to 1 GiB; everything else is bounded by the batch or by a block of features.

    Args:
      study: has activations(split).
      pass_over: (split, reducers, label=) -> results of a pass, `Study.run_pass` with a batch size and,
        where it is not the study's SAE, a dictionary.
      n_top, n_permutations, seed: the stage's settings.
      context: shows progress and stops.
    """
    context, test_store = context or RunContext(), study.activations("test")
    n_classes, n_test = len(test_store.class_names), test_store.n_images
    if n_top > n_test:
        context.log.warning(
            "analysis: %d top patches asked for, test has %d images: all are used", n_top, n_test
        )
        n_top = n_test
    strength = MeasureStrength(n_classes)
    reducers = {"strength": strength, "pooled": KeepPooled(_VALUES)}
    train = pass_over("train", reducers, label="analysis of train")
    kept = {"strength": strength, "top": KeepTopPatches(n_top), "pooled": KeepPooled()}
    test = pass_over("test", kept, label="analysis of test")
    n_features, train_labels = len(train["strength"].fires), np.asarray(study.activations("train").labels)
    with context.progress(n_features, label="analysis: nulls", unit="feature") as progress:

        def step(n: int) -> None:
            progress.update(n)
            context.check_here()

        columns = features.describe(
            train["strength"],
            test["strength"],
            test["top"],
            train["pooled"],
            train_labels[spaced(len(train_labels), n_features, _VALUES)],
            test["pooled"],
            test_store.labels,
            n_permutations=n_permutations,
            seed=seed,
            on_block=step,
        )
    counts = features.headline(columns)
    results = counts | {"n_images": n_test, "n_vectors": test["strength"].n_vectors, "n_top": n_top}
    context.log.info(
        "analysis: of %d features %d alive, %d eligible, %d class-selective (%d others excluded by q)",
        *counts.values(),
    )
    return Analysis(
        top_patches.table(test["top"], test_store),
        features.table(columns, test_store.class_names),
        test["pooled"],
        results,
    )
