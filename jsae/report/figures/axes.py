"""What every chart stands on: round ticks, the map from data to the drawing area, SVG elements as strings."""

import math
import re
from collections.abc import Callable, Iterable

from markupsafe import Markup, escape

from jsae.report.formatting import number

WIDTH, HEIGHT = 340.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 18.0, 34.0, 34.0
FLOOR, END = HEIGHT - BOTTOM, WIDTH - RIGHT  # of the drawing area
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # of an .svg file
_FILE_STYLE = (
    "text{font:11px sans-serif;fill:#333}.grid{stroke:#ddd}.zero{stroke:#888}.frame{fill:none;stroke:#ddd}"
    ".line{fill:none;stroke-width:2}.band{opacity:.18}.soft{fill-opacity:.45}"
    ".d1{stroke-dasharray:6 3}.d2{stroke-dasharray:2 3}.d3{stroke-dasharray:8 3 2 3}"
) + "".join(f".line.s{i}{{stroke:{c}}}.fill.s{i}{{fill:{c}}}" for i, c in enumerate(COLOURS))
_TITLE_PX = 20.0  # height of the line that an .svg file has above the figure


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
    """The range with a margin on both sides; a single value gets one of its size."""
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


def disc(style: str, x: float, y: float, radius: float, title: str = "") -> str:
    """A disc of CSS class `style` with an optional tooltip."""
    inside = f"<title>{escape(title)}</title>" if title else ""
    return f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}">{inside}</circle>'


def svg(title: str, parts: Iterable[str], *, height: float = HEIGHT, above: float = 0.0) -> Markup:
    """The figure, WIDTH wide, read out as its title; `above` is room for what is drawn at negative y."""
    view = f"0 {0 - above:g} {WIDTH:g} {height + above:g}"
    return Markup(
        f'<svg class="chart" viewBox="{view}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def standalone(figure: Markup) -> bytes:
    """A figure as an .svg file: with its title, and the colours that a style sheet gives it on a page."""
    [(view, title, body)] = re.findall(
        r'^<svg class="chart" viewBox="(.*?)" .*?><title>(.*?)</title>(.*)</svg>$', str(figure)
    )
    _, top, _, height = (float(n) for n in view.split())
    top, height = top - _TITLE_PX, height + _TITLE_PX
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH:g}" '
        f'viewBox="0 {top:g} {WIDTH:g} {height:g}"><style>{_FILE_STYLE}</style><title>{title}</title>'
        f'<rect y="{top:g}" width="{WIDTH:g}" height="{height:g}" fill="#fff"/>'
        f'<text x="4" y="{top + 14:g}" font-weight="bold">{title}</text>{body}</svg>\n'
    ).encode()


class Axes:
    """Maps data to the drawing area of a WIDTH x HEIGHT figure and draws its frame."""

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        *,
        log_x: bool = False,
        log_y: bool = False,
    ):
        """Ranges are (low, high); of an axis that is logarithmic, the logarithms to base 10 of these."""
        self.x_range, self.y_range, self.log_x, self.log_y = x_range, y_range, log_x, log_y

    def x(self, value: float) -> float:
        return LEFT + _share(value, self.x_range, self.log_x) * (END - LEFT)

    def y(self, value: float) -> float:
        return FLOOR - _share(value, self.y_range, self.log_y) * (FLOOR - TOP)

    def frame(self, x_label: str, y_label: str = "", x_text: Callable[[float], str] = tick_text) -> list[str]:
        """Grid lines, tick labels and the names of both axes."""
        parts = []
        for value in log_ticks(*self.y_range) if self.log_y else ticks(*self.y_range):
            y = self.y(value)
            parts.append(segment("grid", LEFT, END, y, y))
            parts.append(label(LEFT - 6, y + 4, tick_text(value), "end"))
        for value in log_ticks(*self.x_range) if self.log_x else ticks(*self.x_range):
            parts.append(label(self.x(value), FLOOR + 15, x_text(value), "middle"))
        parts.append(label(END, HEIGHT - 4, x_label, "end"))
        if y_label:
            parts.append(label(4, TOP - 10, y_label))
        return parts


def _share(value: float, span: tuple[float, float], is_log: bool) -> float:
    low, high = span
    return ((math.log10(value) if is_log else value) - low) / ((high - low) or 1.0)
