"""What a study was made on: its images, or bare activations, by content, wherever they lie.

The first stage of a study keeps data.json in its folder: the class names, and of every split the ids, labels
and contents of its images. Contents are CRC-32s of the images as they lie in their files, of bare activations
those of their rows, so that the same data under another path are the same. Every stage that reads the data
compares them with it. Others are refused by number and name: results of two sets would be mixed.
"""

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jsae.data import arrays, cache
from jsae.data.drawn_splits import SPLITS
from jsae.runtime import artifacts, digests, stages
from jsae.runtime.context import RunContext

_SHOWN = 5


class DataChanged(ValueError):
    """The data are not those that the study was made on; the message says how many differ."""


def splits_of(
    config: Any,
    workdir: str | os.PathLike,
    stage: stages.Stage | None = None,
    context: RunContext | None = None,
) -> dict[str, cache.Split]:
    """The splits of a study of images, found to be those that it was made on.

    Args:
      config, workdir: the study's.
      stage: its first stage while that runs, in whose folder the data are described if they are not yet.
      context: of the run, that of `stage` without one.

    Raises DataChanged, and what `cache.load_splits` raises.
    """
    if context is None and stage is not None:
        context = stage.context
    found = cache.load_splits(**stages.plain(config)["data"], context=context)
    described = {name: (split.ids, split.labels.tolist(), split.contents) for name, split in found.items()}
    _check(config, workdir, found["test"].class_names, described, stage)
    return found


def check_arrays(
    config: Any,
    workdir: str | os.PathLike,
    found: arrays.Arrays,
    rows: dict[str, np.ndarray],
    stage: stages.Stage | None,
) -> None:
    """The same for bare activations: `rows` are those of each split. Contents are read once per start."""
    assert found.activations is not None
    contents = [digests.of_bytes(np.ascontiguousarray(row)) for row in found.activations]
    described = {
        name: ([found.ids[i] for i in of], found.labels[of].tolist(), [contents[i] for i in of])
        for name, of in rows.items()
    }
    _check(config, workdir, found.class_names, described, stage)


def _check(
    config: Any,
    workdir: str | os.PathLike,
    class_names: Sequence[str],
    described: dict[str, tuple],
    stage: stages.Stage | None,
) -> None:
    folder = stages.folder(config, workdir, stages.first(config))
    now = {"class_names": list(class_names)} | {
        name: dict(zip(("ids", "labels", "contents"), map(list, columns), strict=True))
        for name, columns in described.items()
    }
    if (folder / stages.DATA_FILE).exists():
        differences = compare(artifacts.read_json(folder / stages.DATA_FILE), now)
        if differences:
            raise DataChanged(
                f"the data of {config['data']['dir'] or config['data']['kind']} are not those that "
                f"{folder.parent} was made on: {differences}. Give the place of those (config.data.dir), or "
                f"--restart={stages.first(config)} to make the study again with these"
            )
    elif stage is not None:
        text = json.dumps(now, ensure_ascii=False).encode()
        stage.add_data(digests.of_bytes(text))
        artifacts.write_bytes(folder / stages.DATA_FILE, text, checked=True)


@dataclasses.dataclass(frozen=True)
class _Image:
    split: str
    label: str
    content: str


def compare(then: dict, now: dict) -> str:
    """How two contents of data.json differ: "2 images added (a, b), 1 relabelled (c)"; "" if they do not."""
    old, new = _images(then), _images(now)
    there = [id_ for id_ in old if id_ in new]
    kinds = {
        "removed": [id_ for id_ in old if id_ not in new],
        "added": [id_ for id_ in new if id_ not in old],
        "relabelled": [id_ for id_ in there if old[id_].label != new[id_].label],
        "exchanged for others": [id_ for id_ in there if old[id_].content != new[id_].content],
        "moved to another split": [id_ for id_ in there if old[id_].split != new[id_].split],
    }
    said = [f"{len(ids)} {what} ({_listed(ids)})" for what, ids in kinds.items() if ids]
    if said:
        return f"of {len(old)} images {', '.join(said)}"
    reordered = [split for split in SPLITS if then[split]["ids"] != now[split]["ids"]]
    if reordered:  # of arrays; images are sorted by id
        return f"the rows of {' and '.join(reordered)} lie in another order"
    if then["class_names"] != now["class_names"]:
        return f"the classes were {_listed(then['class_names'])} and are {_listed(now['class_names'])}"
    return ""


def _images(data: dict) -> dict[str, _Image]:
    """id -> what it is. With trainval a val image is in two splits: train counts, which comes last."""
    names = data["class_names"]
    return {
        id_: _Image(split, names[label] if label >= 0 else "", content)
        for split in reversed(SPLITS)
        for id_, label, content in zip(
            *(data[split][key] for key in ("ids", "labels", "contents")), strict=True
        )
    }


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
