"""The analysis stage's tables that need images: parts, receptive fields, how alike a feature's images are.

Studies of bare activations have none of them, sets without masks and boxes no parts.
"""

import functools

import jax
import numpy as np
from etils import epath

from jsae import classifier, metrics
from jsae.analysis import cells, localisation, monosemanticity, parts, receptive, tables
from jsae.data import augment, identity
from jsae.runtime import logs, paths, preemption, stages


def every_table(config, workdir, stores: dict, sae, patches, features) -> tuple[dict, dict]:
    """(results, file name -> table) of what the images tell.

    Args:
      config, workdir: of the study.
      stores: activation stores of "train" and "test".
      sae: the SAE.
      patches, features: top_patches.parquet and features.parquet.

    Raises ValueError if config.data has other images than the stores.
    """
    if "classifier" in stages.skipped(config):
        return {"parts": None}, {}
    params = classifier.load(stages.folder(config, workdir, "classifier"))
    splits = identity.splits_of(config, workdir)
    stride_px = params.model.stride_px(stores["test"].site)
    where = cells.of_stores(splits, stores, stride_px)
    found, written = _parts(config, stores, sae, where) if where else (None, {})
    site = stores["test"].site
    written[receptive.FILE] = _receptive(
        config, params, site, splits["test"], sae, patches, features, stride_px
    )
    if config.analysis.embedding_workdir:
        written[monosemanticity.FILE] = _monosemanticity(config, stores["test"], sae, splits["test"])
    return {"parts": found}, written


def embedding_folder(config) -> epath.Path:
    """The classifier of config.analysis.embedding_workdir; ValueError if it has no finished one."""
    name = config.analysis.embedding_workdir
    folder = paths.resolve(name) / "classifier"
    if (stages.manifest_in(folder) or {}).get("status") != "complete":
        raise ValueError(
            f"config.analysis.embedding_workdir={name!r} has no finished classifier; "
            "give the workdir of a study of another seed"
        )
    return folder


def check_embeddings(config, workdir) -> None:
    """Raise ValueError if the embeddings would come from this study's own classifier, or from none."""
    if not config.analysis.embedding_workdir:
        return
    own = (stages.read_manifest(config, workdir, "classifier") or {}).get("digest")
    if stages.manifest_in(embedding_folder(config))["digest"] == own:
        raise ValueError(
            f"config.analysis.embedding_workdir={config.analysis.embedding_workdir!r} is this study's own "
            "classifier, which the features are made from; give a study of another seed"
        )


def _parts(config, stores, sae, where) -> tuple[dict, dict]:
    n_images = 2 * sum(len(localisation.images_of(store, sae.n_features)) for store in stores.values())
    with logs.progress(n_images, label="analysis: parts", unit="image") as progress:
        columns, table = parts.measure(
            sae,
            stores,
            where,
            batch_size=config.analysis.batch_size,
            seed=config.seed,
            on_batch=progress.update,
        )
    return parts.headline(columns), {localisation.FILE: table, parts.FILE: tables.make(columns, parts.SCHEMA)}


def _receptive(config, params, site: str, split, sae, patches, features, stride_px: int):
    """receptive.parquet of the class-selective features, by falling AUROC."""
    rows = zip(features["feature"], features["class_selective"], features["auroc"], strict=True)
    rows = [(f.as_py(), auroc.as_py()) for f, selective, auroc in rows if selective.as_py()]
    chosen = [f for f, _ in sorted(rows, key=lambda row: -row[1])][: config.analysis.n_receptive]

    @jax.jit
    def measure(params, sae, *three):
        def acts_of(images):
            return classifier.apply(params, images)[1][site]

        return receptive.shares(acts_of, sae, *three, stride_px=stride_px)

    columns = receptive.columns(
        functools.partial(measure, params, sae),
        lambda images: np.asarray(augment.normalise(split.images[images])),
        {name: patches[name].to_numpy() for name in ("feature", "image", "y", "x")},
        chosen,
        image_px=split.images.shape[1],
        stride_px=stride_px,
        batch_size=min(config.analysis.batch_size, 32),
    )
    return tables.make(columns, receptive.SCHEMA)


def _monosemanticity(config, store, sae, split):
    """monosemanticity.parquet, with the embeddings of another study's classifier."""
    other = classifier.load(embedding_folder(config))

    @jax.jit
    def embed(params, images):
        with jax.default_matmul_precision("float32"):
            return classifier.apply(params, augment.normalise(images))[1][params.model.sites[-1]].mean((1, 2))

    @jax.jit
    def pool(sae, acts):
        with jax.default_matmul_precision("float32"):
            return sae.encode(acts).mean((1, 2))

    embeddings, pooled = [], []
    batch_size = config.analysis.batch_size
    with logs.progress(store.n_images, label="analysis: monosemanticity", unit="image") as progress:
        for start, acts, mask in store.batches(batch_size):
            n = int(mask.sum())
            images = np.zeros((batch_size, *split.images.shape[1:]), np.uint8)
            images[:n] = split.images[start : start + n]
            embeddings.append(np.asarray(embed(other, images))[:n])
            pooled.append(np.asarray(pool(sae, acts))[:n])
            progress.update(n)
            preemption.check_here()
    found = metrics.monosemanticity(np.concatenate(pooled), np.concatenate(embeddings))
    return tables.make(monosemanticity.columns(*found), monosemanticity.SCHEMA)
