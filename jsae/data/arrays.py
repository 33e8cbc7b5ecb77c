"""Own arrays as a data set: images, or activations that were extracted elsewhere.

`config.data.dir` is an .npz file, a folder of .npy files, or one .npy file. The keys of the .npz, or the
names of the .npy files:

    images        uint8 [N,H,W,3], RGB; or grey, with alpha, of other dtypes and ranges (array_images.py)
    activations   float [N,C] or [N,H,W,C], channels last, raw; [N,C] is a grid of 1x1
    labels        [N] integers 0..L-1, or strings; images need them
    class_names   optional, [L] strings; without it strings are sorted, integers become "class 0", ...
    split         optional, [N] strings "train", "val", "test" (or "valid", ...: drawn_splits.WORDS); a val or
                  test that is missing is drawn from train, without this key both are (drawn_splits.py)
    ids           optional, [N] distinct strings or integers; without it the row, "000012"
    layout        optional, "NHWC" or "NCHW": where the channels of images and activations are. Without it
                  what looks like [N,C,H,W] is an error; "NHWC" says that it is right as it is

Exactly one of images and activations. Other keys are an error, so that a misspelt one is not overlooked. A
single .npy file holds images if it has shape [N,H,W,3], else activations. Nothing is ever unpickled. The
same image (equal pixels) in two splits is an error; where splits are drawn, copies stay together.
Activations without labels are one class without a name: labels are -1, and what needs labels is unknown.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from jsae.data import array_images, array_splits, copies, npy_files

KEYS = ("images", "activations", "labels", "class_names", "split", "ids", "layout")
NO_LABEL = "no label"  # the one class of activations without labels
_MAX_UNNAMED = 10_000  # classes without names, where there are fewer rows
LAYOUTS = ("NHWC", "NCHW")

EXPECTED = f"""\
  an .npz file with the keys images or activations, and optionally {", ".join(KEYS[2:])}
  a folder with images.npy or activations.npy, and the others beside it
  an .npy file with activations [N,C] or [N,H,W,C], or images [N,H,W,3]"""


@dataclasses.dataclass(frozen=True)
class Arrays:
    """Checked arrays; images or activations stay on disk.

    Attributes:
      path: the file or folder.
      images: of any dtype and range, [N,H,W] or [N,H,W,C], or None.
      activations: float [N,H,W,C], or None.
      labels: int32 [N], -1 throughout without labels.
      class_names: of the labels.
      ids: N distinct strings.
      rows: split -> its rows, int64, rising.
      identity: JSON values that all of this depends on.
      scale: what pixels are multiplied with to be 0..255.
    """

    path: pathlib.Path
    images: np.ndarray | None
    activations: np.ndarray | None
    labels: np.ndarray
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    rows: dict[str, np.ndarray]
    identity: dict
    scale: float = 1.0

    def image(self, row: int) -> np.ndarray:
        """Image `row` as uint8 [H,W,3].

        Raises decode.BadImage for pixels that are not finite or out of range.
        """
        images = self.images
        assert images is not None
        return array_images.to_rgb(np.asarray(images[row]), self.scale)


def read(directory: str | os.PathLike, *, seed: int, shares: dict[str, float]) -> Arrays:
    """Open and check the arrays of `config.data.dir`.

    Args:
      directory: .npz file, .npy file or folder.
      seed: of the drawn splits, where there is no key split.
      shares: {"val": share, "test": share} of each class, for the same.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: keys are missing or unknown, an array has a wrong shape or dtype, holds Python objects, or a
        value that is out of range; the message names key, row and value.
    """
    if not directory:
        raise ValueError(
            "config.data.dir is empty, but data.kind=arrays needs a file. It can be\n" + EXPECTED
        )
    path = pathlib.Path(directory).expanduser().absolute()
    if not path.exists():
        raise FileNotFoundError(
            f"config.data.dir={os.fspath(directory)!r} does not exist. It can be\n{EXPECTED}"
        )
    found = _open(path)
    images, activations = found.get("images"), found.get("activations")
    if (images is None) == (activations is None):
        both = "both images and activations" if images is not None else "neither images nor activations"
        raise ValueError(
            f"{path} holds {both} (its keys: {', '.join(found) or 'none'}). It can be\n{EXPECTED}"
        )
    layout = _layout(path, found)
    if images is not None:
        images = given = array_images.check(path, images, layout)
    else:
        activations = given = _as_grid(path, found["activations"], layout)
    n = len(given)
    if n == 0:
        raise ValueError(f"{path}: there are no rows")
    for key in ("labels", "split", "ids"):
        if key in found and found[key].shape != (n,):
            hot = "; one-hot labels: labels.argmax(1)" if key == "labels" and found[key].ndim == 2 else ""
            raise ValueError(
                f"{path}: {key} has shape {found[key].shape}, expected ({n},), one for each row{hot}"
            )
    if images is not None and "labels" not in found:
        raise ValueError(f"{path}: images without labels; a classifier needs the key labels, [{n}]")
    labels, class_names = _labels(path, found, n)
    ids = _ids(path, found, n)
    splits = array_splits.given(path, _strings(path, "split", found["split"]) if "split" in found else [])
    shares = {split: share for split, share in shares.items() if split not in splits}
    alike = copies.of_rows(images) if images is not None else []
    rows = array_splits.rows(path, splits, ids, labels, seed, shares, alike)
    identity = _identity(path)
    if shares:
        identity |= {"seed": seed, "shares": shares}
    scale = array_images.scale(path, images) if images is not None else 1.0
    return Arrays(path, images, activations, labels, class_names, ids, rows, identity, scale)


def _open(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.is_file() and path.suffix.lower() == ".npy":
        array = npy_files.read(path, path.stem)
        return {"images" if array.ndim == 4 and array.shape[3] == 3 else "activations": array}
    if not path.is_dir() and path.suffix.lower() != ".npz":
        raise ValueError(
            f"config.data.dir={os.fspath(path)!r} is neither .npz, .npy nor folder. It can be\n{EXPECTED}\n"
            "Other files are saved again: np.savez('set.npz', activations=..., labels=...)"
        )
    names = npy_files.names(path)
    unknown = [name for name in names if name not in KEYS]
    if unknown:
        raise ValueError(f"{path}: unknown keys {', '.join(unknown)}; valid: {', '.join(KEYS)}")
    return {name: npy_files.read(path, name) for name in names}


def _layout(path: pathlib.Path, found: dict) -> str | None:
    if "layout" not in found:
        return None
    array = np.asarray(found["layout"])
    text: Any = str(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind == "U" else array
    if str(text).upper() not in LAYOUTS:
        raise ValueError(f"{path}: layout is {text!r}, expected one of {', '.join(LAYOUTS)}")
    return str(text).upper()


def _as_grid(path: pathlib.Path, activations: np.ndarray, layout: str | None) -> np.ndarray:
    """Activations as [N,H,W,C]."""
    shape = activations.shape
    if activations.ndim not in (2, 4) or 0 in shape[1:]:
        tokens = "; tokens [N,T,C]: drop the class token, then reshape(N, H, W, C)" if len(shape) == 3 else ""
        raise ValueError(f"{path}: activations has shape {shape}, expected [N,C] or [N,H,W,C]{tokens}")
    if activations.dtype.kind != "f":
        lost = " (bfloat16 does not survive np.save)" if activations.dtype.kind == "V" else ""
        raise ValueError(
            f"{path}: activations has dtype {activations.dtype}, expected float16, float32 or float64{lost}"
        )
    if activations.ndim == 2:
        return activations[:, None, None, :]
    if layout is None and (shape[1] != shape[2] == shape[3] or shape[1] >= 2 * max(shape[2:])):
        raise ValueError(
            f"{path}: activations has shape {shape}, which looks like [N,C,H,W]; expected [N,H,W,C]: "
            "np.moveaxis(activations, 1, -1), or save layout='NCHW' beside it. If its channels are last: "
            "layout='NHWC'"
        )
    return np.moveaxis(activations, 1, -1) if layout == "NCHW" else activations


def _labels(path: pathlib.Path, found: dict, n: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels int32 [N] and class names."""
    names = None
    if "class_names" in found:
        names = tuple(_strings(path, "class_names", found["class_names"]))
        twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
        if not names or twice is not None:
            what = "is empty" if not names else f"holds {twice!r} twice"
            raise ValueError(f"{path}: class_names {what}; expected one distinct name for each class")
    if "labels" not in found:
        return np.full(n, -1, np.int32), (NO_LABEL,)
    labels = np.asarray(found["labels"])
    if labels.dtype.kind in "US":
        texts = _strings(path, "labels", labels)
        names = names or tuple(sorted(set(texts)))
        index = {name: i for i, name in enumerate(names)}
        for row, text in enumerate(texts):
            if text not in index:
                raise ValueError(
                    f"{path}: labels[{row}] is {text!r}, which is not one of class_names: {_few(names)}"
                )
        return np.array([index[text] for text in texts], np.int32), names
    if labels.dtype.kind not in "iu":
        raise ValueError(f"{path}: labels has dtype {labels.dtype}, expected integers or strings")
    n_classes = len(names) if names else max(int(labels.max()) + 1, 1)
    if not names and n_classes > max(n, _MAX_UNNAMED):
        raise ValueError(
            f"{path}: labels[{labels.argmax()}] is {labels.max()}, but there are {n} rows; expected 0..L-1, "
            "or class_names for so many classes"
        )
    wrong = np.flatnonzero((labels < 0) | (labels >= n_classes))
    if len(wrong):
        limit = f"0..{n_classes - 1}, the {n_classes} class_names" if names else "0 or more"
        raise ValueError(
            f"{path}: labels[{wrong[0]}] is {labels[wrong[0]]}, expected {limit} ({len(wrong)} such rows)"
        )
    return labels.astype(np.int32), names or tuple(f"class {i}" for i in range(n_classes))


