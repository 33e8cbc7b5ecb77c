"""pixel_maps.parquet: whether a feature's pixel map says more than the cell that it is drawn as.

For the top patches of the class-selective features that AUROC on train puts first. A patch enters the
headline if blurring the whole image takes away at least half of the feature there: else there is nothing to
insert or delete.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jax import lax

from jsae import metrics
from jsae.analysis.marks import Marks
from jsae.analysis.pixel_maps import curves
from jsae.analysis.pixel_maps.attribution import attribute
from jsae.data import blur
from jsae.runtime.batches import map_rows
from jsae.tables import Column, Table

MIN_FALL = 0.5  # of the feature when the whole image is blurred
MAPS = ("pixel_map", *curves.RIVALS)
AREAS = ("insertion_auc", "deletion_auc")
PLACES = ("cell", "foreground", "part")

TABLE = Table(
    "pixel_maps",
    (
        Column("feature", pa.int32(), "index of the feature in the SAE, 0..F-1"),
        Column("rank", pa.int32(), "of the patch in top_patches"),
        Column("image", pa.int32(), "index of the image in the test split"),
        Column("map", pa.string(), "pixel_map, or what it is compared with: activation_map, centre, random"),
        Column("fall", pa.float64(), "1 - f of the blurred image / f of the image, at the patch's cell"),
        Column("qualified", pa.bool_(), f"whether fall is at least {MIN_FALL}"),
        Column(
            "insertion_auc",
            pa.float64(),
            "area under (f - f_base) / (f_clean - f_base), in 0..1, while the map's best pixels are put into "
            "the blurred image; high is good",
        ),
        Column("deletion_auc", pa.float64(), "the same while they are blurred out of the image; low is good"),
        Column("cell_mass", pa.float64(), "share of the map's positive mass inside the patch's cell"),
        Column(
            "foreground_mass", pa.float64(), "the same inside the foreground, where masks or boxes say it"
        ),
        Column(
            "part_mass",
            pa.float64(),
            "the same inside the part that the feature localises best on train, where the image has it",
        ),
    ),
)


def measure(
    acts_of: Callable[[jax.Array], jax.Array],
    sae: Any,
    batch: Mapping[str, jax.Array],
    *,
    stride_px: int,
    matrices: tuple[np.ndarray, np.ndarray],
    method: str,
) -> dict[str, jax.Array]:
    """fall [B], the two areas and the three masses [B, map] of B patches; traced.

    Args:
      acts_of: images float32 [B, S, T, 3], normalised -> activations [B, H, W, C] of the SAE's site.
      sae: the SAE.
      batch: images [B, S, T, 3], features [B], peaks [B, 2], rows [B], foreground and part bool [B, S, T].
      stride_px: pixels per cell.
      matrices: of the blur, for rows and columns.
      method: of the attribution.
    """
    with jax.default_matmul_precision("float32"):
        images, features, peaks = blur.normalised(batch["images"]), batch["features"], batch["peaks"]
        blurred, (_, height, width, _) = blur.blurred(images, *matrices), images.shape
        found = attribute(acts_of, sae, images, blurred, features, peaks, stride_px=stride_px, method=method)
        sides = height, width
        scores = {"pixel_map": found} | curves.rivals(sae, acts_of(images), features, batch["rows"], sides)
        value = curves.peak_value(acts_of, sae, features, peaks)
        inside = {
            "cell": _cell(peaks, stride_px, sides),
            "foreground": batch["foreground"],
            "part": batch["part"],
        }
        stacked = jnp.stack([scores[name] for name in MAPS])
        areas = lax.map(lambda scores: curves.areas(value, images, blurred, scores), stacked)
        masses = {
            f"{place}_mass": jnp.stack([metrics.positive_mass(scores[name], mask) for name in MAPS], 1)
            for place, mask in inside.items()
        }
        clean, base = lax.map(value, jnp.stack([images, blurred]))
        fall = 1 - base / jnp.where(clean == 0, jnp.nan, clean)
        return {"fall": fall} | masses | {name: area.T for name, area in zip(AREAS, areas, strict=True)}


def _cell(peaks, stride_px: int, sides) -> jax.Array:
    rows, columns = (
        jnp.arange(n)[None, :] // stride_px == peaks[:, axis][:, None] for axis, n in enumerate(sides)
    )
    return rows[:, :, None] & columns[:, None, :]


def columns(
    measured: Callable[[dict[str, jax.Array]], dict[str, jax.Array]],
    read_images: Callable[[np.ndarray], np.ndarray],
    patches: Mapping[str, np.ndarray],
    features: Sequence[int],
    marks: Marks | None,
    *,
    n_patches: int,
    **settings: Any,
) -> dict[str, np.ndarray]:
    """Columns of pixel_maps.parquet: for each of the features its first patches, one row per map.

    Args:
      measured: jitted, the batch of `measure` -> what it returns.
      read_images: image numbers [n] -> uint8 [n, S, T, 3].
      patches: columns of top_patches.parquet as arrays.
      features: which, in order.
      marks: where foreground and parts lie; None if that is not known.
      n_patches: of each feature.
      settings: of `map_rows`: batch_size, mesh, context, label.
    """
    chosen = [np.flatnonzero(patches["feature"] == feature)[:n_patches] for feature in features]
    which = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    feature, image = patches["feature"][which].astype(np.int32), patches["image"][which]

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        at, images = which[numbers], read_images(image[numbers])
        nowhere = np.zeros(images.shape[:3], bool)
        pairs = list(zip(feature[numbers].tolist(), image[numbers].tolist(), strict=True))
        return {
            "images": images,
            "features": feature[numbers],
            "peaks": np.stack([patches["y"][at], patches["x"][at]], 1).astype(np.int32),
            "rows": numbers.astype(np.int32),
            "foreground": nowhere if marks is None else np.stack([marks.foreground(i) for _, i in pairs]),
            "part": nowhere if marks is None else np.stack([marks(f, i) for f, i in pairs]),
        }

    n, found = len(which), map_rows(measured, read, len(which), unit="patch", **settings)
    if found is None:
        found = {"fall": np.zeros(0)} | {name: np.zeros((0, len(MAPS))) for name in (*AREAS, *_masses())}
    if marks is None:
        found |= {
            "foreground_mass": np.full((n, len(MAPS)), np.nan),
            "part_mass": np.full((n, len(MAPS)), np.nan),
        }
    else:
        shown = np.array(
            [marks(f, i).any() for f, i in zip(feature.tolist(), image.tolist(), strict=True)], bool
        )
        found["part_mass"] = np.where(shown[:, None], found["part_mass"], np.nan)
    fall = found.pop("fall").astype(np.float64)
    each = {"feature": feature, "rank": patches["rank"][which], "image": image, "fall": fall}
    each["qualified"] = fall >= MIN_FALL
    wide = {name: np.repeat(values, len(MAPS)) for name, values in each.items()}
    return wide | {"map": np.tile(np.array(MAPS, object), n)} | {k: v.reshape(-1) for k, v in found.items()}


def _masses() -> list[str]:
    return [f"{place}_mass" for place in PLACES]


def headline(table: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over features of the mean over a feature's qualified patches; None where no patch qualifies.

    Args:
      table: from `columns`.
    """
    found: dict[str, Any] = {
        "n_features": len(np.unique(table["feature"])),
        "n_patches": len(table["feature"]) // len(MAPS),
        "qualified_share": float(np.mean(table["qualified"])) if len(table["feature"]) else None,
    }
    for prefix, name in (("", "pixel_map"), *((f"{name}_", name) for name in curves.RIVALS)):
        rows = table["qualified"] & (table["map"] == name)
        each = np.unique(table["feature"][rows])
        for area in AREAS:
            means = [np.mean(table[area][rows & (table["feature"] == feature)]) for feature in each]
            found[prefix + area] = float(np.mean(means)) if means else None
    return found


def by_feature(table: pa.Table) -> dict[int, dict[str, float | None]]:
    """feature -> the means of its pixel maps' numbers over its qualified patches; None if none is."""
    found: dict[int, list[dict]] = {}
    for row in table.to_pylist():
        if row["map"] == "pixel_map":
            found.setdefault(row["feature"], []).extend([row] if row["qualified"] else [])

    def mean(rows: list[dict], name: str) -> float | None:
        known = [row[name] for row in rows if row[name] is not None]
        return float(np.mean(known)) if known else None

    return {f: {name: mean(rows, name) for name in (*AREAS, *_masses())} for f, rows in found.items()}
