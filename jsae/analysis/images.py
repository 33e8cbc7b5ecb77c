"""The analysis stage's tables that need images: parts, pixel maps, how alike a feature's images are.

Studies of bare activations have none of them, sets without masks and boxes no parts.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from etils import epath

from jsae import classifier
from jsae.analysis import cells, localisation, marks, monosemanticity, parts
from jsae.analysis.pixel_maps import table as pixel_maps
from jsae.data import augment, blur
from jsae.runtime import mesh as meshes
from jsae.runtime import paths, stages
from jsae.runtime.batches import map_rows
from jsae.study import Study


def tables_of(
    study: Study,
    config: Any,
    patches: pa.Table,
    features: pa.Table,
    pooled: np.ndarray,
    pass_over: Callable[..., dict[str, Any]],
    **settings: Any,
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """(results, table name -> table) of what the images tell.

    Args:
      study, config: opened, and the stage's whole config.
      patches, features: top_patches.parquet and features.parquet.
      pooled: test features, mean over the grid, float32 [n, F].
      pass_over: (split, reducers, ...) -> results of a pass, `Study.run_pass` with the stage's settings.
      settings: of `map_rows`: batch_size, mesh, context.

    Raises ValueError if config.data has other images than the stores.
    """
    if "classifier" in stages.skipped(config):
        return {"parts": None}, {}
    stride_px = study.model.stride_px(study.site)
    stores = {split: study.activations(split) for split in ("train", "test")}
    where = cells.of_stores(study.data, stores, stride_px)
    results: dict[str, Any] = {"parts": None}
    written: dict[str, pa.Table] = {}
    if where:
        columns, localised = parts.compare(study, where, pass_over, config.seed)
        results["parts"] = {"n_parts": len(columns["part"]) - 1}
        written = {localisation.TABLE.name: localised, parts.TABLE.name: parts.TABLE.make(columns)}
    marked = marks.marks_of(study.data["test"], written.get(localisation.TABLE.name))
    columns = _pixel_maps(study, config, patches, features, marked, settings)
    results["pixel_maps"] = pixel_maps.headline(columns)
    written[pixel_maps.TABLE.name] = pixel_maps.TABLE.make(columns)
    if config.analysis.embedding_workdir:
        embeddings = _embeddings(study, embedding_folder(config), settings)
        written[monosemanticity.TABLE.name] = monosemanticity.table(
            pooled, embeddings, config.analysis.n_permutations, config.seed
        )
    return results, written


def embedding_folder(config: Any) -> epath.Path:
    """The classifier of config.analysis.embedding_workdir; ValueError if it has no finished one."""
    name = config.analysis.embedding_workdir
    folder = paths.resolve(name) / "classifier"
    if (stages.manifest_in(folder) or {}).get("status") != "complete":
        raise ValueError(
            f"config.analysis.embedding_workdir={name!r} has no finished classifier; "
            "give the workdir of a study of another seed"
        )
    return folder


def check_embeddings(config: Any, workdir: Any) -> None:
    """Raise ValueError if the embeddings would come from this study's own classifier, or from none."""
    if not config.analysis.embedding_workdir:
        return
    own = (stages.read_manifest(config, workdir, "classifier") or {}).get("digest")
    if (stages.manifest_in(embedding_folder(config)) or {})["digest"] == own:
        raise ValueError(
            f"config.analysis.embedding_workdir={config.analysis.embedding_workdir!r} is this study's own "
            "classifier, which the features are made from; give a study of another seed"
        )


def _pixel_maps(study: Study, config, patches, features, marked, settings: dict) -> dict[str, np.ndarray]:
    """Columns of pixel_maps.parquet for the class-selective features, by falling AUROC on train."""
    c, images = config.analysis.pixel_maps, study.data["test"].images
    rows = zip(features["feature"], features["class_selective"], features["auroc_train"], strict=True)
    rows = [(f.as_py(), auroc.as_py()) for f, selective, auroc in rows if selective.as_py()]
    stride_px = study.model.stride_px(study.site)
    matrices = tuple(blur.blur_matrix(n, stride_px) for n in images.shape[1:3])
    scores = _scores(study.site, stride_px, c.method)
    return pixel_maps.columns(
        functools.partial(scores, study.params, study.sae, matrices),
        lambda numbers: images[numbers],
        {name: patches[name].to_numpy() for name in ("feature", "rank", "image", "y", "x")},
        [f for f, _ in sorted(rows, key=lambda row: -row[1])][: c.n_features],
        marked,
        n_patches=c.n_patches,
        label="analysis: pixel maps",
        **settings | {"batch_size": min(settings["batch_size"], 32)},
    )


def _scores(site: str, stride_px: int, method: str):
    @jax.jit
    def step(params, sae, matrices, batch):
        acts_of = lambda images: classifier.apply(params, images)[1][site]  # noqa: E731
        return pixel_maps.measure(acts_of, sae, batch, stride_px=stride_px, matrices=matrices, method=method)

    return step


def _embeddings(study: Study, folder: epath.Path, settings: dict) -> np.ndarray:
    """Embeddings [n, D] of the test images: pooled activations of another study's final site."""
    other = classifier.load(folder)
    if study.mesh is not None:
        other = meshes.replicate(study.mesh, meshes.to_host(other))
    images = study.data["test"].images
    return map_rows(
        functools.partial(_embed, other),
        lambda numbers: {"images": images[numbers]},
        len(images),
        label="analysis: embeddings",
        **settings,
    )


@jax.jit
def _embed(params, batch):
    with jax.default_matmul_precision("float32"):
        acts = classifier.apply(params, augment.normalise(batch["images"]))[1]
        return acts[params.model.sites[-1]].mean((1, 2))
