"""The stage's tables beyond the chosen features: every feature, the known parts, and the sweep over fills."""

import jax
import numpy as np

from jsae.ablation import (
    atlas,
    atlas_survey,
    atlas_tables,
    cumulative,
    fill_sweep,
    known_answer,
)
from jsae.analysis import cells, dictionaries, parts
from jsae.analysis.tables import make
from jsae.classifier import convnext
from jsae.runtime import artifacts, logs, preemption


def known_parts(config, where, from_acts, model, test, split, root) -> tuple[dict | None, dict]:
    """(results, table name -> pa.Table) of removing what finds a part; (None, {}) without masks of parts."""
    if split.masks is None or not split.part_names:
        return None, {}
    c, seed = config.ablation, config.seed
    found = artifacts.read_table(where["analysis"] / parts.FILE).to_pydict()
    found = {name: np.array(values) for name, values in found.items()}
    random = dictionaries.random(model.mean, model.n_features, seed)
    key = jax.random.key(seed)
    effects = {}
    with logs.progress(3 * test.n_images, label="ablation: known parts", unit="image") as bar:
        for kind, dictionary, features, control in (
            ("", model, found["feature"], {}),
            ("control_", model, found["feature"], {"root": root, "key": key}),
            ("random_", random, found["random_feature"], {}),
        ):
            effects[kind] = known_answer.margin_effects(
                from_acts,
                dictionary,
                test.batches(c.batch_size),
                labels=test.labels,
                features=features,
                on_batch=lambda n: _step(bar, n),
                **control,
            )
    has = cells.parts_seen(split, np.arange(test.n_images))
    has_part = known_answer.variants_with(has, test.labels, len(test.class_names))
    columns = known_answer.columns(
        found, effects, has_part, test.labels, n_bootstrap=c.n_bootstrap, seed=seed
    )
    return known_answer.headline(columns), {"known_answer": make(columns, known_answer.SCHEMA)}


def every_feature(config, params, model, test, top_classes) -> tuple[dict | None, dict]:
    """(results, table name -> pa.Table) of every feature on every test image; (None, {}) at another site."""
    c, log = config.ablation, logs.get_logger()
    if test.site != convnext.FINAL_SITE:
        log.info(
            "ablation: no atlas of all features: its closed form holds at %s, the site is %s",
            *(convnext.FINAL_SITE, test.site),
        )
        return None, {}
    tops = np.array([-1 if top is None else top for top in top_classes], np.int32)
    with logs.progress(test.n_images, label="ablation: atlas", unit="image") as bar:
        seen = atlas_survey.measure(
            atlas.head_of(params),
            model,
            test.batches(c.batch_size),
            labels=test.labels,
            top_classes=tops,
            n_joint=c.n_joint,
            seed=config.seed,
            on_batch=lambda n: _step(bar, n),
        )
    results = atlas_survey.headline(seen) | {
        "attribution": atlas_tables.attribution_agreement(seen, c.n_bootstrap, config.seed)
    }
    log.info(
        "ablation: atlas of %d pairs, %d guarded, in %.1f s",
        *(results[key] for key in ("n_pairs", "n_guarded", "seconds")),
    )
    return results, {
        "atlas": make(atlas_tables.atlas_columns(seen, tops), atlas_tables.ATLAS),
        "atlas_classes": make(atlas_tables.class_columns(seen), atlas_tables.ATLAS_CLASSES),
        "cumulative": make(cumulative.columns(seen.curves, c.n_bootstrap, config.seed), cumulative.SCHEMA),
    }


def fills(config, measured: tuple, of_pairs: dict, n_active: dict) -> dict:
    """Table name -> pa.Table of the sweep; {} if nothing is swept over.

    Args:
      measured, of_pairs: arguments of `input_space.measure`, less the fill.
      n_active: feature -> test images on which it fires.
    """
    c = config.ablation
    points = fill_sweep.settings(c.sweep_fills, c.sweep_sigmas_px, c.sweep_sizes_cells)
    n_pairs = len(of_pairs["images"])
    if not points or not n_pairs:
        return {}
    n_passes = len(points) * (len(np.unique(of_pairs["images"])) + 2 * n_pairs)
    with logs.progress(n_passes, label="ablation: fills", unit="image") as bar:
        found = fill_sweep.measure(
            points,
            *measured,
            **of_pairs,
            n_active=n_active,
            n_bootstrap=c.n_bootstrap,
            seed=config.seed,
            on_batch=lambda n: _step(bar, n),
        )
    return {"sigma_sweep": make(found, fill_sweep.SCHEMA)}


def _step(bar, n: int) -> None:
    bar.update(n)
    preemption.check()
