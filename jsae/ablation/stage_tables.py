"""The stage's tables beyond the chosen features: every feature, the known parts, and the sweep over fills.

`keep` (`jsae.runtime.passes`) keeps each pass: an interrupted stage repeats neither the atlas, nor a kind of
the known parts, nor a setting of the sweep that was finished.
"""

import jax
import numpy as np

from jsae.ablation import (
    atlas_survey,
    atlas_tables,
    cumulative,
    fill_sweep,
    known_answer,
    site_atlas,
)
from jsae.analysis import cells, dictionaries, localisation, parts, readouts
from jsae.analysis.tables import make
from jsae.classifier.forward import LogitsFromActs
from jsae.runtime import artifacts, logs, preemption


def known_parts(
    config, keep, where, from_acts, model, stores, splits, stride_px, root
) -> tuple[dict | None, dict]:
    """(results, table name -> pa.Table) of removing what finds a part; (None, {}) without masks of parts.

    stores and splits are those of "train" and "test"; the train split gives the directions with labels.
    """
    split, test = splits["test"], stores["test"]
    if split.masks is None or not split.part_names:
        return None, {}
    c, seed = config.ablation, config.seed
    found = artifacts.read_table(where["analysis"] / parts.FILE).to_pydict()
    found = {name: np.array(values) for name, values in found.items()}
    random = dictionaries.random(model.mean, model.n_features, seed)
    key = jax.random.key(seed)
    removed = [
        ("", model, found["feature"], {}),
        ("control_", model, found["feature"], {"root": root, "key": key}),
        ("random_", random, found["random_feature"], {}),
    ]
    images = localisation.images_of(stores["train"], model.n_features)
    on_train = readouts.read(stores["train"], cells.of_stores(splits, stores, stride_px)["train"], images)
    for kind, rows in readouts.fit(on_train).items():
        removed.append((f"{kind}_", readouts.as_dictionary(rows, on_train), np.arange(len(rows)), {}))
    effects = {}
    with logs.progress(len(removed) * test.n_images, label="ablation: known parts", unit="image") as bar:
        for kind, dictionary, features, control in removed:
            name = f"known_parts-{kind.rstrip('_') or 'feature'}"
            effects[kind] = keep(name, known_answer.margin_effects)(
                from_acts,
                dictionary,
                test.batches(c.batch_size),
                labels=test.labels,
                features=features,
                on_batch=lambda n: step(bar, n),
                **control,
            )
    has = cells.parts_seen(split, np.arange(test.n_images))
    has_part = known_answer.variants_with(has, test.labels, len(test.class_names))
    columns = known_answer.columns(
        found, effects, has_part, test.labels, n_bootstrap=c.n_bootstrap, seed=seed
    )
    return known_answer.headline(columns), {"known_answer": make(columns, known_answer.SCHEMA)}


def every_feature(config, keep, params, model, test, top_classes) -> tuple[dict, dict]:
    """(results, table name -> pa.Table) of every feature, in closed form at the final site."""
    c, log = config.ablation, logs.get_logger()
    tops = np.array([-1 if top is None else top for top in top_classes], np.int32)
    head = params.model.linear_head(params.variables)
    closed = head is not None and test.site == params.model.sites[-1]
    measure = _by_closed_form if closed else _by_forward_pass
    seen = keep("atlas", measure)(config, params, model, test, tops)
    results = atlas_survey.headline(seen) | {
        "attribution": atlas_tables.attribution_agreement(seen, c.n_bootstrap, config.seed)
    }
    log.info(
        "ablation: atlas of %d pairs, %d guarded, in %.1f s",
        *(results[key] for key in ("n_pairs", "n_guarded", "seconds")),
    )
    written = {
        "atlas": make(atlas_tables.atlas_columns(seen, tops), atlas_tables.ATLAS),
        "atlas_classes": make(atlas_tables.class_columns(seen), atlas_tables.ATLAS_CLASSES),
    }
    if seen.curves is not None:
        curves = cumulative.columns(seen.curves, c.n_bootstrap, config.seed)
        written["cumulative"] = make(curves, cumulative.SCHEMA)
    return results, written


def _by_closed_form(config, params, model, test, tops):
    with logs.progress(test.n_images, label="ablation: atlas", unit="image") as bar:
        return atlas_survey.measure(
            params.model.linear_head(params.variables),
            model,
            test.batches(config.ablation.batch_size),
            labels=test.labels,
            top_classes=tops,
            n_joint=config.ablation.n_joint,
            seed=config.seed,
            on_batch=lambda n: step(bar, n),
        )


def _by_forward_pass(config, params, model, test, tops):
    """At a site without a closed form, on the first n_atlas_images images in an order drawn from the seed."""
    c, log = config.ablation, logs.get_logger()
    n = min(c.n_atlas_images, test.n_images)
    chosen = np.sort(np.random.default_rng([config.seed, 8]).permutation(test.n_images)[:n])
    log.info(
        "ablation: the closed form does not hold at %s: the atlas takes forward passes, on %d images",
        test.site,
        n,
    )

    def batches():
        for start in range(0, n, c.batch_size):
            rows = chosen[start : start + c.batch_size].tolist()
            acts = np.zeros((c.batch_size, *test.grid, test.n_channels), np.float32)
            acts[: len(rows)] = np.concatenate([test.read(i, i + 1) for i in rows])
            yield start, acts, (np.arange(c.batch_size) < len(rows)).astype(np.float32)

    with logs.progress(n, label="ablation: atlas", unit="image") as bar:
        return site_atlas.measure(
            LogitsFromActs(params, test.site),
            model,
            batches(),
            labels=test.labels[chosen],
            top_classes=tops,
            n_classes=len(test.class_names),
            pair_batch=c.batch_size,
            on_batch=lambda n: step(bar, n),
        )


def fills(config, keep, measured: tuple, of_pairs: dict, n_active: dict) -> dict:
    """Table name -> pa.Table of the sweep; {} if nothing is swept over.

    Args:
      keep: keeps what each setting has found.
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
            keep=keep,
            n_active=n_active,
            n_bootstrap=c.n_bootstrap,
            seed=config.seed,
            on_batch=lambda n: step(bar, n),
        )
    return {"sigma_sweep": make(found, fill_sweep.SCHEMA)}


def step(bar, n: int) -> None:
    """Some of a pass is done: show it, and stop here if that was asked for."""
    bar.update(n)
    preemption.check_here()
