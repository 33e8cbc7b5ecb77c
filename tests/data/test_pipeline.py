"""Batches through grain: the order's images, any start step, any process count, masked last batch."""

import itertools
import pickle
import threading
import time

import numpy as np
import pytest

from jsae.data import order, pipeline
from jsae.data.cache import Split

N = 11


@pytest.fixture
def split():
    values = np.arange(1, N + 1, dtype=np.uint8)  # not 0, which is the padding
    images = values[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    labels = np.arange(N, dtype=np.int32) * 3 + 1
    return Split("train", images, labels, tuple(map(str, range(N))), ("a",))


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


@pytest.mark.parametrize("batch_size", [1, 4, 11, 30])
def test_train_batches_follow_the_order_and_hold_their_images(split, batch_size):
    for step, batch in enumerate(take(pipeline.train_batches(split, seed=5, batch_size=batch_size), 6)):
        rows = order.batch_indices(5, step, N, batch_size)
        np.testing.assert_array_equal(batch["index"], rows)
        np.testing.assert_array_equal(batch["image"][:, 1, 0, 2], rows + 1)
        np.testing.assert_array_equal(batch["label"], 3 * rows + 1)
        assert [batch[k].dtype for k in ("image", "label", "index")] == [np.uint8, np.int32, np.int32]


def test_starting_at_a_step_equals_having_run_to_it(split):
    whole = take(pipeline.train_batches(split, seed=0, batch_size=4), 9)
    rest = take(pipeline.train_batches(split, seed=0, batch_size=4, start_step=5), 4)
    for left, right in zip(whole[5:], rest, strict=True):
        for name in left:
            np.testing.assert_array_equal(left[name], right[name])


def test_processes_together_see_the_global_batches(split):
    whole = take(pipeline.train_batches(split, seed=1, batch_size=6), 4)
    parts = [take(pipeline.train_batches(split, seed=1, batch_size=6, process=(i, 3)), 4) for i in range(3)]
    for step in range(4):
        joined = np.concatenate([part[step]["image"] for part in parts])
        np.testing.assert_array_equal(joined, whole[step]["image"])


@pytest.mark.parametrize("batch_size", [1, 4, 11, 16])
def test_eval_batches_see_every_image_once_in_order(split, batch_size):
    batches = list(pipeline.eval_batches(split, batch_size=batch_size))
    assert {len(batch["mask"]) for batch in batches} == {batch_size}
    mask = np.concatenate([batch["mask"] for batch in batches])
    assert mask.dtype == np.float32 and mask.sum() == N
    index = np.concatenate([batch["index"] for batch in batches])
    np.testing.assert_array_equal(index[mask > 0], np.arange(N))
    for name in ("image", "label", "index"):
        assert not np.concatenate([batch[name] for batch in batches])[mask == 0].any()


def test_eval_processes_get_equally_many_batches(split):
    parts = [list(pipeline.eval_batches(split, batch_size=8, process=(i, 2))) for i in range(2)]
    assert [len(part) for part in parts] == [2, 2]
    assert parts[1][1]["mask"].tolist() == [0, 0, 0, 0]


def test_closing_ends_the_threads(split):
    before = set(threading.enumerate())
    iterator = pipeline.train_batches(split, seed=0, batch_size=4)
    next(iterator)
    ours = set(threading.enumerate()) - before
    assert ours
    iterator.close()
    deadline_s = time.monotonic() + 10
    while any(thread.is_alive() for thread in ours) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not any(thread.is_alive() for thread in ours)


def test_sources_can_be_pickled(split):
    source = pipeline.TrainSource(split, 0, 4, 2, (0, 1))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[3]["image"], source[3]["image"])


def test_wrong_numbers_are_refused_at_once(split):
    with pytest.raises(ValueError, match="batch_size=5 is not divisible by the 2 processes"):
        pipeline.train_batches(split, seed=0, batch_size=5, process=(0, 2))
    with pytest.raises(ValueError, match="batch_size=5 is not divisible by the 2 processes"):
        pipeline.eval_batches(split, batch_size=5, process=(0, 2))
    with pytest.raises(ValueError, match="start_step=-1 must be >= 0"):
        pipeline.train_batches(split, seed=0, batch_size=5, start_step=-1)
