"""Decoded once: a memory-mapped uint8 cache of a data set, and the splits that read it.

One photo costs about 7 ms to decode, a training step on an accelerator less. So a data set is prepared by
TFDS, read through grain, decoded by threads, and kept as one folder a key:

    <cache_dir>/<kind>-<key>/   arrays and manifest.json (cache_writer.py has the format)

Rows of a split are sorted by id, whatever order TFDS keeps. Train and val are neighbours, so "trainval" is
a view like any other split. The key is a digest of all that the pixels depend on. A folder is written under
another name and renamed when complete: a killed run leaves no half cache, and of two runs one waits.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable

import numpy as np

from jsae.data import cache_writer, decode, locks, tied_sky
from jsae.data.drawn_splits import SPLITS
from jsae.data.kinds import KINDS
from jsae.data.source import Request, Source
from jsae.runtime import disks, logs, paths
from jsae.runtime.context import RunContext

FOREGROUND_BIT = 15  # of masks: the whole object
TRAIN_SPLITS = ("train", "trainval")
ON_BAD_IMAGE = ("error", "skip")


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split in memory-mapped form; row i is image i everywhere downstream.

    Attributes:
      images: uint8 [N,S,S,3], RGB, memory-mapped.
      labels: int32 [N], positions in class_names.
      ids: N strings, sorted within each split of the data set.
      masks: uint16 [N,S,S] or None: bit p = part p of part_names, bit FOREGROUND_BIT = the whole object.
      boxes: float32 [N,4] or None: x0, y0, x1, y1, px of the cached image, edges.
      contents: N checksums of the images as they lie in their files, wherever these are.
      levels: coarser label level -> (its class names, the position there of each of class_names, int32 [L],
        -1 for a class without photos); of fgvc_aircraft.
      skipped: (id, reason) of images left out because they are damaged.
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    part_names: tuple[str, ...] = ()
    masks: np.ndarray | None = None
    boxes: np.ndarray | None = None
    contents: tuple[str, ...] = ()
    levels: dict[str, tuple[tuple[str, ...], np.ndarray]] = dataclasses.field(default_factory=dict)
    skipped: tuple[tuple[str, str], ...] = ()


def load_splits(
    *,
    kind: str,
    seed: int = 0,
    dir: str = "",
    image_size: int,
    banner_px: int = 0,
    label_level: str = "variant",
    train_split: str = "train",
    fit: str = "squash",
    crop: str = "none",
    val_share: float = 0.0,
    test_share: float = 0.0,
    on_bad_image: str = "error",
    cache_dir: str = "",
    n_train: int = 0,
    n_val: int = 0,
    n_test: int = 0,
    tied: str = "",
    context: RunContext | None = None,
) -> dict[str, Split]:
    """The splits {"train", "val", "test"} of a data set, decoded on the first call and mapped afterwards.

    Args:
      kind: a key of KINDS.
      seed: of a drawn set, or of splits that are drawn.
      n_train, n_val, n_test: of synthetic_aircraft: how many are drawn.
      tied: of synthetic_aircraft: what gives the class away in train (tied_sky.TIES), "" for nothing.
      dir: where photos or arrays lie (fgvc_aircraft.locate, image_folder.files, arrays).
      image_size: side S of the cached square images.
      banner_px: of photos and arrays: rows cut off the bottom first (20 for FGVC-Aircraft).
      label_level: of fgvc_aircraft: variant, family or manufacturer.
      train_split: "train", or "trainval": train and val together are returned as "train" (val stays).
      fit: of photos and arrays: "squash" or "crop" (decode.fit_square).
      crop: "box" cuts each photo to its box before it is fitted; needs a set with boxes.
      val_share, test_share: of each class, where image_folder or arrays come without splits.
      on_bad_image: "error" stops at the first damaged image, "skip" leaves it out and lists it.
      cache_dir: local folder; empty: $JSAE_CACHE, else ~/.cache/jsae.
      context: of the run, which may be asked to stop while it decodes.

    Raises:
      ValueError: an unknown value, defects in the lists, a damaged image, a split without usable images,
        crop="box" without boxes, arrays that hold activations.
      FileNotFoundError: the directory does not exist or holds no lists.
    """
    _check("kind", kind, KINDS)
    _check("train_split", train_split, TRAIN_SPLITS)
    _check("fit", fit, decode.FITS)
    _check("crop", crop, decode.CROPS)
    _check("on_bad_image", on_bad_image, ON_BAD_IMAGE)
    _check("tied", tied, tied_sky.TIES if kind == "synthetic_aircraft" else ("",))
    if image_size < 1:
        raise ValueError(f"data.image_size={image_size} must be >= 1")
    if banner_px < 0:
        raise ValueError(f"data.banner_px={banner_px} must be >= 0")
    folder = local_folder(cache_dir)
    with disks.room_in(folder, disks.MOVE_CACHE):  # an archive is unpacked there
        data = KINDS[kind](
            Request(
                directory=dir,
                image_size=image_size,
                cache_dir=folder,
                seed=seed,
                sizes={"train": n_train, "val": n_val, "test": n_test},
                shares={"val": val_share, "test": test_share},
                banner_px=banner_px,
                fit=fit,
                crop=crop,
                tied=tied,
            )
        )
    if crop == "box" and not data.has_boxes:
        raise ValueError(
            f"data.crop=box needs boxes, which {dir or kind} does not have (images_box.txt); use none"
        )
    level = next(iter(data.class_names))
    if data.has_levels:
        _check("label_level", label_level, data.class_names)
        level = label_level
    finished = _cached(kind, data, image_size, on_bad_image, folder, context or RunContext())
    return _open(finished, level, train_split, on_bad_image, data)


def _check(key: str, value: str, valid: Iterable[str]) -> None:
    if value not in valid:
        raise ValueError(f"data.{key}={value!r} is unknown; valid: {', '.join(valid)}")


def local_folder(cache_dir: str | os.PathLike) -> pathlib.Path:
    """The cache folder, made if it is not there: `cache_dir`, or $JSAE_CACHE, or ~/.cache/jsae."""
    text = os.fspath(cache_dir or os.environ.get("JSAE_CACHE", "") or "~/.cache/jsae")
    if paths.is_remote(text):
        raise ValueError(f"data.cache_dir={text!r}: images are memory-mapped, so the cache must be local")
    folder = pathlib.Path(paths.absolute(text))
    try:
        if text.startswith("~") and os.path.expanduser(text) == text:
            raise OSError("this user has no home folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(
            f"the cache folder {text} cannot be made ({error}); set data.cache_dir (or JSAE_CACHE) to one "
            "that this user can write"
        ) from error
    return folder


# reading a finished cache


def _open(
    folder: pathlib.Path, level: str, train_split: str, on_bad_image: str, data: Source
) -> dict[str, Split]:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    skipped = {name: tuple((id_, why) for id_, why in manifest["skipped"][name]) for name in SPLITS}
    lost = [item for name in SPLITS for item in skipped[name]]
    if lost and on_bad_image == "error":
        id_, why = lost[0]
        more = f" (and {len(lost) - 1} more)" if len(lost) > 1 else ""
        raise ValueError(cache_writer.bad_image_message(data.where(id_), why + more))
    if lost:
        shown = "; ".join(f"{id_}: {why}" for id_, why in lost[:10]) + ("; ..." if len(lost) > 10 else "")
        left = ", ".join(f"{stop - start} {name}" for name, (start, stop) in manifest["rows"].items())
        logs.note(
            f"{len(lost)} damaged images are left out, listed in {folder / 'manifest.json'}: {shown}. "
            f"Without them there are {left}"
        )
    arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in manifest["arrays"]}
    column = list(data.class_names).index(level)
    levels = {name: (data.class_names[name], parent) for name, parent in data.parents.get(level, {}).items()}

    def view(name: str, start: int, stop: int, left_out: tuple) -> Split:
        return Split(
            name=name,
            images=arrays["images"][start:stop],
            labels=np.array(arrays["labels"][start:stop, column]),
            ids=tuple(manifest["ids"][start:stop]),
            class_names=tuple(data.class_names[level]),
            part_names=data.part_names,
            masks=arrays["masks"][start:stop] if "masks" in arrays else None,
            boxes=np.array(arrays["boxes"][start:stop]) if "boxes" in arrays else None,
            contents=tuple(manifest["contents"][start:stop]),
            levels=levels,
            skipped=left_out,
        )

    splits = {}
    for name in SPLITS:
        start, stop = manifest["rows"][name]
        splits[name] = view(name, start, stop, skipped[name])
    _note_untested(splits, level)
    if train_split == "trainval":
        start, stop = manifest["rows"]["train"][0], manifest["rows"]["val"][1]
        splits["train"] = view("train", start, stop, skipped["train"] + skipped["val"])
    return splits


def _note_untested(splits: dict[str, Split], level: str) -> None:
    """Warn of classes that are learnt and not tested: means over classes leave them out."""
    names = splits["train"].class_names
    learnt = np.bincount(splits["train"].labels, minlength=len(names)) > 0
    for split in ("val", "test"):
        untested = np.flatnonzero(learnt & (np.bincount(splits[split].labels, minlength=len(names)) == 0))
        if len(untested):
            shown = ", ".join(repr(names[i]) for i in untested[:10]) + (", ..." if len(untested) > 10 else "")
            logs.note(
                f"{len(untested)} of {len(names)} classes ({level}) have no {split} image, so means over the "
                f"classes of {split} leave them out: {shown}"
            )


# writing one


def _cached(
    kind: str,
    data: Source,
    image_size: int,
    on_bad_image: str,
    cache_dir: pathlib.Path,
    context: RunContext,
) -> pathlib.Path:
    """The folder of the finished cache, made if it is not there."""
    key = {
        "format": cache_writer.FORMAT,
        "kind": kind,
        "identity": data.identity,
        "image_size": image_size,
        "banner_px": data.banner_px,
        "fit": data.fit,
        "crop": data.crop,
    }
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_dir / f"{kind}-{digest}"
    if _is_complete(folder):
        return folder
    with locks.locked(cache_dir / f".{kind}-{digest}.lock") as alone:
        if _is_complete(folder):
            return folder  # another run has made it meanwhile
        prefix = f".{folder.name}.making-"
        if alone:
            for left in [folder, *cache_dir.glob(prefix + "*")]:  # damaged, or left by a killed run
                shutil.rmtree(left, ignore_errors=True)
        logs.get_logger().info("preparing %s in %s (once)", kind, folder)
        with disks.room_in(cache_dir, disks.MOVE_CACHE):
            temporary = pathlib.Path(tempfile.mkdtemp(dir=cache_dir, prefix=prefix))
        try:
            temporary.chmod(cache_dir.stat().st_mode & 0o777)  # whoever uses the cache reads what is in it
            cache_writer.write(temporary, data, key, image_size, on_bad_image, context)
            if folder.exists() and not _is_complete(folder):  # damaged, on a disk without locks
                folder.rename(temporary.with_suffix(".old"))
            temporary.rename(folder)
        except OSError:
            if not _is_complete(folder):
                raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _is_complete(folder: pathlib.Path) -> bool:
    """Whether the manifest and every array it names are there in full (someone may have cleaned up)."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return all((folder / f"{n}.npy").stat().st_size == s for n, s in manifest["arrays"].items())
    except (OSError, ValueError, KeyError):
        return False
