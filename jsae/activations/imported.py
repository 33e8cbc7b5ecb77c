"""Activations that were extracted elsewhere, written into the store shard by shard.

The rows of a split keep the order they have in the file. Each shard is read from the memory map, checked
and written before the next one is read, so memory is bounded by one shard. There is no classifier, hence no
logits.npy.
"""

import numpy as np

from jsae.activations import store
from jsae.data import arrays
from jsae.runtime import artifacts, attempts, logs, mesh, preemption


def read(data) -> arrays.Arrays:
    """The arrays of `config.data`. Raises ValueError unless kind is "arrays" and they hold activations."""
    if data["kind"] != "arrays":
        raise ValueError(
            f"config.activations.site=arrays needs data.kind=arrays, not {data['kind']!r}; with images, name "
            "a site of the classifier: stem, stage1..stage4, stageS.blockJ"
        )
    shares = {"val": data["val_share"], "test": data["test_share"]}
    found = arrays.read(data["dir"], seed=data["seed"], shares=shares)
    if found.activations is None:
        raise ValueError(
            f"{found.path} holds images: with config.activations.site=arrays it must hold activations. For a "
            "study of images set config.activations.site=stage4 (or start from configs/photos.py)"
        )
    return found


def write(found: arrays.Arrays, rows: np.ndarray, label: str, folder, c) -> tuple[tuple, list[int]]:
    """Write the shards of one split that are missing.

    Args:
      found: the arrays.
      rows: rows of the split, rising.
      label: the split's name.
      folder: where its shards go.
      c: config.activations: dtype and images_per_shard.

    Returns ((H, W, C), shard sizes). Raises ValueError naming the first row that is not finite. Every process
    reads and checks all of it, so that all of them stop at the same row; one writes.
    """
    parts = [rows[start : start + c.images_per_shard] for start in range(0, len(rows), c.images_per_shard)]
    missing = mesh.of_writer(
        lambda: [i for i in range(len(parts)) if not (folder / store.shard_name(i)).exists()]
    )
    with logs.progress(len(rows), label=f"activations of {label}", unit="image") as progress:
        for i, part in enumerate(parts):
            if i in missing:
                preemption.check_here()
                with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite: found below
                    acts = np.asarray(found.activations[part]).astype(np.float32)
                _check_finite(found, part, acts)
                artifacts.write_array(folder / store.shard_name(i), store.to_stored(acts, c.dtype))
                attempts.kept()
            progress.update(len(part))
    artifacts.write_array(folder / "labels.npy", found.labels[rows])
    artifacts.write_json(folder / "image_ids.json", [found.ids[row] for row in rows.tolist()], checked=True)
    mesh.wait_for_all(f"activations of {label}: written")
    return found.activations.shape[1:], [len(part) for part in parts]


def _check_finite(found: arrays.Arrays, part: np.ndarray, acts: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(acts))  # [n, 4]
    if len(bad):
        at, y, x, channel = (int(i) for i in bad[0])
        row = int(part[at])
        raise ValueError(
            f"{found.path}: activations[{row}] (id {found.ids[row]!r}) is "
            f"{found.activations[row][y, x, channel]} at y={y}, x={x}, channel {channel}; "
            "expected numbers that are finite in float32"
        )
