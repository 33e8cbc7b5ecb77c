"""Stage `analysis`: what every feature of the SAE sees.

Reads the activations of train and test and the trained SAE; writes features.parquet, top_patches.parquet,
nearest.parquet and receptive.parquet, where masks or boxes say where things are localisation.parquet and
parts.parquet, and with config.analysis.embedding_workdir monosemanticity.parquet. Train chooses (alive, top
class, part), test reports. The work takes a few passes over each split; an interrupted stage goes on behind
the last whole pass.
"""

from jsae import sae as saes
from jsae.activations import ActivationStore
from jsae.analysis import features, images, localisation, nearest, tables, top_patches
from jsae.analysis.survey import Survey, survey
from jsae.runtime import artifacts, logs, passes, preemption, settings, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext

MIN_TOP = 16
RANGES = {
    "n_top": settings.at_least(MIN_TOP, "which purity16 looks at"),
    "n_permutations": settings.at_least(2, "which a null needs; 100 is usual"),
    "batch_size": settings.COUNT,
    "n_receptive": settings.NONE_OR_MORE,
}


def run(config, workdir, context: RunContext | None = None) -> None:
    """Analyse the SAE of the workdir.

    Raises:
      ValueError: n_top, n_permutations or batch_size out of range, embeddings by the study's own classifier
        or by none, or activations that are not finite.
      stages.StageMissing: no finished SAE.
    """
    c = config.analysis
    check_config(config)  # before the stage keeps these settings as its own
    images.check_embeddings(config, workdir)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    stage = stages.begin(config, workdir, "analysis")
    if stage.up_to_date:
        return
    folder = stages.folder(config, workdir, "activations")
    stores = {name: ActivationStore.open(folder / name) for name in ("train", "test")}
    sae = saes.load(stages.folder(config, workdir, "sae"))
    patches, rows, results = analyze(
        stores["train"],
        stores["test"],
        sae,
        n_top=c.n_top,
        batch_size=c.batch_size,
        n_permutations=c.n_permutations,
        seed=config.seed,
        mesh=mesh,
        keep=passes.Passes(stage.folder, (Survey, top_patches.TopPatches)),
    )
    n_test = stores["test"].n_images
    with logs.progress(n_test, label="analysis: nearest", unit="image") as progress:
        alike = nearest.columns(stores["test"], sae, batch_size=c.batch_size, on_batch=progress.update)
    written = {top_patches.FILE: patches, nearest.FILE: tables.make(alike, nearest.SCHEMA)}
    more_results, more = images.every_table(config, workdir, stores, sae, patches, rows)
    written[features.FILE] = features.with_parts(rows, more.get(localisation.FILE))
    for name, table in (written | more).items():
        artifacts.write_table(stage.folder / name, table, stage.manifest)
    stage.finish(results | more_results)


def check_config(config) -> None:
    """Raise ValueError for settings of this stage that cannot be right, before anything has run."""
    c = config.analysis
    settings.check("config", config, {"seed": settings.SEED})
    settings.check("config.analysis", c, RANGES)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    meshes.check_batch(mesh, c.batch_size, "config.analysis.batch_size")
    if c.embedding_workdir:
        images.embedding_folder(config)


def analyze(train_store, test_store, sae, *, n_top, batch_size, n_permutations, seed, mesh=None, keep=None):
    """Both tables and the headline numbers of one SAE.

    The test split's pooled activations [n_test, F] are kept in host memory, 4 bytes each, for ranks and
    permutations; everything else is bounded by the batch or by a block of features.

    Args:
      train_store, test_store: activation stores of the two splits.
      sae: a pytree with encode and n_features, see `survey`.
      n_top, batch_size, n_permutations, seed: the stage's settings.
      mesh: as for `survey`.
      keep: keeps what each pass has found (`passes.Passes`), so that an interrupted stage need not pass anew.

    Returns:
      (top_patches table, features table, results dict).
    """
    log, n_test, n_features = logs.get_logger(), test_store.n_images, sae.n_features
    if n_top > n_test:
        log.warning("analysis: %d top patches asked for, test has %d images: all are used", n_top, n_test)
        n_top = n_test
    log.info(
        "analysis: the pooled test activations [%d, %d] take %.0f MiB of host memory",
        *(n_test, n_features, n_test * n_features * 4 / 2**20),
    )
    settings = {"batch_size": batch_size, "mesh": mesh}
    keep = keep or (lambda name, make: make)
    with logs.progress(train_store.n_images, label="analysis of train", unit="image") as progress:
        train = keep("survey-train", survey)(
            train_store, sae, n_top=0, keep_pooled=False, on_batch=progress.update, **settings
        )
    with logs.progress(n_test, label="analysis of test", unit="image") as progress:
        test = keep("survey-test", survey)(
            test_store, sae, n_top=n_top, keep_pooled=True, on_batch=progress.update, **settings
        )
    with logs.progress(n_features, label="analysis: nulls", unit="feature") as progress:

        def step(n: int) -> None:
            progress.update(n)
            preemption.check_here()

        columns = features.describe(
            train,
            test,
            test_store.labels,
            n_permutations=n_permutations,
            seed=seed,
            on_block=step,
        )
    results = features.headline(columns) | {"n_images": n_test, "n_vectors": test.n_vectors, "n_top": n_top}
    log.info(
        "analysis: of %d features %d alive, %d eligible, %d class-selective",
        *(results[k] for k in ("n_features", "n_features_alive", "n_eligible", "n_class_selective")),
    )
    return top_patches.table(test.top, test_store), features.table(columns, test_store.class_names), results
