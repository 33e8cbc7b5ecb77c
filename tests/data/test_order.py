"""The order of images: every image once an epoch, a function of (seed, step), split evenly over processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsae.data import order

SEEDS = st.integers(-(2**40), 2**63)


@given(SEEDS, st.integers(0, 50), st.integers(1, 300))
def test_permutation_holds_every_image_once(seed, epoch, n):
    assert sorted(order.epoch_permutation(seed, epoch, n)) == list(range(n))


@given(SEEDS, st.integers(1, 40), st.integers(1, 100), st.integers(0, 12))
def test_batches_are_slices_of_the_stream_of_epochs(seed, n, batch_size, step):
    stop = (step + 1) * batch_size
    stream = np.concatenate([order.epoch_permutation(seed, e, n) for e in range(stop // n + 1)])
    batch = order.batch_indices(seed, step, n, batch_size)
    np.testing.assert_array_equal(batch, stream[step * batch_size : stop])


@given(st.integers(1, 6), st.integers(1, 9))
def test_processes_share_a_batch_without_gap_or_overlap(count, share):
    batch = order.batch_indices(0, 3, 50, count * share)
    parts = [batch[order.process_slice(count * share, (i, count))] for i in range(count)]
    assert {len(part) for part in parts} == {share}
    np.testing.assert_array_equal(np.concatenate(parts), batch)


def test_seeds_and_epochs_give_different_orders():
    first = order.epoch_permutation(0, 0, 100)
    assert (first != order.epoch_permutation(1, 0, 100)).any()
    assert (first != order.epoch_permutation(0, 1, 100)).any()
    # a class-sorted list must come shuffled
    assert np.mean(np.abs(np.diff(first)) == 1) < 0.1


def test_golden_order():
    """Fails if NumPy or an edit changes the stream: then runs made before cannot be resumed exactly."""
    assert order.epoch_permutation(0, 0, 12).tolist() == [0, 2, 11, 9, 1, 8, 5, 4, 3, 10, 6, 7]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: order.batch_indices(0, 0, 0, 4), "n=0: an order needs at least one image"),
        (lambda: order.batch_indices(0, 0, 5, 0), "batch_size=0 must be >= 1"),
        (lambda: order.batch_indices(0, -1, 5, 2), "step=-1 must be >= 0"),
        (lambda: order.process_slice(10, (0, 3)), "batch_size=10 is not divisible by the 3 processes"),
        (lambda: order.process_slice(10, (2, 2)), "process=(2, 2): expected (index, count)"),
    ],
)
def test_wrong_numbers_are_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
