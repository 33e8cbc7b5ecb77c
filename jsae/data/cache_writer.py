"""Decodes a prepared data set into the arrays of its cache.

    images.npy     uint8   [N,S,S,3], splits in the order train, val, test
    labels.npy     int32   [N, levels]
    masks.npy      uint16  [N,S,S], bit p = part p, bit 15 = aircraft (drawn sets)
    boxes.npy      float32 [N,4], px of the cached image (where boxes exist)
    manifest.json  key, ids, row range of each split, class and part names, skipped images

Records come in order through grain, decoded by threads, and go straight to disk: memory is bounded by the
images in flight.
"""

import dataclasses
import errno
import json
import os
import pathlib

import grain.python as grain
import numpy as np

from jsae.data import decode
from jsae.data.kinds import Kind, Record
from jsae.runtime import logs, preemption

FORMAT = 1  # raise it when the decoded pixels or the layout change


def write(folder: pathlib.Path, data: Kind, key: dict, image_size: int, on_bad_image: str) -> None:
    """Fill `folder` with arrays and, last, the manifest; arrays get one row a usable image.

    Raises ValueError for a damaged image with on_bad_image="error", or a split without usable images, and
    OSError before anything is decoded if the disk has no room for the arrays.
    """
    sources = data.open()
    total = sum(len(source) for source in sources.values())
    writer = _Rows(
        folder,
        total,
        image_size,
        levels=len(data.class_names),
        masks=bool(data.part_names),
        boxes=data.has_boxes,
    )
    skipped, rows, ids = {}, {}, []
    with logs.progress(total, label="decode", unit="image") as progress:
        for split, source in sources.items():
            start, skipped[split], split_ids = writer.count, [], []
            for example in _decoded(source, data, image_size):
                preemption.check_here()
                progress.update(1)
                if isinstance(example, _Bad):
                    if on_bad_image == "error":
                        raise ValueError(bad_image_message(data.where(example.id), example.reason))
                    skipped[split].append((example.id, example.reason))
                    continue
                split_ids.append(example.id)
                writer.add(example)
            if not split_ids:
                raise ValueError(f"split {split!r} has no usable image; {len(skipped[split])} are damaged")
            rows[split] = (start, writer.count)
            ids += writer.sort(start, split_ids)
    arrays = writer.finish()
    manifest = {
        "key": key,
        "rows": rows,
        "ids": ids,
        "class_names": data.class_names,
        "part_names": data.part_names,
        "skipped": skipped,
        "arrays": arrays,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, ensure_ascii=False, indent=1))


def bad_image_message(where: str, reason: str) -> str:
    """What a run that stops at a damaged image says."""
    return f"{where}: {reason}. Mend or remove it, or leave such images out with data.on_bad_image=skip"


@dataclasses.dataclass(frozen=True)
class _Decoded:
    id: str
    image: np.ndarray  # uint8 [S,S,3]
    labels: tuple[int, ...]
    box: np.ndarray | None
    masks: np.ndarray | None


@dataclasses.dataclass(frozen=True)
class _Bad:
    id: str
    reason: str


def _decoded(source, data: Kind, image_size: int):
    """Iterate over a source in order, decoded by threads (OpenCV and Pillow release the interpreter)."""

    def decode_item(item):
        return _decode(data.parse(item), data, image_size)

    threads = min(os.cpu_count() or 1, 32)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    iterator = iter(grain.MapDataset.source(source).map(decode_item).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def _decode(record: Record, data: Kind, image_size: int) -> _Decoded | _Bad:
    try:
        if isinstance(record.image, bytes):
            rgb = decode.decode_rgb(record.image, banner_px=data.banner_px)
        else:
            rgb = decode.cut_banner(record.image(), data.banner_px)
        box = record.box
        if data.crop == "box":
            rgb = decode.crop_box(rgb, box)
            box = (1, 1, rgb.shape[1], rgb.shape[0])
    except decode.BadImage as error:
        return _Bad(record.id, str(error))
    if box is not None:
        box = decode.fit_box(box, rgb.shape[0], rgb.shape[1], image_size, data.fit)
    image = decode.fit_square(rgb, image_size, data.fit)
    return _Decoded(record.id, image, record.labels, box, record.masks)


class _Rows:
    """The arrays under construction; images and masks go straight to disk."""

    def __init__(self, folder, total: int, size: int, *, levels: int, masks: bool, boxes: bool):
        self._folder, self.count = folder, 0
        shapes = {"images": (np.uint8, (size, size, 3)), "labels": (np.int32, (levels,))}
        if masks:
            shapes["masks"] = (np.uint16, (size, size))
        if boxes:
            shapes["boxes"] = (np.float32, (4,))
        self._arrays = {
            name: _open_array(folder / f"{name}.npy", dtype, (total, *shape))
            for name, (dtype, shape) in shapes.items()
        }

    def add(self, example: _Decoded) -> None:
        row = {
            "images": example.image,
            "labels": example.labels,
            "masks": example.masks,
            "boxes": example.box,
        }
        for name, array in self._arrays.items():
            array[self.count] = row[name]
        self.count += 1

    def sort(self, start: int, ids: list[str]) -> list[str]:
        """Sort the rows from `start` on by their ids, in place along the permutation's cycles."""
        order = sorted(range(len(ids)), key=ids.__getitem__)  # new row i holds old row order[i]
        done = [False] * len(ids)
        for first in range(len(ids)):
            if done[first] or order[first] == first:
                continue
            held = {name: array[start + first].copy() for name, array in self._arrays.items()}
            i = first
            while not done[i]:
                done[i] = True
                j = order[i]
                for name, array in self._arrays.items():
                    array[start + i] = held[name] if j == first else array[start + j]
                i = j
        return [ids[i] for i in order]

    def finish(self) -> dict[str, int]:
        """Flush, cut rows that skipped images left empty, and return each file's size in bytes."""
        sizes = {}
        for name, array in self._arrays.items():
            array.flush()
            path = self._folder / f"{name}.npy"
            if self.count < len(array):
                kept = _open_array(self._folder / "kept.npy", array.dtype, (self.count, *array.shape[1:]))
                for row in range(self.count):
                    kept[row] = array[row]
                kept.flush()
                (self._folder / "kept.npy").replace(path)
            sizes[name] = path.stat().st_size
        return sizes


def _open_array(path: pathlib.Path, dtype, shape: tuple) -> np.memmap:
    """A memory-mapped .npy whose disk space is taken now: a full disk later would kill the process."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if not hasattr(os, "posix_fallocate"):
        return array  # not every operating system can reserve
    with open(path, "r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                return array  # this disk cannot reserve
            mib = array.nbytes >> 20
            what = f"no room for {mib} MiB of decoded images (data.cache_dir)"
            raise OSError(errno.ENOSPC, what, str(path)) from error
    return array
