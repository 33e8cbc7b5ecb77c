"""Activations that were extracted elsewhere, written into the store shard by shard.

The rows of a split keep the order they have in the file. Each shard is read from the memory map, checked
and written before the next one is read, so memory is bounded by one shard. There is no classifier, hence no
logits.npy, unless a head is given (`jsae.classifier.head_only`).
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from jsae.activations import store
from jsae.classifier import head_only
from jsae.classifier.model import Head, head_logits
from jsae.data import arrays
from jsae.runtime import artifacts, mesh, stages


def read(data: Mapping[str, Any]) -> arrays.Arrays:
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


def read_head(path: str, found: arrays.Arrays, folder: epath.Path) -> Head:
    """The head in the file `path`, copied to `folder`; the copy where the file is gone.

    Raises FileNotFoundError if neither is there, ValueError for a head that does not fit the activations or
    activations without labels.
    """
    if (found.labels < 0).any():
        raise ValueError(
            f"config.activations.head={path!r}, but {found.path} has no labels: effects on a class need the "
            "key labels"
        )
    source, copy = pathlib.Path(path).expanduser(), folder / head_only.FILE
    if source.exists():
        data = source.read_bytes()
    elif copy.exists():
        source, data = copy, artifacts.read_bytes(copy)
    else:
        raise FileNotFoundError(f"config.activations.head={path!r} does not exist; expected an .npz file")
    assert found.activations is not None
    head = head_only.parse(data, source, found.activations.shape[-1], found.class_names)
    artifacts.write_bytes(copy, data, checked=True)
    return head


@jax.jit
def _logits(head: Head, acts: jax.Array) -> jax.Array:
    """Logits [n, L] of raw activations [n, H, W, C]."""
    return head_logits(head, acts.mean((1, 2)))


def write(
    found: arrays.Arrays,
    rows: np.ndarray,
    label: str,
    stage: stages.Stage,
    c: Any,
    head: Head | None = None,
) -> tuple[tuple[int, ...], list[int]]:
    """Write the shards of one split that are missing.

    Args:
      found: the arrays.
      rows: rows of the split, rising.
      label: the split's name.
      stage: the stage activations while it runs.
      c: config.activations: dtype and images_per_shard.
      head: makes logits.npy of what is stored.

    Returns ((H, W, C), shard sizes). Raises ValueError naming the first row that is not finite. Every process
    reads and checks all of it, so that all of them stop at the same row; one writes.
    """
    assert found.activations is not None
    context, folder = stage.context, stage.folder / label
    parts = [rows[start : start + c.images_per_shard] for start in range(0, len(rows), c.images_per_shard)]
    missing = mesh.of_writer(
        lambda: [i for i in range(len(parts)) if not (folder / store.shard_name(i)).exists()]
    )
    with context.progress(len(rows), label=f"activations of {label}", unit="image") as progress:
        for i, part in enumerate(parts):
            if i in missing:
                context.check_here()
                with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinite: found below
                    acts = np.asarray(found.activations[part]).astype(np.float32)
                _check_finite(found, part, acts)
                artifacts.write_array(folder / store.shard_name(i), store.to_stored(acts, c.dtype))
                stage.kept()
            progress.update(len(part))
    if head is not None:
        shards = (store.open_shard(folder / store.shard_name(i)) for i in range(len(parts)))
        logits = [np.asarray(_logits(head, store.from_stored(shard, c.dtype))) for shard in shards]
        artifacts.write_array(folder / "logits.npy", np.concatenate(logits))
    artifacts.write_array(folder / "labels.npy", found.labels[rows])
    artifacts.write_json(folder / "image_ids.json", [found.ids[row] for row in rows.tolist()], checked=True)
    mesh.wait_for_all(f"activations of {label}: written")
    return found.activations.shape[1:], [len(part) for part in parts]


def _check_finite(found: arrays.Arrays, part: np.ndarray, acts: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(acts))  # [n, 4]
    if len(bad) and found.activations is not None:
        at, y, x, channel = (int(i) for i in bad[0])
        row = int(part[at])
        raise ValueError(
            f"{found.path}: activations[{row}] (id {found.ids[row]!r}) is "
            f"{found.activations[row][y, x, channel]} at y={y}, x={x}, channel {channel}; "
            "expected numbers that are finite in float32"
        )
