"""What the numbers of `config.data` may be, known before anything is read."""

from collections.abc import Mapping
from typing import Any

from jsae.runtime import settings

RANGES = {
    "seed": settings.SEED,
    "image_size": settings.COUNT,
    "banner_px": settings.NONE_OR_MORE,
    "val_share": settings.BELOW_ONE,
    "test_share": settings.BELOW_ONE,
    "n_train": settings.NOT_NEGATIVE,
    "n_val": settings.NOT_NEGATIVE,
    "n_test": settings.NOT_NEGATIVE,
}
AUGMENTATION = {
    "pad_px": settings.NONE_OR_MORE,
    "min_scale": settings.PART,
    "trivial": settings.SHARE,
    "erase": settings.SHARE,
    "mix_alpha": settings.POSITIVE,
}


def check(data: Mapping[str, Any]) -> None:
    """Raise ValueError for a number of `config.data` that cannot be right; the message names it."""
    settings.check("config.data", data, RANGES)
    if data["kind"] == "synthetic_aircraft":
        settings.check("config.data", data, dict.fromkeys(("n_train", "n_val", "n_test"), settings.COUNT))
