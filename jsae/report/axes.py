"""What every chart stands on: round ticks, the map from data to the drawing area, SVG elements as strings."""

import math

from markupsafe import Markup, escape

from jsae.report.formatting import number

WIDTH, HEIGHT = 340.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 18.0, 34.0, 34.0


def ticks(low: float, high: float, n: int = 4) -> list[float]:
    """About `n` round numbers within [low, high]."""
    span = high - low
    if span <= 0:
        return [low]
    raw = span / n
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers within [10^low, 10^high]: 1, 2 and 5 times powers of ten, only the powers if many."""
    multiples = (1, 2, 5) if high - low < 2 else (1,)
    found = [m * 10.0**e for e in range(math.floor(low), math.ceil(high) + 1) for m in multiples]
    return [value for value in found if low <= math.log10(value) <= high]


def tick_text(value: float) -> str:
    """A tick label without needless zeros."""
    text = number(float(value))
    if "." in text and "×" not in text:
        text = text.rstrip("0").rstrip(".")
    return text.replace("1.00×10", "10")


def power_text(value: float) -> str:
    """The tick label of a logarithm to base 10."""
    return tick_text(10.0**value)


def padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    """The range with a margin on both sides; a single value gets one of its own size."""
    span = high - low or abs(high) or 1.0
    return low - share * span, high + share * span


def segment(style: str, x1: float, x2: float, y1: float, y2: float) -> str:
    """A straight line of CSS class `style`."""
    return f'<line class="{style}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def label(x: float, y: float, text: str, anchor: str = "start") -> str:
    """A text, escaped."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def box(style: str, x: float, y: float, width: float, height: float, title: str = "") -> str:
    """A rectangle of CSS class `style` with an optional tooltip."""
    inside = f"<title>{escape(title)}</title>" if title else ""
    at = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect class="{style}" {at}>{inside}</rect>'


def svg(
    title: str, parts: list[str], *, height: float = HEIGHT, above: float = 0.0, role: str = "img"
) -> Markup:
    """The figure, WIDTH wide, read out as its title; one with links in it is a "group".

    `above` is room for what is drawn at negative y.
    """
    view = f"0 {0 - above:g} {WIDTH:g} {height + above:g}"
    return Markup(
        f'<svg class="chart" viewBox="{view}" role="{role}" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


class Axes:
    """Maps data to the drawing area of a WIDTH x HEIGHT figure and draws its frame."""

    def __init__(self, x_range, y_range, *, log_x: bool = False, log_y: bool = False):
        """Ranges are (low, high); of an axis that is logarithmic, the logarithms to base 10 of these."""
        self.x_range, self.y_range, self.log_x, self.log_y = x_range, y_range, log_x, log_y

    def x(self, value) -> float:
        value = math.log10(value) if self.log_x else value
        low, high = self.x_range
        return LEFT + (value - low) / ((high - low) or 1.0) * (WIDTH - LEFT - RIGHT)

    def y(self, value) -> float:
        value = math.log10(value) if self.log_y else value
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / ((high - low) or 1.0) * (HEIGHT - TOP - BOTTOM)

    def frame(self, x_label: str, y_label: str = "", x_text=tick_text) -> list[str]:
        """Grid lines, tick labels and the names of both axes."""
        parts = []
        for value in log_ticks(*self.y_range) if self.log_y else ticks(*self.y_range):
            y = self.y(value)
            parts.append(segment("grid", LEFT, WIDTH - RIGHT, y, y))
            parts.append(label(LEFT - 6, y + 4, tick_text(value), "end"))
        for value in log_ticks(*self.x_range) if self.log_x else ticks(*self.x_range):
            parts.append(label(self.x(value), HEIGHT - BOTTOM + 15, x_text(value), "middle"))
        parts.append(label(WIDTH - RIGHT, HEIGHT - 4, x_label, "end"))
        if y_label:
            parts.append(label(4, TOP - 10, y_label))
        return parts
