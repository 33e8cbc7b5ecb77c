"""Train, val and test: what their names are elsewhere, and how they are drawn from a set without splits.

Drawing is a pure function of seed and names. Within each class the images are ranked by a hash of
(seed, class, name); the first go to test, the next to val, the rest to train. The order in which a disk
lists files plays no part, every class keeps its share, and copies of an image go where the first one goes.
"""

import hashlib
import re
from collections.abc import Hashable, Iterable, Sequence

SPLITS = ("train", "val", "test")
_WORDS = {
    "train": r"train|training|trn",
    "val": r"val|valid|validate|validation|dev|development",
    "test": r"test|testing|tst|holdout",
    "eval": r"eval|evaluation",  # test; val where there is a test as well
}
_ENDS = r"[\s_.-]*(?:set|split|data|images|imgs)?"
WORDS = (
    "train, training, val, valid, validation, dev, test, testing, eval in any case, also with set or images"
)


def named(names: Iterable[str]) -> dict[str, str]:
    """{name: split} of those names that mean a split, such as "Train", "valid", "Test set", "testing"."""
    found = {}
    for name in names:
        word = name.strip().casefold()
        split = next((s for s, words in _WORDS.items() if re.fullmatch(f"(?:{words}){_ENDS}", word)), None)
        if split:
            found[name] = split
    evaluated = "val" if "test" in found.values() else "test"
    return {name: evaluated if split == "eval" else split for name, split in found.items()}


def check_names(found: dict[str, str]) -> None:
    """Raise ValueError if two names of `named` mean one split."""
    by_split = {}
    for name, split in found.items():
        by_split.setdefault(split, []).append(name)
    for split, names in by_split.items():
        if len(names) > 1:
            both = " and ".join(map(repr, names))
            raise ValueError(f"{both} both mean {split}; join them, or rename one (splits are {WORDS})")


def check(shares: dict[str, float]) -> None:
    """Raise ValueError unless the shares of the splits to be drawn are positive and leave some for train."""
    for split, share in shares.items():
        if not 0 < share < 1:
            raise ValueError(
                f"data.{split}_share={share} must lie between 0 and 1: the data set has no {split} split, "
                "so one is drawn"
            )
    if sum(shares.values()) >= 1:
        text = " and ".join(f"data.{split}_share={share}" for split, share in shares.items())
        raise ValueError(f"{text} leave nothing for train")


def draw(
    names: Sequence[str],
    classes: Sequence[Hashable],
    *,
    seed: int,
    shares: dict[str, float],
    copies: Iterable[Sequence[int]] = (),
) -> list[str]:
    """The split of each image, [N], "train" or a key of `shares`.

    Args:
      names: N distinct strings.
      classes: class of each image, [N], hashable.
      seed: config.data.seed; another one draws other splits.
      shares: {"test": share, "val": share}, or one of them.
      copies: groups of positions of one image (copies.py); all of a group go where its first goes.

    Of the n images of a class each drawn split gets round(n * share), at least 1 where n allows it; train
    keeps at least 1, so a class with one image is in train only.
    """
    by_class = {}
    first = {i: group[0] for group in copies for i in group[1:]}
    for i, (name, label) in enumerate(zip(names, classes, strict=True)):
        if i in first:
            continue
        by_class.setdefault(label, []).append((_hash(seed, label, name), i))
    found = ["train"] * len(names)
    for images in by_class.values():
        ranked = [i for _, i in sorted(images)]
        left = ranked
        for split in sorted(shares, key=SPLITS.index, reverse=True):
            n = min(max(1, round(len(ranked) * shares[split])), len(left) - 1)  # one stays in train
            for i in left[:n]:
                found[i] = split
            left = left[n:]
    return [found[first.get(i, i)] for i in range(len(found))]


def _hash(seed: int, label: Hashable, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{label}\0{name}".encode()).digest()
