"""The stage `ablation`: what single features do to the prediction, with controls, as tables.

Reads features.parquet, the stores of train (for the covariance) and test, the test images, the classifier and
the SAE. Writes feature_space.parquet and input_space.parquet for the chosen features, and
all_features.parquet and all_features_by_class.parquet for all of them; where only pooling and a linear head
follow on the site, cumulative.parquet for many at once; mediation.parquet with what sets of features carry of
the effect of changed images; of drawn data counterfactual.parquet and counterfactual_response.parquet, for
which an SAE with a frozen decoder is trained. Hands the headline numbers to the manifest. The work is dealt
over all devices; an interrupted stage goes on behind the last whole pass.
"""

import functools
from typing import Any

import jax
import numpy as np
import pyarrow as pa

from jsae.ablation import choice, splice, statistics
from jsae.ablation.all_features import closed_form, cumulative, forward_pass, table_by_class, totals
from jsae.ablation.all_features import table as all_features_table
from jsae.ablation.all_features.reducer import MeasureAllFeatures
from jsae.ablation.counterfactual import comparators, ground_truth
from jsae.ablation.effects import Named
from jsae.ablation.feature_space import controls, pairs
from jsae.ablation.feature_space import table as feature_space_table
from jsae.ablation.headline import of_feature_space
from jsae.ablation.input_space import patches, placements
from jsae.ablation.input_space import table as input_space_table
from jsae.ablation.mediation import changed as mediation_images
from jsae.ablation.mediation import passes as mediation_passes
from jsae.ablation.mediation import table as mediation_table
from jsae.analysis import marks
from jsae.analysis.pixel_maps import attribution
from jsae.classifier import Head
from jsae.classifier.forward import LogitsAndActs, LogitsFromActs
from jsae.data import augment
from jsae.runtime import artifacts, passes, settings, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.batches import map_rows
from jsae.runtime.context import RunContext
from jsae.study import Study

KEPT = (  # what the passes return
    Named,
    pairs.FeatureEffects,
    controls.Candidates,
    patches.InputEffects,
    totals.AllFeatureEffects,
    closed_form.EffectMoments,
    cumulative.Curves,
    mediation_passes.Scores,
)
RANGES = {
    "n_features": settings.COUNT,
    "features": settings.NOT_NEGATIVE,
    "n_blurred_features": settings.NONE_OR_MORE,
    "n_mapped_images": settings.NONE_OR_MORE,
    "max_images": settings.COUNT,
    "sigma_px": settings.POSITIVE,
    "size_cells": settings.COUNT,
    "batch_size": settings.COUNT,
    "n_bootstrap": settings.at_least(2, "of which the interval is made; 1000 is usual"),
    "n_joint": settings.COUNT,
    "n_all_features_images": settings.COUNT,
}
MEDIATION_RANGES = {"n_images": settings.at_least(2, "of train and of test; 256 is usual")}


def run(config: Any, workdir: Any, context: RunContext | None = None) -> None:
    """Make the ablation stage of a workdir.

    Raises:
      stages.StageMissing: an earlier stage is not finished.
      ValueError: an unknown feature in config.ablation.features, a batch_size that the devices cannot share,
        or other test images than the store's.
    """
    context = context or RunContext()
    check_config(config)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    stage = stages.begin(config, workdir, "ablation", context)
    if stage.up_to_date:
        return
    study = Study(workdir, stages.plain(config), mesh)
    ablation = Ablation(study, config, passes.Passes(stage, KEPT), context)
    columns = study.table("features").to_pydict()
    chosen = choice.choose(columns, config.ablation.n_features, config.ablation.features)
    found = ablation.pass_over_test(chosen)
    inside = ablation.in_feature_space(found["pairs"], chosen)
    outside = ablation.in_input_space(found["pairs"], chosen)
    everything = found["all_features"] if ablation.head else ablation.by_forward_passes(chosen.top_classes)
    scores = ablation.mediation()
    results, written = tables_of(config, chosen, inside, outside, everything, scores, ablation.context)
    truth_tables, truth = ablation.on_twins()
    written |= truth_tables
    for name, table in written.items():
        artifacts.write_table(stage.folder / f"{name}.parquet", table, stage.manifest)
    stage.finish({"splice": found["splice"], **results, "ground_truth": truth})


