"""Which image comes when: pure functions of (seed, step), for any number of workers and processes.

The stream is the concatenation of one permutation of 0..n-1 per epoch; batch `step` is its slice
[step * B, (step + 1) * B). So every image comes once an epoch, batches may straddle two epochs (or many,
if B > n), and a resumed run needs to know its step and nothing else. The permutation sorts raw Philox
words, whose stream NumPy guarantees across versions (that of Generator.permutation it does not).
"""

import functools

import numpy as np

_WORD = (1 << 64) - 1


@functools.lru_cache(maxsize=4)
def epoch_permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of epoch `epoch`: int64 [n], a permutation of 0..n-1, read-only."""
    if epoch < 0:
        raise ValueError(f"epoch={epoch} must be >= 0")
    words = np.random.Philox(key=np.array([seed & _WORD, epoch], np.uint64)).random_raw(n)
    permutation = np.argsort(words, kind="stable")
    permutation.flags.writeable = False  # it is shared by all callers
    return permutation


def batch_indices(seed: int, step: int, n: int, batch_size: int) -> np.ndarray:
    """The image indices of global batch `step`: int64 [batch_size], each in 0..n-1."""
    if n < 1:
        raise ValueError(f"n={n}: an order needs at least one image")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} must be >= 1")
    if step < 0:
        raise ValueError(f"step={step} must be >= 0")
    start, stop = step * batch_size, (step + 1) * batch_size
    parts = []
    for epoch in range(start // n, (stop - 1) // n + 1):
        first = epoch * n
        parts.append(epoch_permutation(seed, epoch, n)[max(start - first, 0) : stop - first])
    return np.concatenate(parts)


def process_slice(batch_size: int, process: tuple[int, int]) -> slice:
    """The rows of a global batch that process (index, count) takes: the index-th of count equal parts."""
    index, count = process
    if not 0 <= index < count:
        raise ValueError(f"process={process}: expected (index, count) with 0 <= index < count")
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} is not divisible by the {count} processes")
    share = batch_size // count
    return slice(index * share, (index + 1) * share)
