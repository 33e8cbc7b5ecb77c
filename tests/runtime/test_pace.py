"""When a loop saves, and how long its dispatches are: by a clock of the tests' own."""

import numpy as np
import pytest

from jsae.runtime import pace


class Clock:
    """Seconds that pass only where a test lets them."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


COMPILING_S = 30.0


def loop(step_s, *, start=0, **settings):
    """(saves, lengths of the dispatches) of a loop whose steps take step_s(step) seconds.

    As training loops do, it reads what a dispatch gave while the next one runs, and at a save at once.
    """
    clock, pending = Clock(), None
    made = pace.Pace(4000, start=start, clock=clock, **settings)
    step, saves, lengths = start, [], []
    while step < 4000:
        n = made.length(step)
        seconds = n * step_s(step) + (0.0 if lengths else COMPILING_S)
        clock.now, step = clock.now + seconds, step + n
        lengths.append(n)
        if pending:
            made.measured(*pending)
        pending = n, seconds
        if made.saves(step):
            made.measured(*pending)
            pending = None
            made.saved(step)
            saves.append(step)
    return saves, lengths


def test_a_dispatch_takes_half_a_second_and_a_save_comes_after_the_seconds():
    kept = []
    saves, lengths = loop(lambda step: 0.05, save_every_s=60.0, keep=kept.append)
    assert lengths[:5] == [4] * 5 and set(lengths[5:-1]) == {10} and kept == [10]
    assert saves == [1200, 2010, 3210, 4000], "the second interval still counts compiling"


def test_where_steps_become_slower_the_next_interval_has_fewer():
    saves, _ = loop(lambda step: 0.05 if step < 1200 else 0.5, save_every_s=60.0, steps_per_dispatch=20)
    assert saves[:2] == [1200, 2000] and set(np.diff(saves[2:-1])) == {120}


def test_explicit_numbers_hold_and_ask_nobody():
    def of_writer(make):
        raise AssertionError("a collective that nothing needs")

    fixed = {"steps_per_dispatch": 7, "save_every_steps": 1000, "eval_every_steps": 500}
    saves, lengths = loop(lambda step: 0.001, of_writer=of_writer, **fixed)
    assert saves == [1000, 2000, 3000, 4000] and max(lengths) == 7 and sum(lengths) == 4000
    again, lengths = loop(lambda step: 0.001, of_writer=of_writer, start=1500, kept=300)
    assert again == [4000] and lengths == [300] * 8 + [100], "a resumed run takes the length that was kept"


def test_every_process_takes_the_writers_numbers():
    told = []
    slow = dict(save_every_s=60.0, of_writer=lambda make: told.append(make()) or [3, 500])
    saves, lengths = loop(lambda step: 7.0, **slow)
    assert saves == [500, *range(1001, 4000, 501), 4000] and set(lengths[5:-1]) == {3}
    assert told[0] == [1, 9], "what it would have said itself"


@pytest.mark.parametrize("most, step_s, length", [(2, 0.001, 2), (1000, 0.0, 1000), (50, 3.0, 1)])
def test_a_dispatch_has_a_step_and_no_more_than_its_source_gives(most, step_s, length):
    _, lengths = loop(lambda step: step_s, most_steps=most)
    assert lengths[6] == length and max(lengths) <= most
