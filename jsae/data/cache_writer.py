"""Decodes a prepared data set into the arrays of its cache.

    images.npy     uint8   [N,S,S,3], splits in the order train, val, test
    labels.npy     int32   [N, levels]
    masks.npy      uint16  [N,S,S], bit p = part p, bit 15 = foreground (where masks exist)
    boxes.npy      float32 [N,4], px of the cached image (where boxes exist)
    manifest.json  key, ids and checksums, row range of each split, class and part names, skipped images

Records come in order through grain, decoded by threads, and go straight to disk: memory is bounded by the
images in flight.
"""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import grain.python as grain
import numpy as np

from jsae.data import decode
from jsae.data.source import Record, Source
from jsae.runtime import digests, disks
from jsae.runtime.context import RunContext

FORMAT = 3  # raise it when the decoded pixels or the layout change


def write(
    folder: pathlib.Path,
    data: Source,
    key: dict,
    image_size: int,
    on_bad_image: str,
    context: RunContext,
) -> None:
    """Fill `folder` with arrays and, last, the manifest; arrays get one row per usable image.

    Raises ValueError for a damaged image with on_bad_image="error", or a split without usable images, and
    disks.NoRoom, before anything is decoded where the disk can tell, if it has no room for the arrays.
    """
    with disks.room_in(folder.parent, disks.MOVE_CACHE, "the images of the data set, as they are"):
        sources = data.open()
    total = sum(len(source) for source in sources.values())
    mib = total * image_size**2 * (5 if data.part_names else 3) >> 20
    with disks.room_in(folder.parent, disks.MOVE_CACHE, f"{mib} MiB of decoded images"):
        _write(folder, data, key, image_size, on_bad_image, sources, total, context)


def _write(
    folder: pathlib.Path,
    data: Source,
    key: dict,
    image_size: int,
    on_bad_image: str,
    sources: dict[str, Sequence],
    total: int,
    context: RunContext,
) -> None:
    skipped, rows, ids, contents = {}, {}, [], {}
    made = _Rows(
        folder,
        total,
        image_size,
        levels=len(data.class_names),
        masks=bool(data.part_names),
        boxes=data.has_boxes,
    )
    with (
        contextlib.closing(made) as writer,
        context.progress(total, label="decode", unit="image") as progress,
    ):
        for split, source in sources.items():
            start, skipped[split], split_ids = writer.count, [], []
            for example in _decoded(source, data, image_size):
                context.check_here()
                progress.update(1)
                if isinstance(example, _Bad):
                    if on_bad_image == "error":
                        raise ValueError(bad_image_message(data.where(example.id), example.reason))
                    skipped[split].append((example.id, example.reason))
                    continue
                split_ids.append(example.id)
                contents[split, example.id] = example.content
                writer.add(example)
            if not split_ids:
                raise ValueError(f"split {split!r} has no usable image; {len(skipped[split])} are damaged")
            rows[split] = (start, writer.count)
            ids += [(split, id_) for id_ in writer.sort(start, split_ids)]
        arrays = writer.finish()
    manifest = {
        "key": key,
        "rows": rows,
        "ids": [id_ for _, id_ in ids],
        "contents": [contents[key] for key in ids],
        "class_names": data.class_names,
        "part_names": data.part_names,
        "skipped": skipped,
        "arrays": arrays,
    }
    (folder / "manifest.json").write_text(
        json.dumps(manifest, ensure_ascii=False, indent=1), encoding="utf-8"
    )


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
    content: str


@dataclasses.dataclass(frozen=True)
class _Bad:
    id: str
    reason: str


