"""What single features do, in input space: the image is blurred, and the feature with it.

Where to blur is a question of its own, so several placements (`placements`) stand side by side, each with two
areas: a patch of cells, and as many pixels as the thing's mask or box has. The area is replaced by a Gaussian
blur of the image: x' = x + alpha * (blur(x) - x), alpha the area with a soft edge of a quarter of a cell, so
that its sum is the area. Images are blurred as the model sees them, normalised; the blur's weights sum to 1,
also at the border, so it commutes with normalisation.

Whether the blur took the feature away is measured: the fall is 1 - (mean of the feature after the blur over
the cells where it was active) / (its mean over them before), active: at least half its maximum on the image.
Pairs with a fall of at least one half qualify; effects are those of qualified pairs. The control is the same
shape elsewhere on the image, equal in area, blur energy and foreground (`controls`). Images are dealt over
the devices.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae.ablation.effects import MEASURES, TARGETS, Named, changes, flips_of, make_effects
from jsae.ablation.input_space import layout
from jsae.ablation.input_space.layout import CELL, KINDS
from jsae.ablation.input_space.placements import Placement, active_cells
from jsae.analysis.marks import Marks
from jsae.classifier.forward import as_argument
from jsae.data import blur
from jsae.runtime import mesh as meshes
from jsae.runtime.batches import map_rows
from jsae.runtime.context import RunContext
from jsae.sae import dealt

MIN_FALL = 0.5  # of a pair that qualifies


@dataclasses.dataclass(frozen=True)
class InputEffects:
    """Effects of M (feature, image) pairs, on the host; NaN where there is no such number.

    Attributes:
      features, images: int32 [M].
      deltas: float32 [M, placement, area, kind, target, measure], blurred minus clean.
      flips: bool [M, placement, area, kind], the prediction changed; False where deltas are NaN.
      falls: [M, placement, area, kind], of the feature over its active cells.
      area_shares: [M, placement, area, kind], pixels of the area (the sum of alpha) over those of the image.
      energies: [M, placement, area, kind], ||alpha * (x - blur(x))||^2.
      coverages: [M, placement, area, kind], share of the area on the foreground.
      n_passes: images that went through the network, clean and blurred.
    """

    features: np.ndarray
    images: np.ndarray
    deltas: Named
    flips: Named
    falls: Named
    area_shares: Named
    energies: Named
    coverages: Named
    n_passes: int


def effects_of_blurring(
    forward: Callable,
    dictionary: Any,
    read_images: Callable[[np.ndarray], np.ndarray],
    *,
    features: np.ndarray,
    images: np.ndarray,
    labels: np.ndarray,
    top_classes: np.ndarray,
    stride_px: int,
    sigma_px: float,
    size_cells: int,
    placements: Mapping[str, Placement],
    marks: Marks | None = None,
    **settings: Any,
) -> InputEffects:
    """Effects of blurring at each placement, and of its control, for M pairs.

    Args:
      forward: images float32 [B, S, T, 3] normalised -> (logits [B, L], acts [B, H, W, C]).
      dictionary: the SAE of the site.
      read_images: image numbers [n] -> [n, S, T, 3], uint8 or normalised floats.
      features, images: int [M], the pairs.
      labels, top_classes: int [M], targets of each pair; -1 where there is none.
      stride_px: pixels per cell.
      sigma_px, size_cells: the blur, and the side of the patch of cells.
      placements: by name (`placements.of_marks`).
      marks: where the things lie; None if that is not known.
      settings: of `map_rows`: batch_size, mesh, context, label.

    Raises ValueError for a negative sigma.
    """
    axes = {"placement": tuple(placements), "area": (CELL,) if marks is None else (CELL, marks.name)}
    if not len(images):
        return _no_effects(axes)
    names, column = np.unique(np.asarray(features, np.int32), return_inverse=True)
    unique, row = np.unique(images, return_inverse=True)
    sides = read_images(unique[:1]).shape[1:3]
    matrices = [blur.blur_matrix(px, sigma_px) for px in sides]
    edges = [blur.feather_matrix(px, blur.half_feather_px(stride_px)) for px in sides]
    fixed = (as_argument(forward), dictionary)
    shown, soft = (*fixed, names), (*fixed, *matrices, *edges)
    if settings.get("mesh") is not None:
        shown, soft = meshes.replicate(settings["mesh"], (shown, soft))
    read_clean = lambda rows: {"images": read_images(unique[rows])}  # noqa: E731
    clean = map_rows(functools.partial(_clean, *shown), read_clean, len(unique), **settings)
    maps = clean["maps"][row, :, :, column]  # [M, H, W]
    laid = layout.lay_out(
        read_images,
        features,
        images,
        maps,
        placements=placements,
        marks=marks,
        stride_px=stride_px,
        size_cells=size_cells,
        blurs=(matrices[0], matrices[1]),
        context=settings.get("context") or RunContext(),
    )
    area_of, active = np.r_[np.arange(len(laid.pair)), np.flatnonzero(laid.matched)], active_cells(maps)

    def read(rows):
        pair = laid.pair[area_of[rows]]
        return {
            "area": laid.pixels(area_of[rows], rows >= len(laid.pair)),
            "images": read_images(images[pair]),
            "feature": features[pair].astype(np.int32),
            "active": active[pair].astype(np.float32),
        }

    blurred = map_rows(functools.partial(_blurred, *soft), read, len(area_of), **settings)
    if blurred is None:  # no feature fires on its images, as the network sees them today
        blurred = {"logits": clean["logits"][:1], "value": np.zeros(1, np.float32)}
    return _effects(features, images, (labels, top_classes), axes, clean["logits"][row], maps, laid, blurred)


def _effects(features, images, classes, axes, clean, maps, laid, blurred) -> InputEffects:
    """The numbers of each pair from those of the areas (`blurred`: all areas, then the controls)."""
    labels, top_classes = classes
    control = np.full(len(laid.pair), -1)
    control[laid.matched] = len(laid.pair) + np.arange(laid.matched.sum())
    there = laid.index >= 0  # [M, placement, area]
    place = np.stack([laid.index, np.where(there, np.append(control, -1)[laid.index], -1)], -1)  # ..., kind
    known, kinds = place >= 0, axes | {"kind": KINDS}
    changed = _changes(
        clean, np.moveaxis(blurred["logits"][place], 0, -2), labels, np.maximum(top_classes, 0)
    )
    deltas, flips = make_effects(*changed, **kinds)
    for target, of_pair in (("label", labels), ("top_class", top_classes)):
        deltas.forget(np.asarray(of_pair) < 0, target=target)
    deltas.values[~known], flips.values[~known] = np.nan, False
    active = active_cells(maps)
    before = (maps * active).sum((1, 2), dtype=np.float64) / np.maximum(active.sum((1, 2)), 1)
    before = np.where(before > 0, before, np.nan)[:, None, None, None]
    falls = np.where(known, 1 - blurred["value"][place].astype(np.float64) / before, np.nan)

    def of_areas(values: np.ndarray) -> Named:
        padded = np.vstack([values, np.full((1, len(KINDS)), np.nan)])
        return Named(padded[laid.index], kinds)

    return InputEffects(
        features=np.asarray(features, np.int32),
        images=np.asarray(images, np.int32),
        deltas=deltas,
        flips=flips,
        falls=Named(falls, kinds),
        area_shares=of_areas(laid.area_px / np.prod(laid.sides)),
        energies=of_areas(laid.energy),
        coverages=of_areas(laid.coverage),
        n_passes=len(np.unique(images)) + len(blurred["value"]),
    )


def _look(forward, images) -> tuple:
    """(logits [B, L], acts [B, H, W, C]) of normalised images, with float32 products."""
    with jax.default_matmul_precision("float32"):
        return forward(images)


@jax.jit
def _clean(forward, dictionary, names, batch) -> dict:
    """Logits [B, L] and maps [B, H, W, K] of the features `names` [K]."""
    logits, acts = _look(forward, blur.normalised(batch["images"]))
    return {"logits": logits, "maps": dealt.feature_maps(dictionary, dictionary.encode(acts), names)}


@jax.jit
def _blurred(forward, dictionary, blur_rows, blur_columns, edge_rows, edge_columns, batch) -> dict:
    """Logits [B, L] with each row's area [B, S, T] blurred, and its feature's mean [B] over active cells."""
    images, area = blur.normalised(batch["images"]), batch["area"].astype(jnp.float32)[..., None]
    alpha = blur.blurred(area, edge_rows, edge_columns)
    change = blur.blurred(images, blur_rows, blur_columns) - images
    logits, acts = _look(forward, images + alpha * change)
    maps = dealt.map_per_image(dictionary, dictionary.encode(acts), batch["feature"])  # [B, H, W]
    cells = batch["active"]
    return {"logits": logits, "value": (maps * cells).sum((1, 2)) / cells.sum((1, 2))}


@jax.jit
def _changes(clean, blurred, labels, tops):
    """Deltas [M, ..., target, measure] and flips [M, ...] of logits clean [M, L], blurred [..., M, L]."""
    prediction = jnp.argmax(clean, -1)
    targets = jnp.stack([labels, prediction.astype(labels.dtype), tops.astype(labels.dtype)])
    deltas = jnp.moveaxis(changes(clean, blurred, targets), -1, 0)
    return deltas, jnp.moveaxis(flips_of(prediction, blurred), -1, 0)


def choose_images(features: np.ndarray, images: np.ndarray, max_images: int, seed: int) -> np.ndarray:
    """Rows of at most `max_images` pairs per feature: a seeded random subset, so that it is unbiased.

    Args:
      features, images: int [M], all active pairs.

    Returns:
      int [m], sorted by image within each feature.
    """
    kept = []
    for feature in np.unique(features):
        rows = np.flatnonzero(features == feature)
        rows = rows[np.argsort(images[rows], kind="stable")]
        if len(rows) > max_images:
            rng = np.random.default_rng([seed, int(feature)])
            rows = rows[np.sort(rng.choice(len(rows), max_images, replace=False))]
        kept.append(rows)
    return np.concatenate(kept) if kept else np.zeros(0, np.int64)


def _no_effects(axes: dict[str, tuple[str, ...]]) -> InputEffects:
    pairs, kinds = np.zeros(0, np.int32), axes | {"kind": KINDS}
    shape = (0, *map(len, kinds.values()))
    sizes = (*shape, len(TARGETS), len(MEASURES))
    deltas, flips = make_effects(np.zeros(sizes, np.float32), np.zeros(shape, bool), **kinds)
    nothing = Named(np.zeros(shape), kinds)
    return InputEffects(pairs, pairs, deltas, flips, nothing, nothing, nothing, nothing, 0)
