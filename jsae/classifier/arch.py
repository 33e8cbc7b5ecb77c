"""What a ConvNeXt is besides its weights: sizes, sites, strides and the epsilons of its layer norms."""

import dataclasses

SIZES = {  # depths, dims
    "atto": ((2, 2, 6, 2), (40, 80, 160, 320)),
    "femto": ((2, 2, 6, 2), (48, 96, 192, 384)),
    "pico": ((2, 2, 6, 2), (64, 128, 256, 512)),
    "nano": ((2, 2, 8, 2), (80, 160, 320, 640)),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
}
FINAL_SITE = "stage4"


@dataclasses.dataclass(frozen=True)
class Arch:
    """What a ConvNeXt is, besides its weights.

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
        sites = ["stem"]
        for s, depth in enumerate(self.depths, start=1):
            sites += [f"stage{s}.block{j}" for j in range(depth)] + [f"stage{s}"]
        return tuple(sites)

    def stride(self, site: str) -> int:
        """Pixels of the input that one cell of the site's grid spans."""
        self.check_site(site)
        return self.stem_stride * (1 if site == "stem" else 2 ** (int(site[5]) - 1))

    def check_site(self, site: str) -> None:
        """Raise ValueError unless `site` is a site of this network."""
        if site not in self.sites:
            raise ValueError(f"there is no site {site!r}; the sites are {', '.join(self.sites)}")


def make_arch(
    name: str, n_classes: int, *, stem_stride: int = 4, depths=(), dims=(), eps: float = 1e-6
) -> Arch:
    """An `Arch` by size name, or with own depths and dims under any name.

    Raises ValueError for an unknown name without depths and dims.
    """
    if bool(depths) != bool(dims):
        raise ValueError(f"depths and dims go together, got depths={tuple(depths)} and dims={tuple(dims)}")
    if not depths:
        if name not in SIZES:
            raise ValueError(
                f"there is no ConvNeXt {name!r}; the sizes are {', '.join(SIZES)}, or give depths and dims"
            )
        depths, dims = SIZES[name]
    return Arch(name, tuple(depths), tuple(dims), n_classes, stem_stride, eps, eps)