def _decoded(source: Sequence, data: Source, image_size: int) -> Iterator["_Decoded | _Bad"]:
    """Iterate over a source in order, decoded by threads (OpenCV and Pillow release the interpreter)."""

    def decode_item(item: Any) -> "_Decoded | _Bad":
        return _decode(data.parse(item), data, image_size)

    threads = min(os.cpu_count() or 1, 32)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4 * threads)
    iterator = iter(grain.MapDataset.source(source).map(decode_item).to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()


def _decode(record: Record, data: Source, image_size: int) -> _Decoded | _Bad:
    try:
        if isinstance(record.image, bytes):
            content = record.image
            rgb = decode.decode_rgb(content, banner_px=data.banner_px)
        else:
            content = np.ascontiguousarray(record.image())
            rgb = decode.cut_banner(content, data.banner_px)
        box = record.box
        if data.crop == "box" and box is not None:  # load_splits checks that there are boxes
            rgb = decode.crop_box(rgb, box)
            box = (1, 1, rgb.shape[1], rgb.shape[0])
    except decode.BadImage as error:
        return _Bad(record.id, str(error))
    if box is not None:
        box = decode.fit_box(box, rgb.shape[0], rgb.shape[1], image_size, data.fit)
    image = decode.fit_square(rgb, image_size, data.fit)
    content = digests.of_bytes(content if record.content is None else record.content)
    if record.box is not None:  # what is cut out, and where the object is
        content = digests.of_bytes(f"{content} {tuple(map(int, record.box))}".encode())
    return _Decoded(record.id, image, record.labels, box, record.masks, content)


class _Rows:
    """The arrays under construction: .npy files that are written row by row.

    They are written, not mapped: where a mapped page finds no room on the disk, the process is killed.
    """

    def __init__(self, folder: pathlib.Path, total: int, size: int, *, levels: int, masks: bool, boxes: bool):
        self.count = 0
        shapes: dict[str, tuple[type, tuple[int, ...]]] = {
            "images": (np.uint8, (size, size, 3)),
            "labels": (np.int32, (levels,)),
        }
        if masks:
            shapes["masks"] = (np.uint16, (size, size))
        if boxes:
            shapes["boxes"] = (np.float32, (4,))
        self._files = {
            name: _RowFile(folder / f"{name}.npy", np.dtype(dtype), shape, total)
            for name, (dtype, shape) in shapes.items()
        }

    def add(self, example: _Decoded) -> None:
        row = {
            "images": example.image,
            "labels": example.labels,
            "masks": example.masks,
            "boxes": example.box,
        }
        for name, file in self._files.items():
            file.write(self.count, np.asarray(row[name], file.dtype).tobytes())
        self.count += 1

    def sort(self, start: int, ids: list[str]) -> list[str]:
        """Sort the rows from `start` on by their ids, in place along the permutation's cycles."""
        order = sorted(range(len(ids)), key=ids.__getitem__)  # new row i holds old row order[i]
        done = [False] * len(ids)
        for first in range(len(ids)):
            if done[first] or order[first] == first:
                continue
            held = {name: file.read(start + first) for name, file in self._files.items()}
            i = first
            while not done[i]:
                done[i] = True
                j = order[i]
                for name, file in self._files.items():
                    file.write(start + i, held[name] if j == first else file.read(start + j))
                i = j
        return [ids[i] for i in order]

    def finish(self) -> dict[str, int]:
        """Cut the rows that skipped images left empty, and return each file's size in bytes."""
        return {name: file.finish(self.count) for name, file in self._files.items()}

    def close(self) -> None:
        for file in self._files.values():
            file.close()


class _RowFile:
    """One .npy file; its disk space is taken at once where the disk can do that."""

    def __init__(self, path: pathlib.Path, dtype: np.dtype, shape: tuple, total: int):
        self.dtype, self._shape = dtype, shape
        self._row_bytes = int(np.prod(shape)) * dtype.itemsize
        self._file = open(path, "w+b", buffering=0)  # noqa: SIM115 - closed by close
        self._offset = self._write_header(total)
        try:
            self._reserve(self._offset + total * self._row_bytes)
        except OSError:
            self._file.close()
            raise

    def _reserve(self, size: int) -> None:
        if not hasattr(os, "posix_fallocate"):
            return  # not every operating system can
        try:
            os.posix_fallocate(self._file.fileno(), 0, size)
        except OSError as error:
            if disks.why_full(error):
                raise  # else this disk cannot reserve, and will say so when it is full

    def write(self, row: int, data: bytes) -> None:
        self._file.seek(self._offset + row * self._row_bytes)
        while data:  # a disk that is nearly full takes a part
            data = data[self._file.write(data) :]

    def read(self, row: int) -> bytes:
        self._file.seek(self._offset + row * self._row_bytes)
        return self._file.read(self._row_bytes)

    def finish(self, n_rows: int) -> int:
        offset = self._write_header(n_rows)
        assert offset == self._offset  # numpy leaves room in a header for the first axis to grow
        size = offset + n_rows * self._row_bytes
        self._file.truncate(size)
        return size

    def close(self) -> None:
        self._file.close()

    def _write_header(self, n_rows: int) -> int:
        """Write the header of `n_rows` rows; its length."""
        header = {
            "descr": np.lib.format.dtype_to_descr(self.dtype),
            "fortran_order": False,
            "shape": (n_rows, *self._shape),
        }
        stream = io.BytesIO()
        np.lib.format.write_array_header_1_0(stream, header)
        self._file.seek(0)
        self._file.write(stream.getvalue())
        return len(stream.getvalue())
