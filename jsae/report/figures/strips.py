"""Small drawings inside table cells and over pictures, as inline SVG.

Strips and bars use percentages for x, so that they stretch with their cell while their text keeps its size.
"""

from collections.abc import Callable

import numpy as np
from markupsafe import Markup

from jsae.report.figures.axes import padded, tick_text, ticks
from jsae.report.formatting import is_known


def forest(rows: list[dict], name: str, control: str | None = None) -> Markup:
    """Draw a forest plot: each row gets a "strip", what is returned are the tick labels above them.

    Args:
      rows: dicts with the number `name`, the ends of its interval and, if named, `control`.
      name, control: keys.
    """
    names = (name, f"{name}_low", f"{name}_high", *([control] if control else []))
    known = [float(row[key]) for row in rows for key in names if is_known(row[key])]
    scale = padded(min([0.0, *known]), max([0.0, *known]), 0.06)
    at = _percent_of(scale)
    for row in rows:
        row["strip"] = _strip(at, *(row[key] for key in names))
    texts = "".join(
        f'<text x="{at(value)}" y="12" text-anchor="middle">{tick_text(value)}</text>'
        for value in ticks(*scale, n=4)
    )
    return Markup(f'<svg class="strip" width="100%" height="16" aria-hidden="true">{texts}</svg>')


def _strip(
    at: Callable[[float], str], estimate: float, low: float, high: float, control: float | None = None
) -> Markup:
    """One row: interval and estimate (disc), control (hollow diamond), a line at zero.

    Its numbers must stand beside it: it is not read out.
    """
    parts = [f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="0" y2="24"/>']
    if is_known(low) and is_known(high):
        parts.append(f'<line class="line s0" x1="{at(low)}" x2="{at(high)}" y1="12" y2="12"/>')
    if is_known(control):
        diamond = '<path class="hollow s1" d="M0,-5 L5,0 L0,5 L-5,0 Z"/>'
        parts.append(f'<svg x="{at(control)}" y="12" overflow="visible">{diamond}</svg>')
    if is_known(estimate):
        parts.append(f'<circle class="fill s0" cx="{at(estimate)}" cy="12" r="4.5"/>')
    return Markup(f'<svg class="strip" width="100%" height="24" aria-hidden="true">{"".join(parts)}</svg>')


def _percent_of(scale: tuple[float, float]) -> Callable[[float], str]:
    low, high = scale
    return lambda value: f"{100.0 * (value - low) / ((high - low) or 1.0):.1f}%"


def class_bar(value: float, largest: float, null: tuple[float, float] | None) -> Markup:
    """A horizontal bar from zero with a frame over the range of the null."""
    low, high = (0.0, 0.0) if null is None else (max(null[0], 0.0), min(null[1], largest))
    share = 100.0 / (largest or 1.0)
    mark = (
        f'<rect class="mark" x="{low * share:.1f}%" y="2" width="{(high - low) * share:.1f}%" height="14"/>'
    )
    return Markup(
        '<svg class="strip" width="100%" height="18" aria-hidden="true">'
        f'<rect class="fill s0" y="4" width="{max(value, 0.0) * share:.1f}%" height="10"/>'
        f"{mark if null else ''}</svg>"
    )


def heat_squares(values: np.ndarray, largest: float) -> Markup:
    """A map [H, W] as translucent squares, where there is no script to paint one; full at `largest`."""
    squares = ""
    for (y, x), value in np.ndenumerate(np.asarray(values, float)):
        if value > 0.01 * largest:
            opacity = 0.75 * min(value / largest, 1.0)
            squares += f'<rect x="{x}" y="{y}" width="1" height="1" opacity="{opacity:.2f}"/>'
    return Markup(f'<g fill="#ff8c1a" shape-rendering="crispEdges">{squares}</g>')
