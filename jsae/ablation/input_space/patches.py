"""What single features do, in input space: the image is blurred where the feature fires.

The patch of size_cells x size_cells cells around the feature's peak cell (cut off at the image's edge) is
replaced by a Gaussian blur of the image, with a feathered edge: x' = x + alpha * (blur(x) - x). Images are
blurred as the model sees them, normalised; the blur's weights sum to 1 everywhere, also at the border, so
it commutes with normalisation. alpha is 1 inside and falls linearly to 0 towards the patch's own border, so
patches that do not overlap touch no common pixel. `jsae.ablation.fills` has what else may take its place.

The control blurs another patch of the same size on the same image that does not overlap the first: the one
whose blur energy ||alpha * (x - blur(x))||^2 is nearest (`energy_matched`: within 20%), on the aircraft if
it is known where that is and any such patch lies there. The energies of all patches come out of one pass as
box sums. Beside the effects on the class stands the fall of the feature itself at its peak cell.

One compiled function runs everything: clean images are images with alpha = 0.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jsae.ablation import fills
from jsae.ablation.feature_space import MEASURES, TARGETS, measures
from jsae.classifier.forward import as_argument

KINDS = ("effect", "patch")  # the patch under the peak, then its control
ENERGY_TOLERANCE = 0.2


@dataclasses.dataclass(frozen=True)
class InputEffects:
    """Effects of M (feature, image) pairs, on the host.

    Attributes:
      features, images: int32 [M].
      deltas: float32 [M, kind, target, measure], blurred minus clean; NaN where there is no such number.
      flips: bool [M, kind], the prediction changed.
      falls: float32 [M, kind], relative fall of the feature at its peak cell; NaN where it is not above 0
        on the clean image.
      energy_matched: bool [M], the control's blur energy is within 20%.
      matched: bool [M], there is a control patch at all.
      on_aircraft: bool [M], the control lies on the aircraft; False where that is not known.
    """

    features: np.ndarray
    images: np.ndarray
    deltas: np.ndarray
    flips: np.ndarray
    falls: np.ndarray
    energy_matched: np.ndarray
    matched: np.ndarray
    on_aircraft: np.ndarray


def patch_profiles(n_cells: int, n_px: int, stride_px: int, size_cells: int) -> np.ndarray:
    """alpha along one axis for a patch around each cell: float32 [n_cells, n_px].

    1 in the inside, falling linearly over a quarter of a cell to 0 at the patch's border.

    Raises ValueError if size_cells is not positive.
    """
    if size_cells < 1:
        raise ValueError(f"size_cells is at least 1, got {size_cells}")
    centres = (np.arange(n_cells)[:, None] + 0.5) * stride_px
    distance = np.abs(np.arange(n_px)[None, :] + 0.5 - centres)
    return np.clip((size_cells * stride_px / 2 - distance) / max(stride_px / 4, 1.0), 0, 1).astype(np.float32)


@functools.partial(jax.jit, static_argnames=("grid", "stride_px"))
def _blurred_pass(
    forward,
    sae,
    features,
    images,
    alpha_rows,
    alpha_columns,
    blur_rows,
    blur_columns,
    profiles,
    order,
    fill,
    *,
    grid,
    stride_px,
):
    """One forward pass of partly filled images.

    Args:
      images: [B, S, T, 3] normalised; alpha_rows [B, S] and alpha_columns [B, T]: the patch of each image.
      blur_rows [S, S], blur_columns [T, T], order [H * W], fill, grid, stride_px: of `fills.filled`.
      profiles: ([H, S], [W, T]), the patches around all cells.

    Returns:
      logits [B, L], the named features' maps [B, H, W, K], the blur energy of every patch [B, H, W].
    """
    change = fills.filled(images, fill, blur_rows, blur_columns, order, grid, stride_px) - images
    alpha = alpha_rows[:, :, None] * alpha_columns[:, None, :]
    logits, acts = forward(images + alpha[..., None] * change)
    loss = jnp.square(change).sum(-1)  # [B, S, T]
    squares = [jnp.square(p) for p in profiles]
    energy = jnp.einsum("ys,xt,bst->byx", *squares, loss, precision="float32")
    return logits, sae.encode(acts)[..., features], energy


def measure(
    forward: Callable,
    sae,
    read_images: Callable,
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
    batch_size: int,
    fill: str = "blur",
    seed: int = 0,
    on_aircraft: Callable | None = None,
    on_batch: Callable[[int], None] = lambda n_images: None,
) -> InputEffects:
    """Effects of blurring under the feature's peak, and of the control patch, for M pairs.

    Args:
      forward: images float32 [B, S, T, 3] normalised -> (logits [B, L], acts [B, H, W, C]).
      sae: the SAE of the site.
      read_images: image numbers [n] -> float32 [n, S, T, 3], normalised.
      features, images: int [M], the pairs.
      peaks: int [M, 2], the cell (y, x) to blur.
      labels, top_classes: int [M], targets of each pair; -1 for no top class.
      grid: (H, W); stride_px: pixels a cell.
      sigma_px, size_cells: the blur and the patch.
      batch_size: images a forward pass.
      fill: one of `fills.FILLS`; seed: of the order of shuffled cells.
      on_aircraft: image numbers [n] -> bool [n, H, W], or None if it is not known.
      on_batch: called with the number of images after each forward pass.

    Raises ValueError for an unknown fill, a negative sigma or a size below 1.
    """
    fills.check(fill)
    forward, names = as_argument(forward), np.unique(np.asarray(features, np.int32))
    if not len(images):
        return _no_effects()
    unique, row = np.unique(images, return_inverse=True)
    column = np.searchsorted(names, features)
    first = read_images(unique[:1])
    sides = first.shape[1:3]
    profiles = [patch_profiles(g, n, stride_px, size_cells) for g, n in zip(grid, sides, strict=True)]
    fixed = [fills.blur_matrix(n, sigma_px) for n in sides]
    order, kind = fills.cell_order(grid[0] * grid[1], seed), np.int32(fills.FILLS.index(fill))
    static = {"grid": tuple(grid), "stride_px": stride_px}

    def run(which: np.ndarray, cells: np.ndarray | None):
        """Yield ((rows of `which`), logits, feature maps, energies) batch by batch; no cells: clean."""
        for start in range(0, len(which), batch_size):
            rows = slice(start, min(start + batch_size, len(which)))
            n = rows.stop - rows.start
            pixels = np.zeros((batch_size, *sides, 3), np.float32)
            pixels[:n] = read_images(which[rows])
            alphas = [np.zeros((batch_size, side), np.float32) for side in sides]
            if cells is not None:
                for axis in (0, 1):
                    alphas[axis][:n] = profiles[axis][cells[rows, axis]]
            out = _blurred_pass(
                forward, sae, names, pixels, *alphas, *fixed, tuple(profiles), order, kind, **static
            )
            on_batch(n)
            yield rows, *(np.asarray(part)[:n] for part in out)

    clean = {"logits": [], "maps": [], "energy": []}
    for _, *parts in run(unique, None):
        for name, part in zip(clean, parts, strict=True):
            clean[name].append(part)
    clean = {name: np.concatenate(parts) for name, parts in clean.items()}
    known = on_aircraft(unique) if on_aircraft else None
    chosen = _choose_controls(clean["energy"][row], peaks, size_cells, None if known is None else known[row])
    cells, matched, energy_matched, placed = chosen
    y, x = peaks.T
    before = clean["maps"][row, y, x, column].astype(np.float64)

    logits, after = [], []
    for where in (peaks, cells):
        parts, values = [], np.zeros(len(images))
        for rows, scores, maps, _ in run(images, where):
            parts.append(scores)
            values[rows] = maps[np.arange(len(maps)), y[rows], x[rows], column[rows]]
        logits.append(np.concatenate(parts))
        after.append(values)
    deltas, flips = _effects(clean["logits"][row], np.stack(logits), labels, np.maximum(top_classes, 0))
    deltas, flips = np.array(deltas), np.array(flips)
    deltas[np.asarray(top_classes) < 0, :, TARGETS.index("top_class")] = np.nan
    deltas[~matched, KINDS.index("patch")] = np.nan
    falls = np.full((len(images), len(KINDS)), np.nan)
    fired = before > 0
    falls[fired] = (1 - np.stack(after, 1)[fired] / before[fired, None]).astype(np.float32)
    falls[~matched, KINDS.index("patch")] = np.nan
    flips[~matched, KINDS.index("patch")] = False
    return InputEffects(
        np.asarray(features), np.asarray(images), deltas, flips, falls, energy_matched, matched, placed
    )


@jax.jit
def _effects(clean, blurred, labels, tops):
    """Deltas [M, kind, target, measure] and flips [M, kind] of logits clean [M, L], blurred [kind, M, L]."""
    prediction = jnp.argmax(clean, -1)
    targets = jnp.stack([labels, prediction.astype(labels.dtype), tops.astype(labels.dtype)])
    of = jax.vmap(measures, (None, 0))
    deltas = jax.vmap(lambda logits: of(logits, targets))(blurred) - of(clean, targets)[None]
    flips = jnp.argmax(blurred, -1) != prediction[None, :]
    return jnp.moveaxis(deltas, -1, 0), flips.T


def _choose_controls(energy: np.ndarray, peaks: np.ndarray, size_cells: int, aircraft: np.ndarray | None):
    """The control patch of each pair: nearest blur energy among patches that do not overlap the peak's.

    Args:
      energy: [M, H, W]; peaks: int [M, 2]; aircraft: bool [M, H, W] or None.

    Returns:
      cells int [M, 2]; matched, energy_matched, on the aircraft: bool [M].
    """
    m, height, width = energy.shape
    y, x = peaks.T
    apart_y = np.abs(np.arange(height)[None, :] - y[:, None]) >= size_cells  # [M, H]
    apart_x = np.abs(np.arange(width)[None, :] - x[:, None]) >= size_cells
    allowed = apart_y[:, :, None] | apart_x[:, None, :]
    placed = np.zeros(m, bool)
    if aircraft is not None:
        on = allowed & aircraft
        placed = on.any((1, 2))
        allowed = np.where(placed[:, None, None], on, allowed)
    own = energy[np.arange(m), y, x].astype(np.float64)
    gap = np.where(allowed, np.abs(energy - own[:, None, None]), np.inf).reshape(m, -1)
    best = gap.argmin(1)
    matched = allowed.any((1, 2))
    energy_matched = matched & (gap[np.arange(m), best] <= ENERGY_TOLERANCE * own)
    return np.stack(np.unravel_index(best, (height, width)), 1), matched, energy_matched, placed


def choose_images(features: np.ndarray, images: np.ndarray, max_images: int, seed: int) -> np.ndarray:
    """Rows of at most `max_images` pairs a feature: a seeded random subset, so that it is unbiased.

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
    deltas = np.zeros((0, len(KINDS), len(TARGETS), len(MEASURES)), np.float32)
    falls = np.zeros((0, len(KINDS)))
    return InputEffects(pairs, pairs, deltas, falls.astype(bool), falls, none, none, none)