def _ids(path: pathlib.Path, found: dict, n: int) -> tuple[str, ...]:
    if "ids" not in found:
        return tuple(f"{row:06d}" for row in range(n))
    ids = np.asarray(found["ids"])
    texts = [str(i) for i in ids] if ids.dtype.kind in "iu" else _strings(path, "ids", ids)
    first = {}
    for row, text in enumerate(texts):
        if text in first:
            raise ValueError(
                f"{path}: ids[{row}] is {text!r}, as ids[{first[text]}] is; ids must be distinct"
            )
        first[text] = row
    return tuple(texts)


def _strings(path: pathlib.Path, key: str, array: np.ndarray) -> list[str]:
    """The strings of an array [N]. Raises ValueError, naming the key, for anything else."""
    array = np.asarray(array)
    if array.dtype.kind not in "US" or array.ndim != 1:
        raise ValueError(f"{path}: {key} has dtype {array.dtype}, shape {array.shape}; expected [N] strings")
    try:
        return [text.decode() if isinstance(text, bytes) else text for text in array.tolist()]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: {key} holds {error.object!r}, which is not UTF-8") from None


def _few(names: Sequence) -> str:
    return ", ".join(map(repr, names[:10])) + (f", ... ({len(names)})" if len(names) > 10 else "")


def _identity(path: pathlib.Path) -> dict:
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.npy")) if path.is_dir() else [path]:
        stat = file.stat()
        times = f"{stat.st_mtime_ns}\0{stat.st_ctime_ns}"
        digest.update(f"{file.name}\0{stat.st_size}\0{times}\n".encode())
    return {"path": str(path), "content": digest.hexdigest()}
