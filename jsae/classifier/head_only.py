"""The head of a network we never saw, as a `Model` whose one site is "arrays": logits of bare activations.

`config.activations.head` is an .npz file with

    kernel, offset                     float [C, L] and [L]: logits = pooled @ kernel + offset
    pool                               the string "mean": pooled is the mean over the grid
    norm_scale, norm_bias, norm_eps    optional, [C], [C] and a number: a layer norm of the pooled vector

The activations stage copies it beside the stored activations, so that a study holds all it needs. The
ablation stage then runs as for a classifier of ours, but for what needs images.
"""

import dataclasses
import io
import os
import zipfile
from collections.abc import Mapping

import jax
import numpy as np

from jsae.classifier.model import Edit, Head, HeadNorm, Params, head_logits
from jsae.runtime import artifacts, paths, stages

FILE = "head.npz"
_NORM = ("norm_scale", "norm_bias", "norm_eps")
_KEYS = ("pool", "kernel", "offset", *_NORM)


@dataclasses.dataclass(frozen=True)
class HeadOnly:
    """A head without a network before it; its variables are a `Head`.

    Attributes:
      n_channels: C.
      n_classes: L.
    """

    n_channels: int
    n_classes: int
    name: str = "head"

    @property
    def sites(self) -> tuple[str, ...]:
        """The one site: the activations that were extracted elsewhere."""
        return (stages.IMPORTED,)

    def grid(self, site: str, image_hw: tuple[int, int]) -> tuple[int, int]:
        """Raise ValueError: no image is known."""
        raise ValueError(_no_images(f"the grid of {site!r} for images of {image_hw}"))

    def channels(self, site: str) -> int:
        """C."""
        self.check_site(site)
        return self.n_channels

    def stride_px(self, site: str) -> int:
        """Raise ValueError: no image is known."""
        raise ValueError(_no_images(f"the stride of {site!r}"))

    def check_site(self, site: str) -> None:
        """Raise ValueError unless `site` is "arrays"."""
        if site not in self.sites:
            raise ValueError(
                f"there is no site {site!r}; bare activations have the one site {self.sites[0]!r}"
            )

    def __call__(
        self,
        variables: Head,
        images: jax.Array,
        *,
        edits: Mapping[str, Edit] | None = None,
        start: str | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Logits of activations [B, H, W, C]. Raises ValueError without `start`."""
        if start is None:
            raise ValueError(_no_images(f"give activations and start={self.sites[0]!r}; what takes images"))
        edit = (edits or {}).get(start)
        acts = images if edit is None else edit(images)
        return head_logits(variables, acts.mean((1, 2))), {start: acts}

    def linear_head(self, variables: Head) -> Head:
        """The head itself."""
        return variables


def _no_images(what: str) -> str:
    return f"this study is of bare activations with a head, and no image is known: {what} does not exist here"


def parse(data: bytes, where: str | os.PathLike, n_channels: int, class_names: tuple[str, ...]) -> Head:
    """The head in the bytes of an .npz file, float32 numpy arrays; `where` is for messages.

    Args:
      n_channels: C of the activations.
      class_names: of their labels.

    Raises ValueError that names the key and what is expected: a key is missing or unknown, an array has
    another shape or dtype or a value that is not finite.
    """
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{where} is no .npz file of plain arrays, or it is damaged ({error})") from error
    unknown = [name for name in found if name not in _KEYS]
    has_norm = any(name in found for name in _NORM)
    missing = [name for name in (_KEYS if has_norm else _KEYS[:3]) if name not in found]
    if unknown or missing:
        lists = (("missing", missing), ("unknown", unknown))
        said = "; ".join(f"{what} keys {', '.join(names)}" for what, names in lists if names)
        raise ValueError(
            f"{where}: {said}; a head has pool, kernel, offset and, all or none, {', '.join(_NORM)}"
        )
    if str(found["pool"]) != "mean":
        raise ValueError(f"{where}: pool is {str(found['pool'])!r}, expected 'mean', the mean over the grid")
    n_classes = len(class_names)
    shapes = {"kernel": (n_channels, n_classes), "offset": (n_classes,)}
    shapes |= {"norm_scale": (n_channels,), "norm_bias": (n_channels,), "norm_eps": ()} if has_norm else {}
    arrays = {}
    for key, shape in shapes.items():
        array = found[key]
        if array.shape != shape or array.dtype.kind not in "fiu":
            raise ValueError(
                f"{where}: {key} has shape {list(array.shape)} and dtype {array.dtype}, expected numbers "
                f"{list(shape)}, with C={n_channels} channels and L={n_classes} classes of the activations"
            )
        arrays[key] = array.astype(np.float32)
        if not np.isfinite(arrays[key]).all():
            raise ValueError(f"{where}: {key} holds a number that is not finite in float32")
    norm = None
    if has_norm:
        norm = HeadNorm(arrays["norm_scale"], arrays["norm_bias"], float(arrays["norm_eps"]))
    return Head(arrays["kernel"], arrays["offset"], norm)


def load(folder: str | os.PathLike) -> Params:
    """The head of a study of bare activations, on the default device.

    Args:
      folder: of the stage activations, workdir/activations.

    Raises FileNotFoundError if there is none.
    """
    folder = paths.resolve(folder)
    manifest = artifacts.read_json(folder / "test" / "manifest.json")
    n_channels, class_names = manifest["n_channels"], tuple(manifest["class_names"])
    head = parse(artifacts.read_bytes(folder / FILE), folder / FILE, n_channels, class_names)
    return Params(jax.tree.map(jax.numpy.asarray, head), HeadOnly(n_channels, len(class_names)))