def check_config(config: Any) -> None:
    """Raise ValueError for settings of this stage that cannot be right, before anything has run."""
    c = config.ablation
    settings.check("config", config, {"seed": settings.SEED})
    settings.check("config.ablation", c, RANGES)
    settings.check("config.ablation.counterfactual", c.get("counterfactual", {}), ground_truth.RANGES)
    settings.check("config.ablation.mediation", c.mediation, MEDIATION_RANGES)
    mesh = meshes.make_mesh(config.runtime.data_axis, config.runtime.model_axis)
    meshes.check_batch(mesh, c.batch_size, "config.ablation.batch_size")
    choice.check_given(c.features, config.sae.n_features)


class Ablation:
    """The passes of the stage, over an opened study; each is kept when it is whole.

    Attributes:
      head: of the classifier where only pooling and this follow on the site, else None.
      logits_from_acts: the rest of the network from the site on.
    """

    def __init__(self, study: Study, config: Any, keep: passes.Passes, context: RunContext):
        self.study, self.config, self.keep, self.context = study, config, keep, context
        self.test = study.activations("test")
        self.head: Head | None = None
        if study.has_closed_form:
            self.head = study.params.model.linear_head(study.params.variables)
        self.logits_from_acts = LogitsFromActs(study.params, study.site)
        self.key = jax.random.key(config.seed)
        self.batches = {"batch_size": config.ablation.batch_size, "context": context}

    def pass_over_test(self, chosen: choice.Chosen) -> dict[str, Any]:
        """The SAE spliced in, the pairs of the chosen features, and in closed form all features."""
        c = self.config.ablation
        reducers = {
            "splice": splice.MeasureSplice(self.logits_from_acts, self.test.mean),
            "pairs": pairs.FindPairs(np.array(chosen.features, np.int32)),
        }
        if self.head is not None:
            assert self.study.mesh is not None  # the stage opens its study on one
            devices = self.study.mesh.devices
            reducers["all_features"] = MeasureAllFeatures(
                self.head,
                chosen.top_classes,
                self.key,
                n_joint=c.n_joint,
                block=closed_form.block_features(
                    c.batch_size // len(devices), len(self.head.offset), devices.flat[0].platform
                ),
            )
        return self.study.run_pass("test", reducers, label="ablation of test", keep=self.keep, **self.batches)

    def in_feature_space(self, found: dict[str, Any], chosen: choice.Chosen) -> pairs.FeatureEffects:
        """Each chosen feature removed from the activations it fires on, beside its controls."""
        train, root = self.study.activations("train"), self.keep("covariance", self._covariance_root)()
        return self.keep("feature_space", pairs.effects_of_pairs)(
            self.logits_from_acts,
            self.study.sae,
            self.test,
            found,
            top_classes=chosen.top_classes,
            auroc_train=chosen.auroc_train,
            candidates=self.keep("directions", controls.draw_candidates)(
                self.key, root, train, functools.partial(self.study.run_pass, "train", **self.batches)
            ),
            mean=train.mean,
            root=root,
            key=self.key,
            mesh=self.study.mesh,
            label="ablation: feature space",
            **self.batches,
        )

    def in_input_space(self, found: dict[str, Any], chosen: choice.Chosen) -> patches.InputEffects | None:
        """The images blurred for the first features chosen; None for bare activations, without images."""
        c = self.config.ablation
        if "classifier" in stages.skipped(self.config):
            self.context.log.info("ablation: no input space, since bare activations have no images")
            return None
        split = self.study.data["test"]
        if list(split.ids) != list(self.test.image_ids):
            raise ValueError(
                f"the {len(split.ids)} test images of config.data are not the {self.test.n_images} whose "
                f"activations lie in {self.test.folder}; extract them again with --restart=activations"
            )
        of_them = np.flatnonzero(np.isin(found["feature"], chosen.features[: c.n_blurred_features]))
        features, images = found["feature"][of_them], found["image"][of_them]
        rows = patches.choose_images(features, images, c.max_images, self.config.seed)
        features, images = features[rows], images[rows]
        localised = self.study.table("localisation") if self.study.has_table("localisation") else None
        where = marks.marks_of(split, localised)
        at = placements.of_marks(None if where is None else where.name)
        if c.n_mapped_images:
            at |= {"pixel_map": placements.of_maps(self.pixel_maps(split.images, features, images))}
        effects = self.keep("input_space", patches.effects_of_blurring)(
            LogitsAndActs(self.study.params, self.study.site),
            self.study.sae,
            lambda numbers: split.images[numbers],
            features=features,
            images=images,
            labels=self.test.labels[images],
            top_classes=chosen.top_classes[features],
            stride_px=self.study.params.model.stride_px(self.study.site),
            sigma_px=c.sigma_px,
            size_cells=c.size_cells,
            placements=at,
            marks=where,
            mesh=self.study.mesh,
            label="ablation: input space",
            **self.batches,
        )
        self.context.log.info(
            "ablation: input space, %d pairs, %d forward passes", len(images), effects.n_passes
        )
        return effects

    def pixel_maps(
        self, split_images: np.ndarray, features: np.ndarray, images: np.ndarray
    ) -> dict[int, np.ndarray]:
        """Row of a pair -> its pixel map float16 [S, T], for the first n_mapped_images of each feature."""
        study, method = self.study, self.config.analysis.pixel_maps.method
        rows = patches.choose_images(features, images, self.config.ablation.n_mapped_images, self.config.seed)
        how = (study.site, study.model.stride_px(study.site), method, attribution.N_POINTS)

        def step(batch):
            pixels = augment.normalise(batch["images"])
            return attribution.at_peak(study.params, study.sae, pixels, batch["features"], how)

        def read(numbers):
            at = rows[numbers]
            return {"images": split_images[images[at]], "features": features[at].astype(np.int32)}

        label = "ablation: pixel maps"
        settings = self.batches | {"batch_size": min(self.batches["batch_size"], 32)}
        found = map_rows(step, read, len(rows), mesh=study.mesh, label=label, unit="pair", **settings)
        return dict(zip(rows.tolist(), [] if found is None else found.astype(np.float16), strict=True))

    def mediation(self) -> mediation_passes.Scores | None:
        """Images blurred, masked and drawn as twins; None for bare activations, or without labels."""
        if "classifier" in stages.skipped(self.config):
            return None
        study, c, seed = self.study, self.config.ablation, self.config.seed
        inputs = {
            split: mediation_images.make_inputs(study.data[split], study.twins, c.mediation.n_images, seed)
            for split in ("train", "test")
        }
        if any(len(images.numbers) < 2 for images in inputs.values()):
            self.context.log.warning("ablation: no mediation, since the images have no labels")
            return None
        stride_px = study.params.model.stride_px(study.site)
        return self.keep("mediation", mediation_passes.measure)(
            LogitsAndActs(study.params, study.site),
            self.logits_from_acts,
            self.head,
            study.sae,
            **inputs,
            change=mediation_images.make_change(inputs["train"], c.sigma_px, stride_px),
            seed=seed,
            mesh=study.mesh,
            **self.batches,
        )

    def by_forward_passes(self, top_classes: np.ndarray) -> totals.AllFeatureEffects:
        """All features on the first n_all_features_images images in an order drawn from the seed."""
        n = min(self.config.ablation.n_all_features_images, self.test.n_images)
        drawn = np.random.default_rng([self.config.seed, 8]).permutation(self.test.n_images)[:n]
        self.context.log.info(
            "ablation: no closed form at %s: all features take forward passes, on %d images",
            self.study.site,
            n,
        )
        label = "ablation: all features"
        return self.keep("all_features", forward_pass.effects_of_images)(
            self.logits_from_acts,
            self.study.sae,
            self.test,
            np.sort(drawn),
            functools.partial(self.study.run_pass, "test", label=label, **self.batches),
            top_classes=top_classes,
            n_classes=len(self.test.class_names),
            mesh=self.study.mesh,
            label=label,
            **self.batches,
        )

    def on_twins(self) -> tuple[dict[str, pa.Table], dict[str, Any] | None]:
        """What features carry of parts drawn and not drawn; ({}, None) where nothing is drawn."""
        study, config = self.study, self.config
        if study.twins is None:
            return {}, None
        frozen = comparators.frozen_decoder(config, study.workdir, self.context, study.mesh)
        return ground_truth.measure(
            study,
            comparators.of_study(study) | {"frozen_decoder": frozen},
            n_bootstrap=config.ablation.n_bootstrap,
            keep=self.keep,
            **config.ablation.counterfactual,
            **self.batches,
        )

    def _covariance_root(self) -> np.ndarray:
        train = self.study.activations("train")
        return controls.covariance_root(train, self.batches["batch_size"], self.context)


