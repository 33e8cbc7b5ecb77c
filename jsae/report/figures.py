"""Charts as inline SVG, made of strings: no plotting library, no script, sharp at any size, printable.

Colours are CSS classes (s0, s1, ... of the Okabe-Ito palette, one set for light and one for dark pages);
series differ in dash or shape as well as in colour. All text is escaped here.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup, escape

from jsae.report import axes as drawing
from jsae.report.axes import BOTTOM as _BOTTOM
from jsae.report.axes import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes, box, label, padded, segment, svg
from jsae.report.formatting import is_known, number

_MAX_POINTS = 300
_TITLE = 20.0  # height of the line that an .svg file has above the figure
N_COLOURS = 7


class Series(NamedTuple):
    """A line of a panel; `low` and `high` are its 95% intervals, empty for none."""

    name: str
    xs: Sequence
    ys: Sequence
    low: Sequence = ()
    high: Sequence = ()


def standalone(figure: Markup) -> str:
    """A figure as the text of an .svg file: with its title, and the colours that a style sheet gives it."""
    colours = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
    style = "text{font:11px sans-serif;fill:#333}.grid{stroke:#ddd}.zero{stroke:#888}"
    style += ".frame{fill:none;stroke:#ddd}"
    style += ".line{fill:none;stroke-width:2}.band{opacity:.18}.soft{fill-opacity:.45}"
    style += ".d1{stroke-dasharray:6 3}.d2{stroke-dasharray:2 3}.d3{stroke-dasharray:8 3 2 3}"
    style += "".join(f".line.s{i}{{stroke:{c}}}.fill.s{i}{{fill:{c}}}" for i, c in enumerate(colours))
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * WIDTH:g}"'
    body = str(figure)
    title = re.search("<title>(.*?)</title>", body).group(1)
    top, height = (float(n) for n in re.search(r'viewBox="0 (\S+) \S+ (\S+)"', body).groups())
    top, height = top - _TITLE, height + _TITLE
    body = re.sub(r'viewBox="[^"]*"', f'viewBox="0 {top:g} {WIDTH:g} {height:g}"', body, count=1)
    body = body.replace("<svg", head, 1)
    at = body.index(">") + 1
    paper = f'<rect y="{top:g}" width="{WIDTH:g}" height="{height:g}" fill="#fff"/>'
    name = f'<text x="4" y="{top + 14:g}" font-weight="bold">{title}</text>'
    return f"{body[:at]}<style>{style}</style>{paper}{name}{body[at:]}\n"


def line_panel(
    title: str,
    series: Sequence,
    x_label: str = "step",
    y_label: str = "",
    *,
    dots: bool = False,
    share: bool = False,
    linear: bool = False,
    log_x: bool = False,
) -> Markup:
    """Lines of (name, xs, ys) or `Series`, with `dots` a disc at every point; "" if nothing is known.

    The y axis is logarithmic where positive values span more than a factor 30, unless it shall be `linear`
    or is that of a `share`, which is drawn from 0 to 1. With `log_x` the x axis is logarithmic too, and every
    x above 0.
    """
    drawn = []
    for one in (Series(*s) for s in series):
        points = [i for i, y in enumerate(one.ys) if is_known(y)]
        stride = -(-len(points) // _MAX_POINTS) or 1
        if points:
            kept = points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])
            drawn.append((one, kept))
    if not drawn:
        return Markup("")
    xs = [float(one.xs[i]) for one, kept in drawn for i in kept]
    ys = [v[i] for one, kept in drawn for v in (one.ys, one.low, one.high) if len(v) for i in kept]
    ys = [float(y) for y in ys if is_known(y)]
    log_y = not share and not linear and min(ys) > 0 and max(ys) / min(ys) > 30
    spanned = [math.log10(y) for y in ys] if log_y else ys
    y_range = (0.0, 1.0) if share else padded(min(spanned), max(spanned))
    x_range = padded(math.log10(min(xs)), math.log10(max(xs))) if log_x else (min(xs), max(xs))
    axes = Axes(x_range, y_range, log_x=log_x, log_y=log_y)
    whole = all(x == int(x) for x in xs)
    x_text = (lambda v: f"{v:,.0f}" if v == int(v) else "") if whole else drawing.tick_text
    x_label, y_label = x_label + ", log" * log_x, ", ".join(filter(None, (y_label, "log scale" * log_y)))
    parts = axes.frame(x_label, y_label, x_text=x_text)
    legend, above = _legend([one.name for one, _ in drawn], 1 if y_label else 2)
    for i, (one, kept) in enumerate(drawn):
        if len(one.low):
            ends = [k for k in kept if is_known(one.low[k]) and is_known(one.high[k])]
            edge = [(one.xs[k], one.high[k]) for k in ends] + [(one.xs[k], one.low[k]) for k in ends[::-1]]
            corners = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in edge)
            parts.append(f'<polygon class="fill band s{i % N_COLOURS}" points="{corners}"/>')
        points = " ".join(f"{axes.x(one.xs[k]):.1f},{axes.y(one.ys[k]):.1f}" for k in kept)
        style = f"s{i % N_COLOURS} d{i % 4}"
        parts.append(f'<polyline class="line {style}" points="{points}"/>')
        for k in kept if dots or len(kept) <= 6 else ():
            at = f'cx="{axes.x(one.xs[k]):.1f}" cy="{axes.y(one.ys[k]):.1f}"'
            parts.append(f'<circle class="fill s{i % N_COLOURS}" {at} r="3"/>')
        x, y = legend[i]
        parts += [segment(f"line {style}", x, x + 18, y, y), label(x + 23, y + 4, one.name)]
    return svg(title, parts, above=above)


def _legend(names: list[str], n_free: int) -> tuple[list[tuple[float, float]], float]:
    """Where each name of a legend begins, and the room needed above where it has more than `n_free` lines."""
    places, x, line = [], LEFT, 0
    for name in names:
        width = 36 + 6.2 * len(name)
        if x + width > WIDTH and x > LEFT:
            x, line = LEFT, line + 1
        places.append((x, line))
        x += width
    above = 13.0 * max(line + 1 - n_free, 0)
    return [(x, 8 + 13 * line - above) for x, line in places], above


def scatter(
    title: str,
    points: list[tuple[float, float, str, str | None]],
    x_label: str,
    y_label: str,
    *,
    diagonal: bool = False,
) -> Markup:
    """Points (x, y, label, link or None) with lines through zero, and x = y if asked for."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    axes = Axes(padded(min([*xs, 0.0]), max([*xs, 0.0])), padded(min([*ys, 0.0]), max([*ys, 0.0])))
    parts = axes.frame(x_label, y_label)
    parts.append(segment("zero", axes.x(0), axes.x(0), TOP, HEIGHT - _BOTTOM))
    parts.append(segment("zero", LEFT, WIDTH - RIGHT, axes.y(0), axes.y(0)))
    if diagonal:
        low = max(axes.x_range[0], axes.y_range[0])
        high = min(axes.x_range[1], axes.y_range[1])
        parts.append(segment("grid", axes.x(low), axes.x(high), axes.y(low), axes.y(high)))
    for x, y, text, link in points:
        dot = (
            f'<circle class="fill s0" cx="{axes.x(x):.1f}" cy="{axes.y(y):.1f}" r="4">'
            f"<title>{escape(text)}</title></circle>"
        )
        parts.append(f'<a href="{escape(link)}" aria-label="{escape(text)}">{dot}</a>' if link else dot)
    return svg(title, parts, role="group" if any(p[3] for p in points) else "img")


