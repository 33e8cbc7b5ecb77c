"""Train, val and test drawn from a set that came without splits: a pure function of seed and names.

Within each class the images are ranked by a hash of (seed, class, name); the first go to test, the next to
val, the rest to train. The order in which a disk lists files plays no part, and every class keeps its share.
"""

import hashlib

SPLITS = ("train", "val", "test")


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


def draw(names, classes, *, seed: int, shares: dict[str, float]) -> list[str]:
    """The split of each image, [N], "train" or a key of `shares`.

    Args:
      names: N distinct strings.
      classes: class of each image, [N], hashable.
      seed: config.data.seed; another one draws other splits.
      shares: {"test": share, "val": share}, or one of them.

    Of the n images of a class each drawn split gets round(n * share), at least 1 where n allows it; train
    keeps at least 1, so a class with one image is in train only.
    """
    by_class = {}
    for i, (name, label) in enumerate(zip(names, classes, strict=True)):
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
    return found


def _hash(seed: int, label, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{label}\0{name}".encode()).digest()