def tables_of(
    config: Any,
    chosen: choice.Chosen,
    inside: pairs.FeatureEffects,
    outside: patches.InputEffects | None,
    everything: totals.AllFeatureEffects,
    scores: mediation_passes.Scores | None,
    context: RunContext,
) -> tuple[dict[str, Any], dict[str, pa.Table]]:
    """(results, table name -> table) of what the passes found."""
    features, drawn = chosen.features, (config.ablation.n_bootstrap, config.seed)
    n_active = {f: int((inside.features == f).sum()) for f in features}
    known = [f for f in features if n_active[f] >= statistics.MIN_ACTIVE]
    selective = [f for f in known if f in chosen.selective]
    if not selective:
        context.log.warning(
            "ablation: no class-selective feature was ablated; the effects on their own class are null"
        )
    columns = {
        feature_space_table.TABLE: feature_space_table.columns(inside, features, *drawn),
        all_features_table.TABLE: all_features_table.columns(everything, chosen.top_classes),
        table_by_class.TABLE: table_by_class.columns(everything),
    }
    results: dict[str, Any] = {
        "feature_space": of_feature_space(inside, everything, chosen, *drawn),
        "input_space": None,
        "mediation": None,
        "n_features_ablated": len(features),
        "n_pairs": {"feature_space": len(inside.features), "input_space": 0},
        "all_features": totals.headline(everything)
        | {"attribution": all_features_table.attribution_agreement(everything, *drawn)},
    }
    if outside is not None:
        blurred = features[: config.ablation.n_blurred_features]
        columns[input_space_table.TABLE] = input_space_table.columns(outside, blurred, n_active, *drawn)
        results["n_pairs"]["input_space"] = len(outside.features)
        results["input_space"] = input_space_table.headline(outside, known, selective, *drawn)
    if everything.curves is not None:
        columns[cumulative.TABLE] = cumulative.columns(everything.curves, *drawn)
    counts = results["all_features"]
    context.log.info("ablation: all features, %d pairs, %d guarded", counts["n_pairs"], counts["n_guarded"])
    written = {table.name: table.make(values) for table, values in columns.items()}
    if scores is not None:
        rows = mediation_table.rows(scores, *drawn)
        written[mediation_table.TABLE.name] = mediation_table.TABLE.of_rows(rows)
        results["mediation"] = mediation_table.results(rows)
    return results, written
