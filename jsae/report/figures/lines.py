"""Lines over steps or settings, and the learning curves: small multiples of a metrics.jsonl."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from jsae.report.figures import axes as drawing
from jsae.report.figures.axes import COLOURS, LEFT, WIDTH, Axes, disc, label, padded, segment, svg
from jsae.report.formatting import is_known

_MAX_POINTS = 300
_LOG_FROM = 30.0  # positive values that span more than this factor are drawn on a logarithmic axis
# Learning curves in this order: name, title, and the keys */name that each holds.
_CURVES = (
    ("loss", "loss", ("loss",)),
    ("cross-entropy", "cross-entropy", ("cross_entropy",)),
    ("accuracy", "accuracy", ("accuracy", "mean_per_class_accuracy")),
    ("ece", "expected calibration error", ("ece",)),
    ("fvu", "variance not explained, fvu", ("fvu",)),
    ("l0", "active features per vector, l0", ("l0",)),
    ("dead", "dead features, share of F", ("dead_fraction",)),
    ("learning-rate", "learning rate", ("learning_rate",)),
)


class Series(NamedTuple):
    """A line of a panel; `low` and `high` are its 95% intervals, empty for none."""

    name: str
    xs: Sequence
    ys: Sequence
    low: Sequence = ()
    high: Sequence = ()

    def known(self) -> list[int]:
        """At most about _MAX_POINTS indices of known values, the last one among them."""
        points = [i for i, y in enumerate(self.ys) if is_known(y)]
        stride = -(-len(points) // _MAX_POINTS) or 1
        return points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])


def line_panel(
    title: str,
    series: Sequence[Series],
    x_label: str = "step",
    y_label: str = "",
    *,
    dots: bool = False,
    share: bool = False,
    linear: bool = False,
    log_x: bool = False,
) -> Markup:
    """Lines, with `dots` a disc at every point; "" if nothing is known.

    The y axis is logarithmic where positive values span more than a factor 30, unless it shall be `linear`
    or is that of a `share`, which is drawn from 0 to 1. With `log_x` the x axis is logarithmic too, and every
    x above 0.
    """
    drawn = [(one, kept) for one in series if (kept := one.known())]
    if not drawn:
        return Markup("")
    xs = [float(one.xs[i]) for one, kept in drawn for i in kept]
    ys = [v[i] for one, kept in drawn for v in (one.ys, one.low, one.high) if len(v) for i in kept]
    ys = [float(y) for y in ys if is_known(y)]
    log_y = not share and not linear and min(ys) > 0 and max(ys) / min(ys) > _LOG_FROM
    spanned = [math.log10(y) for y in ys] if log_y else ys
    y_range = (0.0, 1.0) if share else padded(min(spanned), max(spanned))
    x_range = padded(math.log10(min(xs)), math.log10(max(xs))) if log_x else (min(xs), max(xs))
    axes = Axes(x_range, y_range, log_x=log_x, log_y=log_y)
    x_text = _whole_text if all(x == int(x) for x in xs) else drawing.tick_text
    y_label = ", ".join(filter(None, (y_label, "log scale" if log_y else "")))
    parts = axes.frame(x_label + (", log" if log_x else ""), y_label, x_text=x_text)
    legend, above = _legend([one.name for one, _ in drawn], 1 if y_label else 2)
    for i, (one, kept) in enumerate(drawn):
        colour = f"s{i % len(COLOURS)}"
        style = f"line {colour} d{i % 4}"
        parts.append(_band(axes, one, kept, colour))
        points = [(axes.x(one.xs[k]), axes.y(one.ys[k])) for k in kept]
        parts.append(f'<polyline class="{style}" points="{_text_of(points)}"/>')
        if dots or len(kept) <= 6:
            parts += [disc(f"fill {colour}", x, y, 3) for x, y in points]
        x, y = legend[i]
        parts += [segment(style, x, x + 18, y, y), label(x + 23, y + 4, one.name)]
    return svg(title, parts, above=above)


def _whole_text(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else ""


def _text_of(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _band(axes: Axes, one: Series, kept: list[int], colour: str) -> str:
    """The area between the ends of the intervals, "" without."""
    if not len(one.low):
        return ""
    ends = [k for k in kept if is_known(one.low[k]) and is_known(one.high[k])]
    edge = [(one.xs[k], one.high[k]) for k in ends] + [(one.xs[k], one.low[k]) for k in reversed(ends)]
    corners = _text_of([(axes.x(x), axes.y(y)) for x, y in edge])
    return f'<polygon class="fill band {colour}" points="{corners}"/>'


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


def learning_curves(rows: list[dict], *, val: str = "val") -> dict[str, tuple[str, Markup]]:
    """Name -> (title, figure) of each known quantity of a metrics.jsonl, a line per split.

    `val` is what eval/* was measured on.
    """
    drawn = {}
    keys = sorted({key for row in rows for key in row}, key=lambda key: (not key.startswith("train/"), key))
    for panel, title, names in _CURVES:
        series = []
        for key in keys:
            split, _, name = key.rpartition("/")
            if name in names:
                split = val if split == "eval" else split
                text = split if name == names[0] else f"{split}, mean per class"
                known = [row for row in rows if is_known(row.get(key))]
                series.append(Series(text, [row["step"] for row in known], [row[key] for row in known]))
        figure = line_panel(title, series, share=panel == "accuracy", linear=panel == "learning-rate")
        if figure:
            drawn[panel] = (title[0].upper() + title[1:], figure)
    return drawn
