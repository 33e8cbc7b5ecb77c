"""The report stage: reads what the other stages left, writes report/ and summary.json, always anew."""

import dataclasses

import jax
import numpy as np
from etils import epath

from jsae import classifier, sae
from jsae.activations.store import ActivationStore
from jsae.classifier.forward import LogitsFromActs
from jsae.data import cache, identity
from jsae.report import survey, twins
from jsae.report.build import build
from jsae.report.reading import Study, read_study
from jsae.report.summary import complete_manifests, summarise, write_summary
from jsae.runtime import artifacts, logs, mesh, settings, stages
from jsae.runtime.context import RunContext

RANGES = {"n_features": settings.NONE_OR_MORE, "n_images": settings.NONE_OR_MORE}
_FOLDERS = ("features", "images", "tables", "figures")


def run(config, workdir, context: RunContext | None = None) -> None:
    """Write workdir/report/, a page for each of the first features, and workdir/summary.json.

    Raises StageMissing if the stage above has never been finished. Parts of the study that were skipped
    are left out, and the page says so.
    """
    stage = stages.begin(config, workdir, "report", always=True)
    split, store = _test_split(config, workdir), _test_store(config, workdir)
    summary = summarise(config, workdir)
    facts = _facts(config, split, store, summary)
    study = read_study(config, workdir, summary, n_pages=config.report.n_features, facts=facts)
    study = _surveyed(config, workdir, study, store)  # on every process: a restore is a joint operation
    n_pages = 0
    if mesh.is_writer():
        _drop_pages(stage.folder)
        n_pages = build(
            study,
            _writer(stage.folder),
            images=None if split is None else split.images,
            image_ids=None if store is None else store.image_ids,
            augmented=_augmented(config, workdir),
        )
    stage.finish({"n_feature_pages": n_pages})
    write_summary(config, workdir)
    logs.get_logger().info("report: %s", epath.Path(stage.folder) / "index.html")


def check_config(config) -> None:
    """Raise ValueError or FileNotFoundError for settings of the report that cannot be right."""
    settings.check("config.report", config.report, RANGES)
    twins.check(config.report.twin)


def _writer(folder):
    return lambda path, data: artifacts.write_bytes(folder / path, data)


def _test_split(config, workdir) -> cache.Split | None:
    """The test images, None where the study was made on bare activations."""
    return None if "classifier" in stages.skipped(config) else identity.splits_of(config, workdir)["test"]


def _test_store(config, workdir) -> ActivationStore | None:
    folder = stages.folder(config, workdir, "activations") / "test"
    done = complete_manifests(config, workdir)["activations"] is not None
    return ActivationStore.open(folder) if done and folder.exists() else None


def _augmented(config, workdir) -> bytes | None:
    """The classifier's picture of its augmented images, of this workdir or the one it was taken from."""
    if "classifier" in stages.skipped(config):
        return None
    path = stages.folder(config, workdir, "classifier") / "augmented.png"
    return path.read_bytes() if path.exists() else None


def _facts(config, split, store, summary: dict) -> dict:
    """The `facts` of a Study."""
    known = split if split is not None else store  # both have labels and class_names
    labels = np.zeros(0, np.int32) if known is None else np.asarray(known.labels)
    names = () if known is None or not (labels >= 0).any() else tuple(known.class_names)
    return {
        "data_kind": config.data.kind,
        "val_in_train": config.data.train_split == "trainval",
        "arch": summary["classifier"]["arch"],
        "site": summary["classifier"]["site"] or (store.site if store is not None else None),
        "grid": None if store is None else tuple(store.grid),
        "image_px": None if split is None else split.images.shape[2],
        "n_test": None if known is None else len(labels),
        "n_skipped": 0 if split is None else len(split.skipped),
        "class_names": names,
        "class_sizes": np.bincount(labels[labels >= 0], minlength=len(names)) if names else None,
    }


def _surveyed(config, workdir, study: Study, store) -> Study:
    """The study with what is drawn from activations and the SAE's weights, as it is without either."""
    if store is None or not study.features:
        return study
    model = sae.load(stages.folder(config, workdir, "sae"))
    logits_from, listed = None, []
    if "classifier" not in stages.skipped(config):
        params = classifier.load(stages.folder(config, workdir, "classifier"))
        logits_from = LogitsFromActs(params, store.site)
        listed = survey.spread(store.n_images, config.report.n_images)
    found = survey.take(
        store.read,
        jax.tree.map(np.asarray, model),
        study.features["max"],
        n_images=store.n_images,
        maps=survey.wanted_maps({feature: study.patches(feature) for feature in study.chosen}),
        images=listed,
        logits_from=logits_from,
        labels=store.labels,
    )
    twin = twins.matches(config.report.twin, np.asarray(model.w_dec), study.chosen)
    return dataclasses.replace(study, survey=found, twin=twin)


def _drop_pages(folder) -> None:
    """Remove the pages and pictures of an earlier report, so that none is left over from it."""
    for name in _FOLDERS:
        if (folder / name).exists():
            (folder / name).rmtree()
    for path in folder.glob("*"):
        if path.name.endswith((".html", ".js", ".css")):
            path.unlink()
