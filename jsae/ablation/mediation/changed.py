"""Images and what they are changed to: the foreground blurred or masked, or drawn as a twin.

    blurred     x + alpha * (blur(x) - x): a Gaussian blur of the area
    masked      x + alpha * (c - x): the area in one colour c, the mean of the train images
    rendered    of drawn data: the same drawing as a twin of its class, which has one part more or less

The area is the mask of the foreground, its box where there are boxes only, and the whole image where neither
is known. alpha is 1 on it and falls to 0 outside within about an eighth of a cell of the site's grid
(min(1, 2 * a Gaussian blur of the area)), so that the change has no edge of its own.
"""

import concurrent.futures
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jsae.data import augment
from jsae.data.blur import blur_matrix
from jsae.data.cache import FOREGROUND_BIT, Split
from jsae.data.twins import Twins
from jsae.runtime.pytrees import pytree

BEST_OTHER = -1  # a rival: the target's margin is to whichever other class is best
_FEATHER = 1 / 8  # sigma of the edge in cells


@dataclasses.dataclass(frozen=True, eq=False)
class ChangedImages:
    """Some images of a split with what is needed to change them.

    Attributes:
      split: of square images.
      numbers: int [n], rising; images with a label.
      twins: the renderer, None where nothing is drawn.
      seed: of which twin an image gets.
    """

    split: Split
    numbers: np.ndarray
    twins: Twins | None
    seed: int

    @property
    def names(self) -> tuple[str, ...]:
        """The inputs, in the order of all arrays [n, input, ...]."""
        return ("blurred", "masked", *(("rendered",) if self.twins else ()))

    @property
    def area(self) -> str:
        """What is blurred or masked: "mask", "box" or "image"."""
        if self.split.masks is not None:
            return "mask"
        return "image" if self.split.boxes is None else "box"

    @functools.cached_property
    def twin_labels(self) -> np.ndarray:
        """The class that each image is drawn as, int32 [n], one of its twins at random; -1 without any."""
        labels = np.full(len(self.numbers), -1, np.int32)
        pairs = self.twins.pairs if self.twins else ()
        rng = np.random.default_rng([self.seed, 0x7477696E])
        for i, label in enumerate(self.split.labels[self.numbers]):
            found = [pair.without + pair.with_part - label for pair in pairs if label in pair[1:]]
            labels[i] = rng.choice(found) if found else -1
        return labels

    @property
    def rivals(self) -> np.ndarray:
        """The class that the label's margin is to, int32 [n, input]: the twin, else BEST_OTHER."""
        best = np.full((len(self.numbers), 2), BEST_OTHER, np.int32)
        return np.concatenate([best, self.twin_labels[:, None]], 1) if self.twins else best

    @property
    def known(self) -> np.ndarray:
        """Whether an image has that input at all, bool [n, input]: a class without a twin is not drawn."""
        known = np.ones((len(self.numbers), len(self.names)), bool)
        known[:, 2:] = self.twin_labels[:, None] >= 0
        return known

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """A batch for `Change` and the targets: images uint8 [b, S, S, 3], area uint8 [b, S, S], labels int32
        [b], rivals int32 [b, input], and where drawn the twins, rendered uint8 [b, S, S, 3]."""
        numbers = self.numbers[rows]
        batch = {
            "images": self.split.images[numbers],
            "area": self._area(numbers),
            "labels": self.split.labels[numbers].astype(np.int32),
            "rivals": self.rivals[rows],
        }
        if self.twins:
            with concurrent.futures.ThreadPoolExecutor() as pool:
                batch["rendered"] = np.stack([*pool.map(self._drawn, rows)])
        return batch

    def _area(self, numbers) -> np.ndarray:
        split, side = self.split, self.split.images.shape[1]
        if split.masks is not None:
            return (split.masks[numbers] >> FOREGROUND_BIT & 1).astype(np.uint8)
        if split.boxes is None:
            return np.ones((len(numbers), side, side), np.uint8)
        x0, y0, x1, y1 = split.boxes[numbers].T[:, :, None]
        centres = np.arange(side)[None, :] + 0.5
        inside_x, inside_y = (x0 <= centres) & (centres <= x1), (y0 <= centres) & (centres <= y1)
        return (inside_y[:, :, None] & inside_x[:, None, :]).astype(np.uint8)

    def _drawn(self, row) -> np.ndarray:
        """The image as its twin; the image itself where it has none."""
        number, label = self.numbers[row], int(self.twin_labels[row])
        if label < 0:
            return np.asarray(self.split.images[number])
        assert self.twins is not None
        split, _, index = self.split.ids[number].rpartition("-")  # "train-00042", also in trainval
        return self.twins.draw(label, split, int(index)).image


def make_inputs(split: Split, twins: Twins | None, n_images: int, seed: int) -> ChangedImages:
    """At most n_images of a split's images with a label, drawn from the seed."""
    rng = np.random.default_rng([seed, 0x6D6564])
    labelled = rng.permutation(np.flatnonzero(split.labels >= 0))
    return ChangedImages(split, np.sort(labelled[:n_images]), twins, seed)


@pytree
class Change:
    """What the images become; traced.

    Attributes:
      blur, feather: Gaussian weights float32 [S, S], of the blur and of the area's edge.
      colour: normalised [3], of masked areas.
    """

    blur: np.ndarray
    feather: np.ndarray
    colour: np.ndarray

    def __call__(self, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(clean [B, S, S, 3], changed [input, B, S, S, 3], changed share of the image [input, B])."""
        clean, area = augment.normalise(batch["images"]), batch["area"].astype(jnp.float32)

        def smooth(weights, arrays):
            return jnp.einsum("sp,tq,bpq...->bst...", weights, weights, arrays, precision="float32")

        alpha = jnp.maximum(area, jnp.minimum(1, 2 * smooth(self.feather, area)))  # [B, S, S]
        goals = (smooth(self.blur, clean), self.colour[None, None, None, :])
        changed = [clean + alpha[..., None] * (goal - clean) for goal in goals]
        shares = [alpha.mean((1, 2))] * 2
        if "rendered" in batch:
            changed.append(augment.normalise(batch["rendered"]))
            shares.append((batch["rendered"] != batch["images"]).any(-1).mean((1, 2)))
        return clean, jnp.stack(changed), jnp.stack(shares)


def make_change(train: ChangedImages, sigma_px: float, stride_px: int) -> Change:
    """The change of images like those of train, whose mean is its colour; sigma_px is that of the blur."""
    images = train.split.images[train.numbers]
    colour = np.asarray(augment.normalise(images.mean((0, 1, 2), dtype=np.float64)), np.float32)
    side = images.shape[1]
    return Change(blur_matrix(side, sigma_px), blur_matrix(side, stride_px * _FEATHER), colour)
