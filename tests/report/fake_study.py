"""A made-up study: random tables in the documented layout, drawn images, manifests of complete stages.

python tests/report/fake_study.py FOLDER   # writes FOLDER/report/index.html to look at
"""

import dataclasses
import functools
import pathlib
import sys

import numpy as np
from etils import epath

from jsae.activations import run_pass
from jsae.report import results, survey
from jsae.report.build import build
from jsae.report.summary import summarise
from jsae.runtime import artifacts, stages
from jsae.study import Study
from tests.report import fake_results, fake_tables
from tests.report.fake_world import (
    CLASSES,
    GRID,
    HEAD,
    IMAGE_PX,
    LABELS,
    LARGEST,
    N_FEATURES,
    N_IMAGES,
    SAE,
    FakeStore,
    images,
)

CONFIG = {
    "seed": 0,
    "data": {"kind": "synthetic_aircraft", "train_split": "train"},
    "classifier": {},
    "activations": {"site": "stage4"},
    "sae": {"variant": "topk"},
    "analysis": {},
    "ablation": {},
    "report": {"n_features": 12, "n_images": 30, "twin": ""},
}


def make_workdir(workdir, *, without=()) -> epath.Path:
    """Write manifests, tables and curves of all stages but the report and those in `without`."""
    workdir = epath.Path(workdir)
    for position, (name, found) in enumerate(fake_results.results().items()):
        if name in without:
            continue
        manifest = {"format": stages.FORMAT, "stage": name, "status": "complete", "digest": name}
        manifest |= {"upstream": None, "results": found}
        manifest |= {"seconds": 12.345 * (position + 1), "compile_seconds": 3.21, "config": {}}
        manifest |= {
            "device": {"kind": "cpu", "count": 1},
            "versions": {"jax": "0.10.2"},
            "git_revision": "0a1b2c",
            "format": stages.FORMAT,
        }
        artifacts.write_json(workdir / name / "manifest.json", manifest)
    for stage, tables in fake_tables.all_tables().items():
        for name, table in tables.items() if stage not in without else ():
            artifacts.write_table(workdir / stage / f"{name}.parquet", table, {})
    for stage in {"classifier", "sae"}.difference(without):
        (workdir / stage / "metrics.jsonl").write_text(fake_tables.curve(stage))
    return workdir


def facts(**changes) -> dict:
    """What `run` would find out about data and site."""
    return {
        "data_kind": "synthetic_aircraft",
        "arch": "atto",
        "site": "stage4",
        "grid": GRID,
        "image_px": IMAGE_PX,
        "n_test": N_IMAGES,
        "n_skipped": 0,
        "class_names": CLASSES,
        "class_sizes": np.bincount(LABELS),
        "val_in_train": False,
    } | changes


def read_made_up(workdir, n_pages=12, **changes):
    """The results of a made-up workdir, without a survey."""
    summary = summarise(CONFIG, workdir)
    study = Study(epath.Path(workdir), CONFIG)
    return results.read(study, summary, n_pages=n_pages, facts=facts(**changes))


def make_report(workdir, out, **changes) -> int:
    """Build the report of a made-up workdir into the folder `out`; the number of feature pages."""
    out = epath.Path(out)
    found = read_made_up(workdir, **changes)
    with_images = changes.get("data_kind") != "arrays"
    if found.features:
        found = dataclasses.replace(found, survey=surveyed(found, with_images), twin={1: (40, 0.875)})
    return build(
        found,
        lambda path, data: artifacts.write_bytes(out / path, data),
        images=images() if with_images else None,
        image_ids=[f"{i:07d}" for i in range(N_IMAGES)],
    )


def surveyed(found, with_images=True):
    """The survey of the made-up activations."""
    return survey.take(
        functools.partial(run_pass, FakeStore(), SAE, batch_size=16),
        np.full(N_FEATURES, LARGEST),
        maps={(patch["image"], feature) for feature in found.chosen for patch in found.patches(feature)},
        images=survey.spread(N_IMAGES, 12) if with_images else [],
        logits_from=HEAD if with_images else None,
    )


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    make_report(make_workdir(target), stages.folder(CONFIG, target, "report"))
    print(target / "report" / "index.html")
