"""What single features do, in input space: the image is blurred where the feature fires.

The patch of size_cells x size_cells cells around the feature's peak cell (cut off at the image's edge) is
replaced by a Gaussian blur of the image, with a feathered edge: x' = x + alpha * (blur(x) - x). Images are
blurred as the model sees them, normalised; the blur's weights sum to 1, also at the border, so it commutes
with normalisation. alpha is 1 inside and falls linearly to 0 towards the patch's own border, so patches that
do not overlap touch no common pixel.

The control blurs another patch of the same size on the same image that does not overlap the first: the one
whose blur energy ||alpha * (x - blur(x))||^2 is nearest (`energy_matched`: within 20%), on the foreground if
it is known where that is and any such patch lies there. The energies of all patches come out of the clean
pass as box sums. Beside the effects on the class stands the fall of the feature itself at its peak cell.
Images are dealt over the devices.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae.ablation import dealt
from jsae.ablation.effects import MEASURES, TARGETS, Named, changes, flips_of, make_effects
from jsae.ablation.input_space import blur, controls
from jsae.classifier.forward import as_argument
from jsae.data import augment
from jsae.runtime import mesh as meshes
from jsae.runtime.batches import map_rows

KINDS = ("effect", "patch")  # the patch under the peak, then its control


@dataclasses.dataclass(frozen=True)
class InputEffects:
    """Effects of M (feature, image) pairs, on the host.

    Attributes:
      features, images: int32 [M].
      deltas: float32 [M, kind, target, measure], blurred minus clean; NaN where there is no such number.
      flips: bool [M, kind], the prediction changed.
      falls: [M, kind], relative fall of the feature at its peak cell; NaN where it is not above 0 on the
        clean image.
      energy_matched: bool [M], the control's blur energy is within 20%.
      matched: bool [M], there is a control patch at all.
      on_foreground: bool [M], the control lies on the foreground; False where that is not known.
    """

    features: np.ndarray
    images: np.ndarray
    deltas: Named
    flips: Named
    falls: Named
    energy_matched: np.ndarray
    matched: np.ndarray
    on_foreground: np.ndarray


def effects_of_blurring(
    forward: Callable,
    dictionary: Any,
    read_images: Callable[[np.ndarray], np.ndarray],
    *,
    features: np.ndarray,
    images: np.ndarray,
    peaks: np.ndarray,
    labels: np.ndarray,
    top_classes: np.ndarray,
    grid: tuple[int, int],
    stride_px: int,
    sigma_px: float,
    size_cells: int,
    on_foreground: Callable[[np.ndarray], np.ndarray] | None = None,
    **settings: Any,
) -> InputEffects:
    """Effects of blurring under the feature's peak, and of the control patch, for M pairs.

    Args:
      forward: images float32 [B, S, T, 3] normalised -> (logits [B, L], acts [B, H, W, C]).
      dictionary: the SAE of the site.
      read_images: image numbers [n] -> [n, S, T, 3], uint8 or normalised floats.
      features, images: int [M], the pairs.
      peaks: int [M, 2], the cell (y, x) to blur.
      labels, top_classes: int [M], targets of each pair; -1 where there is none.
      grid: (H, W); stride_px: pixels per cell.
      sigma_px, size_cells: the blur and the patch.
      on_foreground: image numbers [n] -> bool [n, H, W], or None if it is not known.
      settings: of `map_rows`: batch_size, mesh, context, label.

    Raises ValueError for a negative sigma or a size below 1.
    """
    if not len(images):
        return _no_effects()
    names, column = np.unique(np.asarray(features, np.int32), return_inverse=True)
    unique, row = np.unique(images, return_inverse=True)
    sides = read_images(unique[:1]).shape[1:3]
    profiles = [blur.patch_profiles(n, px, stride_px, size_cells) for n, px in zip(grid, sides, strict=True)]
    fixed = (as_argument(forward), dictionary, names, *(blur.blur_matrix(px, sigma_px) for px in sides))
    shown = (*fixed, *profiles)
    if settings.get("mesh") is not None:
        fixed, shown = meshes.replicate(settings["mesh"], (fixed, shown))
    read_clean = lambda rows: {"images": read_images(unique[rows])}  # noqa: E731
    clean = map_rows(functools.partial(_clean, *shown), read_clean, len(unique), **settings)
    known = None if on_foreground is None else on_foreground(unique)[row]
    chosen = controls.choose_patches(clean["energy"][row], peaks, size_cells, known)
    cells, m = np.concatenate([peaks, chosen.cells]), len(images)  # KINDS one after the other

    def read(rows):
        pair = rows % m
        alphas = (profile[cells[rows, axis]] for axis, profile in enumerate(profiles))
        of_pair = {"y": peaks[pair, 0], "x": peaks[pair, 1], "column": column[pair]}
        return dict(zip(("alpha_rows", "alpha_columns"), alphas, strict=True)) | {
            "images": read_images(images[pair]),
            **{name: value.astype(np.int32) for name, value in of_pair.items()},
        }

    blurred = map_rows(functools.partial(_blurred, *fixed), read, len(KINDS) * m, **settings)
    blurred = {name: value.reshape(len(KINDS), m, *value.shape[1:]) for name, value in blurred.items()}
    before = clean["maps"][row, peaks[:, 0], peaks[:, 1], column].astype(np.float64)
    fired, after = before > 0, blurred["value"].T.astype(np.float64)
    falls = Named(np.full((m, len(KINDS)), np.nan), {"kind": KINDS})
    falls.values[fired] = (1 - after[fired] / before[fired, None]).astype(np.float32)
    changed = _changes(clean["logits"][row], blurred["logits"], labels, np.maximum(top_classes, 0))
    deltas, flips = make_effects(*changed, kind=KINDS)
    for target, classes in (("label", labels), ("top_class", top_classes)):
        deltas.forget(np.asarray(classes) < 0, target=target)
    for unknown in (deltas, flips, falls):
        unknown.forget(~chosen.matched, kind="patch")
    return InputEffects(
        features=np.asarray(features),
        images=np.asarray(images),
        deltas=deltas,
        flips=flips,
        falls=falls,
        energy_matched=chosen.energy_matched,
        matched=chosen.matched,
        on_foreground=chosen.on_foreground,
    )


def _pass(forward, dictionary, names, blur_rows, blur_columns, images, alpha=None):
    """One forward pass of images [B, S, T, 3] blurred where alpha [B, S, T] says.

    Returns (logits [B, L], maps [B, H, W, K] of the features `names`, what the blur changes [B, S, T, 3]).
    """
    images = augment.normalise(images) if images.dtype == jnp.uint8 else images
    with jax.default_matmul_precision("float32"):
        change = jnp.einsum("sp,tq,bpqc->bstc", blur_rows, blur_columns, images) - images
        logits, acts = forward(images if alpha is None else images + alpha[..., None] * change)
        return logits, dealt.feature_maps(dictionary, dictionary.encode(acts), names), change


@jax.jit
def _clean(forward, dictionary, names, blur_rows, blur_columns, profile_rows, profile_columns, batch) -> dict:
    """Logits [B, L], maps [B, H, W, K] and the blur energy of the patch around every cell [B, H, W]."""
    logits, maps, change = _pass(forward, dictionary, names, blur_rows, blur_columns, batch["images"])
    loss, squares = jnp.square(change).sum(-1), [jnp.square(p) for p in (profile_rows, profile_columns)]
    energy = jnp.einsum("ys,xt,bst->byx", *squares, loss, precision="float32")
    return {"logits": logits, "maps": maps, "energy": energy}


@jax.jit
def _blurred(forward, dictionary, names, blur_rows, blur_columns, batch) -> dict:
    """Logits [B, L], and the value [B] of each pair's feature at its peak, with the pair's patch blurred."""
    alpha = batch["alpha_rows"][:, :, None] * batch["alpha_columns"][:, None, :]
    logits, maps, _ = _pass(forward, dictionary, names, blur_rows, blur_columns, batch["images"], alpha)
    flat = maps.reshape(len(maps), -1)  # [B, H * W * K]
    at = (batch["y"] * maps.shape[2] + batch["x"]) * maps.shape[3] + batch["column"]
    return {"logits": logits, "value": jnp.take_along_axis(flat, at[:, None], axis=1)[:, 0]}


@jax.jit
def _changes(clean, blurred, labels, tops):
    """Deltas [M, kind, target, measure] and flips [M, kind] of logits clean [M, L], blurred [kind, M, L]."""
    prediction = jnp.argmax(clean, -1)
    targets = jnp.stack([labels, prediction.astype(labels.dtype), tops.astype(labels.dtype)])
    deltas = jnp.moveaxis(changes(clean, blurred, targets), -1, 0)
    return deltas, flips_of(prediction, blurred).T


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


def _no_effects() -> InputEffects:
    none, pairs = np.zeros(0, bool), np.zeros(0, np.int32)
    shape = (0, len(KINDS), len(TARGETS), len(MEASURES))
    deltas, flips = make_effects(np.zeros(shape, np.float32), np.zeros(shape[:2], bool), kind=KINDS)
    return InputEffects(pairs, pairs, deltas, flips, Named(np.zeros(shape[:2]), {"kind": KINDS}), *[none] * 3)
