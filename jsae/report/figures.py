"""Figures as inline SVG, made of strings: no plotting library, no script, sharp at any size, printable.

Colours are CSS classes (s0, s1, ... of the Okabe-Ito palette, one set for light and one for dark pages);
series differ in dash or shape as well as in colour. Strips and bars use percentages for x, so that they
stretch with their table cell while their text does not shrink. All text is escaped here.
"""

import math

import numpy as np
from markupsafe import Markup, escape

from jsae.report.formatting import is_known, number

_WIDTH, _HEIGHT = 340.0, 210.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 58.0, 18.0, 34.0, 34.0
_MAX_POINTS = 300
N_COLOURS = 7


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
    return text


def _padded(low: float, high: float, share: float = 0.05) -> tuple[float, float]:
    span = high - low or abs(high) or 1.0
    return low - share * span, high + share * span


def _line(style: str, x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


class _Axes:
    """Maps data to the drawing area of a 340 x 210 figure and draws its frame."""

    def __init__(self, x_range, y_range, *, log_y: bool = False):
        self.x_range, self.y_range, self.log_y = x_range, y_range, log_y

    def x(self, value) -> float:
        low, high = self.x_range
        return _LEFT + (value - low) / ((high - low) or 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value) -> float:
        value = math.log10(value) if self.log_y else value
        low, high = self.y_range
        return _HEIGHT - _BOTTOM - (value - low) / ((high - low) or 1.0) * (_HEIGHT - _TOP - _BOTTOM)

    def frame(self, x_label: str, y_label: str = "", x_text=tick_text) -> list[str]:
        parts = []
        for value in log_ticks(*self.y_range) if self.log_y else ticks(*self.y_range):
            y = self.y(value)
            parts.append(_line("grid", _LEFT, _WIDTH - _RIGHT, y, y))
            parts.append(_text(_LEFT - 6, y + 4, tick_text(value), "end"))
        for value in ticks(*self.x_range):
            parts.append(_text(self.x(value), _HEIGHT - _BOTTOM + 15, x_text(value), "middle"))
        parts.append(_text(_WIDTH - _RIGHT, _HEIGHT - 4, x_label, "end"))
        if y_label:
            parts.append(_text(4, _TOP - 10, y_label))
        return parts


def _figure(title: str, parts: list[str]) -> Markup:
    return Markup(
        f'<svg class="chart" viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def standalone(figure: Markup) -> str:
    """A figure as the text of an .svg file, with the colours that a page's style sheet would give it."""
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
    style = "text{font:11px sans-serif;fill:#333}.grid{stroke:#ddd}.zero{stroke:#888}"
    style += ".line{fill:none;stroke-width:2}"
    style += "".join(f".line.s{i}{{stroke:{c}}}.dot.s{i}{{fill:{c}}}" for i, c in enumerate(colours))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH:g}" height="{2 * _HEIGHT:g}"'
    body = str(figure).replace("<svg", head, 1)
    at = body.index(">") + 1
    return f'{body[:at]}<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>{body[at:]}\n'


def line_panel(
    title: str, series: list[tuple[str, list, list]], x_label: str = "step", *, dots: bool = False
) -> Markup:
    """Lines of (name, xs, ys), with `dots` a disc at every point.

    The y axis is logarithmic where positive values span more than a factor 30.
    """
    drawn = []
    for name, xs, ys in series:
        pairs = [(x, y) for x, y in zip(xs, ys, strict=True) if is_known(y)]
        stride = -(-len(pairs) // _MAX_POINTS) or 1
        if pairs:
            drawn.append((name, pairs[::stride] + ([pairs[-1]] if (len(pairs) - 1) % stride else [])))
    if not drawn:
        return Markup("")
    xs = [x for _, pairs in drawn for x, _ in pairs]
    ys = [float(y) for _, pairs in drawn for _, y in pairs]
    log_y = min(ys) > 0 and max(ys) / min(ys) > 30
    spanned = [math.log10(y) for y in ys] if log_y else ys
    axes = _Axes((min(xs), max(xs)), _padded(min(spanned), max(spanned)), log_y=log_y)
    parts = axes.frame(x_label + (", log y" if log_y else ""), x_text=lambda v: f"{v:,.0f}")
    x_legend, y_legend = _LEFT, 8 if len(drawn) > 4 else 14
    for i, (name, pairs) in enumerate(drawn):
        points = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in pairs)
        style = f"s{i % N_COLOURS} d{i % 4}"
        parts.append(f'<polyline class="line {style}" points="{points}"/>')
        for x, y in pairs if dots or len(pairs) == 1 else ():
            at = f'cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}"'
            parts.append(f'<circle class="dot s{i % N_COLOURS}" {at} r="3"/>')
        width = 36 + 6.2 * len(name)
        if x_legend + width > _WIDTH:
            x_legend, y_legend = _LEFT, y_legend + 13
        parts.append(_line(f"line {style}", x_legend, x_legend + 18, y_legend, y_legend))
        parts.append(_text(x_legend + 23, y_legend + 4, name))
        x_legend += width
    return _figure(title, parts)


def scatter(
    title: str, points: list[tuple[float, float, str, str | None]], x_label: str, y_label: str
) -> Markup:
    """Points (x, y, label, link or None) with lines through zero."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    axes = _Axes(_padded(min([*xs, 0.0]), max([*xs, 0.0])), _padded(min([*ys, 0.0]), max([*ys, 0.0])))
    parts = axes.frame(x_label, y_label)
    parts.append(_line("zero", axes.x(0), axes.x(0), _TOP, _HEIGHT - _BOTTOM))
    parts.append(_line("zero", _LEFT, _WIDTH - _RIGHT, axes.y(0), axes.y(0)))
    for x, y, label, link in points:
        dot = (
            f'<circle class="dot s0" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4">'
            f"<title>{escape(label)}</title></circle>"
        )
        parts.append(f'<a href="{escape(link)}" aria-label="{escape(label)}">{dot}</a>' if link else dot)
    return _figure(title, parts)


def density_histogram(title: str, densities, marked) -> Markup:
    """Counts of features by log10 density, the `marked` ones (bool) drawn inside the bars."""
    logs = np.log10(np.asarray(densities, float))
    marked = np.asarray(marked, bool)
    low, high = math.floor(logs.min() * 2) / 2, math.ceil(logs.max() * 2) / 2
    high = high if high > low else low + 0.5
    edges = np.linspace(low, high, round((high - low) * 4) + 1)
    counts, _ = np.histogram(logs, edges)
    inside, _ = np.histogram(logs[marked], edges)
    axes = _Axes((low, high), (0.0, 1.05 * float(counts.max())))
    parts = axes.frame("share of test vectors on which it fires", x_text=_power_text)
    floor = axes.y(0)
    for counted, style, inset in ((counts, "s0 soft", 1.0), (inside, "s1", 3.0)):
        for i, count in enumerate(counted):
            if count:
                x, width = axes.x(edges[i]) + inset, axes.x(edges[i + 1]) - axes.x(edges[i]) - 2 * inset
                parts.append(
                    f'<rect class="bar {style}" x="{x:.1f}" y="{axes.y(count):.1f}" width="{width:.1f}" '
                    f'height="{floor - axes.y(count):.1f}"><title>{count}</title></rect>'
                )
    for x, style, name in ((_LEFT, "s0 soft", "alive"), (_LEFT + 62, "s1", "class-selective")):
        parts.append(f'<rect class="bar {style}" x="{x:g}" y="8" width="12" height="12"/>')
        parts.append(_text(x + 17, 18, name))
    return _figure(title, parts)


def _power_text(value: float) -> str:
    return tick_text(10.0**value)


def strip(
    label: str, scale: tuple[float, float], estimate, low, high, controls: list[float | None]
) -> Markup:
    """One row of a forest plot: interval and estimate (disc), controls (hollow diamonds), a line at zero."""
    at = _percent_of(scale)
    parts = [f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="24"/>']
    if is_known(low) and is_known(high):
        parts.append(f'<line class="line s0" x1="{at(low)}" x2="{at(high)}" y1="12" y2="12"/>')
    for control in controls:
        if is_known(control):
            parts.append(
                f'<svg x="{at(control)}" y="12" overflow="visible">'
                '<path class="hollow s1" d="M0,-5 L5,0 L0,5 L-5,0 Z"/></svg>'
            )
    if is_known(estimate):
        parts.append(f'<circle class="dot s0" cx="{at(estimate)}" cy="12" r="4.5"/>')
    return Markup(
        f'<svg class="strip" width="100%" height="24" role="img" aria-label="{escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def strip_axis(scale: tuple[float, float]) -> Markup:
    """The tick labels above a column of strips."""
    at = _percent_of(scale)
    texts = "".join(
        f'<text x="{at(value)}" y="12" text-anchor="middle">{tick_text(value)}</text>'
        for value in ticks(*scale, n=4)
    )
    return Markup(f'<svg class="strip" width="100%" height="16" aria-hidden="true">{texts}</svg>')


def strip_scale(values) -> tuple[float, float]:
    """A common scale for strips that holds zero and every known value."""
    known = [float(v) for v in values if is_known(v)]
    return _padded(min([0.0, *known]), max([0.0, *known]), 0.06)


def _percent_of(scale):
    low, high = scale
    return lambda value: f"{100.0 * (value - low) / ((high - low) or 1.0):.2f}%"


def class_bar(value: float, largest: float, null: float | None) -> Markup:
    """A horizontal bar from zero with a dashed mark at the null level."""
    at = _percent_of((0.0, largest or 1.0))
    mark = f'<line class="mark" x1="{at(null)}" x2="{at(null)}" y1="0" y2="18"/>' if is_known(null) else ""
    return Markup(
        '<svg class="strip" width="100%" height="18" aria-hidden="true">'
        f'<rect class="bar s0" x="0" y="4" width="{at(max(value, 0.0))}" height="10" rx="2"/>{mark}</svg>'
    )


def heat_overlay(heat, cell: tuple[int, int], grid: tuple[int, int], largest: float) -> Markup:
    """A feature's map [H, W] as translucent squares over an image, the peak's cell outlined.

    Opacity is activation / `largest`, 0.6 at most. `heat` None draws the outline only.
    """
    height, width = grid
    parts = []
    if heat is not None:
        for y, x in zip(*np.nonzero(np.asarray(heat) > 0.01 * largest), strict=True):
            opacity = 0.6 * min(float(heat[y, x]) / largest, 1.0)
            parts.append(f'<rect x="{x}" y="{y}" width="1" height="1" opacity="{opacity:.2f}"/>')
    y, x = cell
    box = f'x="{x}" y="{y}" width="1" height="1"'
    return Markup(
        f'<svg class="overlay" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f'<g class="heat" shape-rendering="crispEdges">{"".join(parts)}</g>'
        f'<rect class="cell-under" {box}/><rect class="cell" {box}/></svg>'
    )
