"""What a ConvNeXt is besides its weights: sizes, sites, strides and the epsilons of its layer norms."""

import dataclasses

SIZES = {
    "atto": {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)},
    "femto": {"depths": (2, 2, 6, 2), "dims": (48, 96, 192, 384)},
    "pico": {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512)},
    "nano": {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640)},
    "tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "small": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "base": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "large": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
}


@dataclasses.dataclass(frozen=True)
class Arch:
    """What a ConvNeXt is, besides its weights.

    Sites, in the order of the forward pass: `stem`, then for each stage `stageS.block0`, ..., `stageS` (the
    output of its last block). The last site, `stage4`, lies before pooling and the head's norm.

    Attributes:
      name: one of `SIZES`, or any other name for own depths and dims.
      depths: blocks of each of the four stages; a stage without blocks only downsamples.
      dims: channels of each stage.
      n_classes: L.
      stem_stride: side of the stem's patches in pixels; a cell of stage 4 is 8 times that.
      eps: of every layer norm but the head's.
      head_eps: of the head's layer norm.
    """

    name: str
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    n_classes: int
    stem_stride: int = 4
    eps: float = 1e-6
    head_eps: float = 1e-6

    def __post_init__(self):
        for field, least in (("depths", 0), ("dims", 1)):
            values = getattr(self, field)
            if len(values) != 4 or min(values) < least:
                raise ValueError(f"{field} of a ConvNeXt are four numbers of at least {least}, got {values}")
        if self.stem_stride < 1 or self.n_classes < 1:
            raise ValueError(
                f"stem_stride and n_classes are positive, got {self.stem_stride} and {self.n_classes}"
            )

    @property
    def sites(self) -> tuple[str, ...]:
        """All site names in the order of the forward pass."""
        return tuple(self._stages)

    def grid(self, site: str, image_hw: tuple[int, int]) -> tuple[int, int]:
        """(H, W) of the site's grid; every patch that is not full is left out."""
        height, width = image_hw
        side = 2 ** self._stage(site)
        return height // self.stem_stride // side, width // self.stem_stride // side

    def channels(self, site: str) -> int:
        """C of the site."""
        return self.dims[self._stage(site)]

    def stride_px(self, site: str) -> int:
        """Pixels of the input that one cell of the site's grid spans."""
        return self.stem_stride * 2 ** self._stage(site)

    def check_site(self, site: str) -> None:
        """Raise ValueError unless `site` is a site of this network."""
        if site not in self._stages:
            raise ValueError(f"there is no site {site!r}; the sites are {', '.join(self.sites)}")

    @property
    def _stages(self) -> dict[str, int]:
        """Site -> its stage from 0; the stem has the grid and the channels of the first."""
        stages = {"stem": 0}
        for s, depth in enumerate(self.depths):
            stages |= {f"stage{s + 1}.block{j}": s for j in range(depth)} | {f"stage{s + 1}": s}
        return stages

    def _stage(self, site: str) -> int:
        self.check_site(site)
        return self._stages[site]
