"""What networks of a stem and four stages have in common: fields, sites, strides, and how flax is called."""

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jsae.classifier.model import Edit


@dataclasses.dataclass(frozen=True)
class Staged(abc.ABC):
    """A network of a stem and four stages, each of which halves the grid of the one before it.

    Sites, in the order of the forward pass: `stem`, then for each stage `stageS.block0`, ..., `stageS` (the
    output of its last block). The last site, `stage4`, lies before pooling and the head.

    Attributes:
      name: of a published size, or any other name.
      depths: blocks of each stage.
      dims: channels of each stage.
      n_classes: L.
      stem_stride: pixels a cell of the stem spans; a cell of stage 4 spans 8 times that.
    """

    name: str
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    n_classes: int
    stem_stride: int = 4
    inits: ClassVar[tuple[str, ...]]

    @abc.abstractmethod
    def network(self, drop_path: float = 0.0, remat: bool = False) -> nn.Module:
        """The flax module (x, edits, start, examples) -> (logits, site -> activations)."""

    def forms(self, platform: str) -> dict[str, str]:
        """How layers that have several ways to be computed are computed on a platform, in words."""
        del platform
        return {}

    def check_sizes(self, title: str, least_depth: int) -> None:
        """Raise ValueError unless depths and dims are four numbers each and the others positive."""
        for field, least in (("depths", least_depth), ("dims", 1)):
            values = getattr(self, field)
            if len(values) != 4 or min(values) < least:
                raise ValueError(f"{field} of a {title} are four numbers of at least {least}, got {values}")
        if self.stem_stride < 1 or self.n_classes < 1:
            raise ValueError(
                f"stem_stride and n_classes are positive, got {self.stem_stride} and {self.n_classes}"
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """All site names in the order of the forward pass."""
        return tuple(self._stages)

    def channels(self, site: str) -> int:
        """C of the site."""
        return self.dims[self.stage(site)]

    def stride_px(self, site: str) -> int:
        """Pixels of the input from one cell of the site's grid to the next."""
        return self.stem_stride * 2 ** self.stage(site)

    def check_site(self, site: str) -> None:
        """Raise ValueError unless `site` is a site of this network."""
        if site not in self._stages:
            raise ValueError(f"there is no site {site!r}; the sites are {', '.join(self.sites)}")

    def stage(self, site: str) -> int:
        """The site's stage, from 0; the stem counts as the first, whose grid it has."""
        self.check_site(site)
        return self._stages[site]

    @property
    def _stages(self) -> dict[str, int]:
        stages = {"stem": 0}
        for s, depth in enumerate(self.depths):
            stages |= {f"stage{s + 1}.block{j}": s for j in range(depth)} | {f"stage{s + 1}": s}
        return stages

    def __call__(
        self,
        variables: Any,
        images: jax.Array,
        *,
        edits: Mapping[str, Edit] | None = None,
        start: str | None = None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """See `classifier.model.Model`."""
        network: Any = self.network()
        return network.apply({"params": variables}, images, edits, start)

    def train_logits(
        self,
        variables: Any,
        images: jax.Array,
        key: jax.Array,
        examples: jax.Array,
        *,
        drop_path: float,
        remat: bool = False,
    ) -> jax.Array:
        """See `classifier.model.Trainable`."""
        network = self.network(drop_path, remat)
        return network.apply({"params": variables}, images, examples=examples, rngs={"drop": key})[0]

    def shapes(self, key: jax.Array) -> Any:
        """The shapes of the variables."""
        side = 8 * self.stem_stride
        return jax.eval_shape(self.network().init, key, jnp.zeros((1, side, side, 3)))["params"]

    def check_kernels(self, title: str, kernels: str) -> None:
        """Raise ValueError unless `kernels` is one of `inits`."""
        if kernels not in self.inits:
            raise ValueError(f"a {title} has no {kernels!r} kernels; valid are {', '.join(self.inits)}")

    def depth_from_head(self, module: str) -> int:
        """0 for the head, 1 for the last block, ..., one more than the first block for the stem.

        Modules are named head..., stem..., stageS_blockJ; downsampleS... counts with the block behind it.
        """
        if module.startswith("head"):
            return 0
        if module.startswith("stem"):
            return sum(self.depths) + 1
        stage, _, block = module.removeprefix("stage").removeprefix("downsample").partition("_block")
        before = sum(self.depths[: int(stage[0]) - 1]) + int(block or 0)
        return max(sum(self.depths) - before, 1)
