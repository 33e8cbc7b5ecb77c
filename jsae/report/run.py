"""The report stage: reads what the other stages left, writes report/ and summary.json, always again."""

import dataclasses
import functools
from typing import Any

from etils import epath

from jsae.activations import ActivationStore
from jsae.classifier.forward import LogitsFromActs
from jsae.data import cache
from jsae.report import results, survey, twins
from jsae.report.build import build
from jsae.report.summary import summarise, write_summary
from jsae.runtime import artifacts, mesh, paths, settings, stages
from jsae.runtime.context import RunContext
from jsae.study import Study

RANGES = {"n_features": settings.NONE_OR_MORE, "n_images": settings.NONE_OR_MORE}
_BATCH = 16  # images encoded at once, or the next multiple of the mesh's data axis
_FOLDERS = ("features", "images", "tables", "figures")


def run(config: Any, workdir: str | epath.Path, context: RunContext | None = None) -> None:
    """Write workdir/report/, a page for each of the first features, and workdir/summary.json.

    Raises StageMissing if the stage above has never been finished. Parts of the study that were skipped
    are left out, and the page says so.
    """
    context = context or RunContext()
    stage = stages.begin(config, workdir, "report", context, always=True)
    devices = mesh.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    study = Study(paths.resolve(workdir), stages.plain(config), devices)
    split, store = _test_images(study), _test_activations(study)
    summary = summarise(config, workdir)
    facts = results.facts_of(study.config, split, store, summary)
    found = results.read(study, summary, n_pages=config.report.n_features, facts=facts)
    found = _surveyed(study, found, store, context)  # on every process: a restore is a joint operation
    n_pages = 0
    if mesh.is_writer():
        _drop_pages(stage.folder)
        n_pages = build(
            found,
            lambda path, data: artifacts.write_bytes(stage.folder / path, data),
            images=None if split is None else split.images,
            image_ids=None if store is None else store.image_ids,
            augmented=_augmented(study),
            context=context,
        )
    stage.finish({"n_feature_pages": n_pages})
    write_summary(config, workdir)
    context.log.info("report: %s", epath.Path(stage.folder) / "index.html")


def check_config(config: Any) -> None:
    """Raise ValueError or FileNotFoundError for settings of the report that cannot be right."""
    settings.check("config.report", config.report, RANGES)
    twins.check(config.report.twin)


def _has_images(study: Study) -> bool:
    return "classifier" not in stages.skipped(study.config)


def _test_images(study: Study) -> cache.Split | None:
    """The test images, None where the study was made on bare activations."""
    return study.data["test"] if _has_images(study) else None


def _test_activations(study: Study) -> ActivationStore | None:
    try:
        stages.require(study.config, study.workdir, "activations")
    except stages.StageMissing:
        return None
    return study.activations("test")


def _augmented(study: Study) -> bytes | None:
    """The classifier's picture of its augmented images, of this workdir or the one it was taken from."""
    path = stages.folder(study.config, study.workdir, "classifier") / "augmented.png"
    return path.read_bytes() if _has_images(study) and path.exists() else None


def _surveyed(
    study: Study, found: results.Results, store: ActivationStore | None, context: RunContext
) -> results.Results:
    """The results with what is drawn from activations and the SAE's weights, as they are without either."""
    if store is None or not found.features:
        return found
    c, logits_from, images = study.config["report"], None, []
    if _has_images(study):
        logits_from = LogitsFromActs(study.params, store.site)
        images = survey.spread(store.n_images, c["n_images"])
    n_data = 1 if study.mesh is None else study.mesh.shape["data"]
    measured = survey.take(
        functools.partial(
            study.run_pass,
            "test",
            batch_size=-(-_BATCH // n_data) * n_data,
            context=context,
            label="report: activations",
        ),
        found.features["max"],
        maps={(patch["image"], feature) for feature in found.chosen for patch in found.patches(feature)},
        images=images,
        logits_from=logits_from,
    )
    twin = twins.matches(c["twin"], study.sae, found.chosen)
    return dataclasses.replace(found, survey=measured, twin=twin)


def _drop_pages(folder: epath.Path) -> None:
    """Remove the pages and pictures of an earlier report, so that none is left over from it."""
    for name in _FOLDERS:
        if (folder / name).exists():
            (folder / name).rmtree()
    for path in folder.glob("*"):
        if path.name.endswith((".html", ".js", ".css")):
            path.unlink()
