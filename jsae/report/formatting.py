"""How numbers look in the report: three significant digits, a true minus sign, and a reason for every gap.

An unknown number is shown as an en dash whose title says why it is unknown.
"""

import math
from collections.abc import Mapping
from typing import Any, TypeGuard

from markupsafe import Markup, escape

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOT_RUN = "the stage that measures this has not run"
SMALLEST_P = "< 10⁻³⁰⁰"  # a float64 underflows at 10⁻³⁰⁸


def is_known(value: Any) -> TypeGuard[float]:
    """False for None, NaN and infinity."""
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def number(value: float) -> str:
    """A known number as plain text: 0.0123, 12.3, 1,230, −1.50, 1.23×10⁻⁶; integers in full."""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.2e}".split("e")
    exponent = int(exponent)
    if exponent < -4 or exponent > 6:
        text = f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPT)}"
    else:
        rounded = float(f"{mantissa}e{exponent}")
        text = f"{rounded:,.{max(2 - exponent, 0)}f}"
    return text.replace("-", "−")


def percent(value: float) -> str:
    """A share as text, 0.286 -> 28.6%."""
    return f"{number(100.0 * value)}%"


def shown(value: Any, reason: str = NOT_RUN) -> Markup:
    """`number(value)` or text as HTML; where it is unknown, a dash with the reason as its title."""
    if is_known(value):
        return escape(value if isinstance(value, str) else number(value))
    return Markup('<span class="null" title="{0}" aria-label="unknown: {0}">–</span>').format(reason)


def shown_p(value: float | None, reason: str = NOT_RUN) -> Markup:
    """A p or q value; one too small for a float is not zero."""
    return escape(SMALLEST_P) if is_known(value) and value == 0 else shown(value, reason)


def interval(low: float | None, high: float | None, reason: str = NOT_RUN) -> Markup:
    """[low, high] as HTML that does not break, or a dash with the reason."""
    if is_known(low) and is_known(high):
        return Markup('<span class="ci">[{}, {}]</span>').format(number(low), number(high))
    return shown(None, reason)


def with_interval(value: float | None, pair: tuple | list | None, reason: str = NOT_RUN) -> Markup:
    """A number and its 95% interval, pair = (low, high) or None; one dash if the number is unknown."""
    if not is_known(value):
        return shown(None, reason)
    low, high = pair or (None, None)
    return shown(value) + Markup(" ") + interval(low, high, "no interval: too few values")


def estimate(row: Mapping, name: str, reason: str = NOT_RUN) -> Markup:
    """The number NAME of a table's row with its interval NAME_low, NAME_high; a dash if it is unknown."""
    return with_interval(row[name], (row[f"{name}_low"], row[f"{name}_high"]), reason)