def density_histogram(title: str, densities, marked) -> Markup:
    """Counts of features by log10 density, the `marked` ones (bool) drawn inside the bars."""
    logs = np.log10(np.asarray(densities, float))
    marked = np.asarray(marked, bool)
    low, high = math.floor(logs.min() * 2) / 2, math.ceil(logs.max() * 2) / 2
    high = high if high > low else low + 0.5
    edges = np.linspace(low, high, round((high - low) * 4) + 1)
    counts, _ = np.histogram(logs, edges)
    inside, _ = np.histogram(logs[marked], edges)
    axes = Axes((low, high), (0.0, 1.05 * float(counts.max())))
    parts = axes.frame("share of test vectors on which it fires, log", "features", x_text=drawing.power_text)
    for counted, style, inset in ((counts, "fill s0 soft", 1.0), (inside, "fill s1", 3.0)):
        parts += _bars(axes, edges, counted, style, inset)
    for x, style, name in ((LEFT + 60, "fill s0 soft", "alive"), (LEFT + 122, "fill s1", "class-selective")):
        parts.append(box(style, x, 8, 12, 12))
        parts.append(label(x + 17, 18, name))
    return svg(title, parts)


def value_histogram(title: str, counts, largest: float) -> Markup:
    """How many vectors a feature fires on, by value, in equal bins from 0 to `largest`; log y."""
    counts = np.asarray(counts)
    if not counts.sum():
        return Markup("")
    top = math.log10(float(counts.max()))
    axes = Axes((0.0, float(largest)), (-0.25, max(top, 0.5) * 1.05), log_y=True)
    parts = axes.frame("activation, raw units", "test vectors, log")
    floor, edges = HEIGHT - _BOTTOM, np.linspace(0.0, largest, len(counts) + 1)
    path = ""  # one path instead of a rectangle each: there is a histogram on every page
    for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True):
        if count:
            left, right = axes.x(low) + 0.8, axes.x(high) - 0.8
            path += f"M{left:.1f},{floor:g}V{axes.y(int(count)):.1f}H{right:.1f}V{floor:g}"
    parts.append(f'<path class="fill s0" d="{path}"/>')
    return svg(title, parts)


def _bars(axes: Axes, edges, counts, style: str, inset: float) -> list[str]:
    parts, floor = [], HEIGHT - _BOTTOM
    for i, count in enumerate(counts):
        if count:
            x, width = axes.x(edges[i]) + inset, axes.x(edges[i + 1]) - axes.x(edges[i]) - 2 * inset
            y = axes.y(int(count))
            parts.append(box(style, x, y, max(width, 0.5), floor - y, number(int(count))))
    return parts
