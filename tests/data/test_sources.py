"""A new kind of data is one function (Request) -> Source and one line in KINDS."""

import io

import numpy as np
import pytest
from PIL import Image

from jsae.data import cache, kinds, pipeline
from jsae.data.source import Record, Request, Source

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0)}


def make_toy(request: Request) -> Source:
    """PNGs of one colour per class, with a mask of the upper half and a box around it."""
    side = request.image_size
    names = {split: [f"{split}-{i}" for i in range(n)] for split, n in request.sizes.items()}
    masks = np.zeros((side, side), np.uint16)
    masks[: side // 2] = 1 | 1 << cache.FOREGROUND_BIT

    def parse(name: str) -> Record:
        label = int(name.split("-")[1]) % len(COLOURS)
        file = io.BytesIO()
        Image.new("RGB", (2 * side, 2 * side), list(COLOURS.values())[label]).save(file, "PNG")
        return Record(name, file.getvalue(), (label,), box=(1, 1, 2 * side, side), masks=masks)

    return Source(
        identity=dict(request.sizes),
        class_names={"colour": tuple(COLOURS)},
        open=lambda: names,
        parse=parse,
        where=lambda id_: f"toy {id_}",
        part_names=("upper",),
        has_boxes=True,
    )


@pytest.fixture
def splits(monkeypatch, tmp_path):
    monkeypatch.setitem(kinds.KINDS, "toy", make_toy)
    return cache.load_splits(
        kind="toy", image_size=8, n_train=6, n_val=2, n_test=3, cache_dir=str(tmp_path / "cache")
    )


def test_a_source_from_outside_is_cached_split_and_batched(splits):
    train = splits["train"]
    assert {name: len(split.ids) for name, split in splits.items()} == {"train": 6, "val": 2, "test": 3}
    assert train.class_names == ("red", "green") and train.labels.tolist() == [0, 1] * 3
    expected = np.array(list(COLOURS.values()), np.uint8)[train.labels]
    np.testing.assert_array_equal(train.images, np.broadcast_to(expected[:, None, None], (6, 8, 8, 3)))
    assert train.part_names == ("upper",) and len(set(train.contents)) == 2
    foreground = train.masks[0] >> cache.FOREGROUND_BIT & 1
    np.testing.assert_array_equal(foreground[:, 0], [1] * 4 + [0] * 4)
    np.testing.assert_array_equal(splits["test"].boxes[0], [0, 0, 8, 4])
    batch = next(pipeline.train_batches(train, seed=0, batch_size=4))
    np.testing.assert_array_equal(batch["image"][:, 0, 0], expected[batch["index"]])


def test_an_unknown_kind_is_told_which_there_are(splits, tmp_path):
    with pytest.raises(ValueError, match=r"data.kind='tin' is unknown; valid: .*arrays, toy"):
        cache.load_splits(kind="tin", image_size=8, cache_dir=str(tmp_path))
