"""Which rows of a user's arrays are train, val and test."""

import pathlib
from collections.abc import Sequence

import numpy as np

from jsae.data import copies, drawn_splits
from jsae.data.drawn_splits import SPLITS
from jsae.runtime import logs


def given(path: pathlib.Path, texts: list[str]) -> list[str]:
    """The split of each row from what the key split says. Raises ValueError for what is no split's name."""
    named = drawn_splits.named(dict.fromkeys(texts))
    for row, text in enumerate(texts):
        if text not in named:
            raise ValueError(
                f"{path}: split[{row}] is {text!r}, expected one of {', '.join(SPLITS)} "
                f"({drawn_splits.WORDS})"
            )
    try:
        drawn_splits.check_names(named)
    except ValueError as error:
        raise ValueError(f"{path}: split: {error}") from None
    return [named[text] for text in texts]


def rows(
    path: pathlib.Path,
    splits: list[str],
    ids: Sequence[str],
    labels: np.ndarray,
    seed: int,
    shares: dict[str, float],
    alike: list[list[int]],
) -> dict[str, np.ndarray]:
    """Rows of each split, int64, rising.

    Args:
      path: for messages.
      splits: of each row; [] where none is given.
      ids, labels: of each row.
      seed: of what is drawn.
      shares: of the splits to be drawn from train, or from all rows where no split is given.
      alike: groups of rows with equal images.

    Raises ValueError for an image in two splits, and a split without a row.
    """
    across = copies.pairs_across(alike, splits) if splits else []
    if across:
        pairs = copies.listed((f"row {i} (id {ids[i]!r})", f"row {j} (id {ids[j]!r})") for i, j in across)
        raise ValueError(
            f"{path}: {len(across)} images lie in two splits, with equal pixels; what is learnt from one "
            f"would be tested on the other. Remove one of each:{pairs}"
        )
    if alike:
        pairs = copies.listed((f"row {group[0]}", f"row {group[1]}") for group in alike)
        logs.note(f"{path}: {len(alike)} images are there twice or more, with equal pixels:{pairs}")
    if shares:
        drawn_splits.check(shares)
        of = [i for i in range(len(ids)) if not splits or splits[i] == "train"]
        at = {i: position for position, i in enumerate(of)}
        drawn = drawn_splits.draw(
            [ids[i] for i in of],
            [int(labels[i]) for i in of],
            seed=seed,
            shares=shares,
            copies=[[at[i] for i in group] for group in alike if group[0] in at],
        )
        splits = splits or ["train"] * len(ids)
        for i, split in zip(of, drawn, strict=True):
            splits[i] = split
    found = {name: np.flatnonzero(np.array(splits) == name) for name in SPLITS}
    if shares:
        counts = ", ".join(f"{len(found[name])} {name}" for name in SPLITS)
        some = f"{' and '.join(shares)} drawn from train"
        what = "splits drawn from all rows" if len(of) == len(ids) else some
        logs.note(f"{path}: {what} with seed {seed}: {counts}")
    for name in SPLITS:
        if not len(found[name]):
            raise ValueError(f"{path}: split {name!r} has no row; there are {len(ids)} rows in all")
    return found
