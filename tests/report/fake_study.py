"""A made-up study: random tables in the documented layout, drawn images, manifests of complete stages.

python tests/report/fake_study.py FOLDER   # writes FOLDER/report/index.html to look at
"""

import dataclasses
import pathlib
import sys

import numpy as np
from etils import epath

from jsae.report import survey
from jsae.report.build import build
from jsae.report.reading import read_study
from jsae.report.summary import summarise
from jsae.runtime import artifacts, stages
from tests.report import fake_ablation, fake_analysis, fake_trained
from tests.report.fake_results import results
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
    images,
    read_acts,
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

_TABLES = {
    "classifier": {
        "per_class": fake_trained.per_class_table,
        "confusion": fake_trained.confusion_table,
        "calibration": fake_trained.calibration_table,
    },
    "sweep": {"table": fake_trained.sweep_table},
    "analysis": {
        "features": fake_analysis.features_table,
        "top_patches": fake_analysis.patches_table,
        "nearest": fake_analysis.nearest_table,
        "localisation": fake_analysis.localisation_table,
        "receptive": fake_analysis.receptive_table,
        "monosemanticity": fake_analysis.monosemanticity_table,
    },
    "ablation": {
        "feature_space": fake_ablation.feature_space_table,
        "input_space": fake_ablation.input_space_table,
        "agreement": fake_ablation.agreement_table,
        "atlas": fake_ablation.atlas_table,
        "atlas_classes": fake_ablation.atlas_classes_table,
        "cumulative": fake_ablation.cumulative_table,
        "sigma_sweep": fake_ablation.sigma_sweep_table,
        "known_answer": fake_ablation.known_answer_table,
        "baselines": fake_ablation.baselines_table,
    },
}


def make_workdir(workdir, *, without=()) -> epath.Path:
    """Write manifests, tables and curves of all stages but the report and those in `without`."""
    workdir = epath.Path(workdir)
    for position, (name, found) in enumerate(results().items()):
        if name in without:
            continue
        manifest = {"stage": name, "status": "complete", "digest": name, "upstream": None, "results": found}
        manifest |= {"seconds": 12.345 * (position + 1), "compile_seconds": 3.21, "config": {}}
        manifest |= {
            "device": {"kind": "cpu", "count": 1},
            "versions": {"jax": "0.10.2"},
            "git_revision": "0a1b2c",
            "format": stages.FORMAT,
        }
        artifacts.write_json(workdir / name / "manifest.json", manifest)
    for stage, tables in _TABLES.items():
        for name, table in tables.items() if stage not in without else ():
            artifacts.write_table(workdir / stage / f"{name}.parquet", table(), {})
    for stage in {"classifier", "sae"}.difference(without):
        (workdir / stage / "metrics.jsonl").write_text(fake_trained.curve(stage))
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
    } | changes


def read_made_up(workdir, n_pages=12, **changes):
    """The study of a made-up workdir, without a survey."""
    summary = summarise(CONFIG, workdir)
    return read_study(CONFIG, workdir, summary, n_pages=n_pages, facts=facts(**changes))


def make_report(workdir, out, **changes) -> int:
    """Build the report of a made-up workdir into the folder `out`; the number of feature pages."""
    out = epath.Path(out)
    study = read_made_up(workdir, **changes)
    with_images = changes.get("data_kind") != "arrays"
    if study.features:
        study = dataclasses.replace(study, survey=look(study, with_images), twin={1: (40, 0.875)})
    return build(
        study,
        lambda path, data: artifacts.write_bytes(out / path, data),
        images=images() if with_images else None,
        image_ids=[f"{i:07d}" for i in range(N_IMAGES)],
    )


def look(study, with_images=True):
    """The survey of the made-up activations."""
    return survey.take(
        read_acts,
        SAE,
        np.full(N_FEATURES, LARGEST),
        n_images=N_IMAGES,
        maps=survey.wanted_maps({f: study.patches(f) for f in study.chosen}),
        images=survey.spread(N_IMAGES, 12) if with_images else [],
        logits_from=HEAD if with_images else None,
        labels=LABELS,
    )


if __name__ == "__main__":
    target = pathlib.Path(sys.argv[1])
    make_report(make_workdir(target), stages.folder(CONFIG, target, "report"))
    print(target / "report" / "index.html")
