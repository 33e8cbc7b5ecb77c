"""Small drawings inside table cells and over pictures, as inline SVG.

Strips and bars use percentages for x, so that they stretch with their cell while their text keeps its size.
"""

import numpy as np
from markupsafe import Markup, escape

from jsae.report.axes import padded, tick_text, ticks
from jsae.report.formatting import is_known


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
        parts.append(f'<circle class="dot fill s0" cx="{at(estimate)}" cy="12" r="4.5"/>')
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
    return padded(min([0.0, *known]), max([0.0, *known]), 0.06)


def _percent_of(scale):
    low, high = scale
    return lambda value: f"{100.0 * (value - low) / ((high - low) or 1.0):.2f}%"


def class_bar(value: float, largest: float, null: tuple[float, float] | None) -> Markup:
    """A horizontal bar from zero with a bracket over the range of the null."""
    at = _percent_of((0.0, largest or 1.0))
    mark = ""
    if null:
        low, high = at(max(null[0], 0.0)), at(min(null[1], largest))
        mark = f'<line class="mark" x1="{low}" x2="{high}" y1="9" y2="9"/>'
        mark += "".join(f'<line class="mark" x1="{x}" x2="{x}" y1="3" y2="15"/>' for x in (low, high))
    return Markup(
        '<svg class="strip" width="100%" height="18" aria-hidden="true">'
        f'<rect class="bar fill s0" y="4" width="{at(max(value, 0.0))}" height="10" rx="2"/>{mark}</svg>'
    )


def cell_outline(cell: tuple[int, int], grid: tuple[int, int]) -> Markup:
    """The outline of one cell (row, column) of a grid (H, W), laid over a picture of any size."""
    (y, x), (height, width) = cell, grid
    at = f'x="{x}" y="{y}" width="1" height="1"'
    return Markup(
        f'<svg class="overlay" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="cell-under" {at}/><rect class="cell" {at}/></svg>'
    )


def heat_squares(values, largest: float) -> Markup:
    """A map [H, W] as translucent squares, where there is no script to paint one; full at `largest`."""
    squares = ""
    for (y, x), value in np.ndenumerate(np.asarray(values, float)):
        if value > 0.01 * largest:
            opacity = 0.75 * min(value / largest, 1.0)
            squares += f'<rect x="{x}" y="{y}" width="1" height="1" opacity="{opacity:.2f}"/>'
    return Markup(f'<g fill="#ff8c1a" shape-rendering="crispEdges">{squares}</g>')
