"""How often features fire, and how strongly one does."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from jsae.report.figures.axes import FLOOR, LEFT, Axes, box, label, power_text, svg
from jsae.report.formatting import number


def density_histogram(title: str, densities: Sequence[float], marked: Sequence[bool]) -> Markup:
    """Counts of features by log10 density, the `marked` ones drawn inside the bars."""
    logs = np.log10(np.asarray(densities, float))
    low, high = math.floor(logs.min() * 2) / 2, math.ceil(logs.max() * 2) / 2
    high = high if high > low else low + 0.5
    edges = np.linspace(low, high, round((high - low) * 4) + 1)
    counts, _ = np.histogram(logs, edges)
    inside, _ = np.histogram(logs[np.asarray(marked, bool)], edges)
    axes = Axes((low, high), (0.0, 1.05 * float(counts.max())))
    parts = axes.frame("share of test vectors on which it fires, log", "features", x_text=power_text)
    for counted, style, inset in ((counts, "fill s0 soft", 1.0), (inside, "fill s1", 3.0)):
        for i, count in enumerate(counted):
            if count:
                x, y = axes.x(edges[i]) + inset, axes.y(int(count))
                width = max(axes.x(edges[i + 1]) - inset - x, 0.5)
                parts.append(box(style, x, y, width, FLOOR - y, number(int(count))))
    for x, style, name in ((LEFT + 60, "fill s0 soft", "alive"), (LEFT + 122, "fill s1", "class-selective")):
        parts += [box(style, x, 8, 12, 12), label(x + 17, 18, name)]
    return svg(title, parts)


def value_histogram(title: str, counts: np.ndarray, largest: float) -> Markup:
    """How many vectors a feature fires on, by value, in equal bins from 0 to `largest`; log y."""
    counts = np.asarray(counts)
    if not counts.sum():
        return Markup("")
    top = math.log10(float(counts.max()))
    axes = Axes((0.0, float(largest)), (-0.25, max(top, 0.5) * 1.05), log_y=True)
    parts = axes.frame("activation, raw units", "test vectors, log")
    edges = np.linspace(0.0, largest, len(counts) + 1)
    path = ""  # one path instead of a rectangle per bin: there is a histogram on every page
    for (low, high), count in zip(itertools.pairwise(edges), counts, strict=True):
        if count:
            left, right = axes.x(low) + 0.8, axes.x(high) - 0.8
            path += f"M{left:.1f},{FLOOR:g}V{axes.y(int(count)):.1f}H{right:.1f}V{FLOOR:g}"
    parts.append(f'<path class="fill s0" d="{path}"/>')
    return svg(title, parts)
