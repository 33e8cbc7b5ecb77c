"""How numbers look in the report: three significant digits, a true minus sign, and a reason for every gap.

An unknown number is shown as an en dash whose title says why it is unknown.
"""

import math

from markupsafe import Markup, escape

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOT_RUN = "the stage that measures this has not run"


SMALLEST_P = "< 10⁻³⁰⁰"  # a float64 underflows at 10⁻³⁰⁸


def is_known(value) -> bool:
    """False for None, NaN and infinity."""
    return value is not None and (not isinstance(value, float) or math.isfinite(value))


def number(value, digits: int = 3) -> str:
    """A known number as plain text: 0.0123, 12.3, 1,230, −1.50, 1.23×10⁻⁶; integers in full."""
    if isinstance(value, int):
        return f"{value:,}".replace("-", "−")
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    exponent = int(exponent)
    if exponent < -4 or exponent > 6:
        text = f"{mantissa}×10{str(exponent).translate(_SUPERSCRIPT)}"
    else:
        rounded = float(f"{mantissa}e{exponent}")
        text = f"{rounded:,.{max(digits - 1 - exponent, 0)}f}"
    return text.replace("-", "−")


def percent(value: float) -> str:
    """A share as text, 0.286 -> 28.6%."""
    return f"{number(100.0 * value)}%"


def shown(value, reason: str = NOT_RUN) -> Markup:
    """`number(value)` or text as HTML; where it is unknown, a dash with the reason as its title."""
    if is_known(value):
        return escape(value if isinstance(value, str) else number(value))
    return Markup('<span class="null" title="{0}" aria-label="unknown: {0}">–</span>').format(reason)


def shown_p(value, reason: str = NOT_RUN) -> Markup:
    """A p or q value; one too small for a float is not zero."""
    return escape(SMALLEST_P) if is_known(value) and value == 0 else shown(value, reason)


def interval(low, high, reason: str = NOT_RUN) -> Markup:
    """[low, high] as HTML that does not break, or a dash with the reason."""
    if is_known(low) and is_known(high):
        return Markup('<span class="ci">[{}, {}]</span>').format(number(low), number(high))
    return shown(None, reason)


def with_interval(value, pair, reason: str = NOT_RUN) -> Markup:
    """A number and its 95% interval, pair = (low, high) or None; one dash if the number is unknown."""
    if not is_known(value):
        return shown(None, reason)
    low, high = pair or (None, None)
    return shown(value) + Markup(" ") + interval(low, high, "no interval: too few values")


def wilson(share, n: int | None) -> tuple[float, float] | None:
    """95% Wilson score interval of a share of `n` independent cases; None where either is unknown."""
    if not is_known(share) or not n:
        return None
    z = 1.959964
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(centre - half, 0.0), min(centre + half, 1.0)
