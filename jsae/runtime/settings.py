"""What the numbers of a config may be: each room that reads a section has a table of it, key -> `Range`.

A stage's `check_config` holds its sections against the tables before anything of a study runs, so that a 0 or
a negative number in the last stage does not wait for the first. What 0 means is said where it is allowed.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """Which numbers are valid: what an error message calls them, and the test; finite ones only."""

    text: str
    holds: Callable[[float], bool]


COUNT = Range("at least 1", lambda value: value >= 1)
NONE_OR_MORE = Range("at least 0; 0 is none", lambda value: value >= 0)
EVERY_STEPS = Range("at least 0; 0 is never while it trains", lambda value: value >= 0)
NOT_NEGATIVE = Range("at least 0", lambda value: value >= 0)
POSITIVE = Range("above 0", lambda value: value > 0)
SHARE = Range("in 0..1", lambda value: 0 <= value <= 1)
PART = Range("above 0 and at most 1", lambda value: 0 < value <= 1)
BELOW_ONE = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
SEED = Range("in 0..4294967295", lambda value: 0 <= value < 2**32)  # jax drops what is beyond, in silence
RUNTIME = {
    "data_axis": Range(
        "at least 1, or -1 for what model_axis leaves", lambda value: value == -1 or value >= 1
    ),
    "model_axis": COUNT,
    "stuck_after_s": Range("at least 0; 0 is never", lambda value: value >= 0),
}


def at_least(least: int, why: str) -> Range:
    """Numbers from `least` on; `why` is said in the message."""
    return Range(f"at least {least}, {why}", lambda value: value >= least)


def check(path: str, section: Mapping[str, Any], ranges: dict[str, Range]) -> None:
    """Raise ValueError naming the first key of a section whose number is out of its range.

    Args:
      path: what the section is called, "config.sae".
      section: name -> value; of a list each number is checked.
      ranges: name -> valid numbers.
    """
    for name, valid in ranges.items():
        if name not in section:  # a key that has a default
            continue
        value = section[name]
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"{path}.{name}={value!r} must be a number {valid.text}")
            if not (math.isfinite(number) and valid.holds(number)):
                raise ValueError(f"{path}.{name}={value!r} must be {valid.text}")


def check_choice(path: str, value: Any, valid: Iterable[Any]) -> None:
    """Raise ValueError unless the value of a key is among the valid ones, which it lists."""
    if value not in valid:
        raise ValueError(f"{path}={value!r} is unknown; valid are {', '.join(map(repr, valid))}")
