"""Charts of what the classifier gets right: the confusion matrix and the reliability diagram."""

import numpy as np
from markupsafe import Markup

from jsae.report.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Axes, box, label, segment, svg
from jsae.report.formatting import number, percent, wilson

_SIDE = 300.0
_MARGIN = 30.0


def confusion(title: str, cells: list[tuple[int, int, int]], names: list[str]) -> Markup:
    """The matrix as squares, a row a true class and a column a predicted one; darker is a larger share.

    Args:
      cells: (label, prediction, images); pairs without images may be left out.
      names: class names by index.
    """
    n = len(names)
    totals = np.zeros(n)
    for row, _, count in cells:
        totals[row] += count
    side = _SIDE / n
    parts = [f'<rect class="frame" x="{_MARGIN}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}"/>']
    for row, column, count in cells:
        share = count / totals[row]
        text = f"{names[row]} taken for {names[column]}: {number(count)} of {number(int(totals[row]))}"
        shade = f'fill {"s0" if row == column else "s1"}" opacity="{0.12 + 0.88 * share:.2f}'
        parts.append(box(shade, _MARGIN + column * side, _MARGIN + row * side, side, side, text))
    step = max(1, -(-n // 10))
    for i in range(0, n, step):
        middle = _MARGIN + (i + 0.5) * side + 4
        parts.append(label(_MARGIN - 5, middle, str(i), "end"))
        parts.append(label(middle - 4, _MARGIN - 6, str(i), "middle"))
    parts.append(label(_MARGIN, 10, "predicted class →   (rows: true class ↓)"))
    return svg(title, parts, height=_SIDE + _MARGIN + 4)


def reliability(title: str, bins: list[dict]) -> Markup:
    """Accuracy against confidence with 95% Wilson intervals; on the dashed line a classifier is calibrated.

    Args:
      bins: rows of calibration.parquet: n_images, confidence, accuracy.
    """
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    parts = axes.frame("confidence, mean of the bin", "accuracy")
    parts.append(segment("zero d1", LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, TOP))
    most = max((row["n_images"] for row in bins), default=0)
    for row in bins:
        if not row["n_images"]:
            continue
        x, y = axes.x(row["confidence"]), axes.y(row["accuracy"])
        low, high = wilson(row["accuracy"], row["n_images"])
        parts.append(segment("line s0", x, x, axes.y(low), axes.y(high)))
        radius = 2.5 + 4.0 * (row["n_images"] / most) ** 0.5
        text = f"{number(row['n_images'])} images: confidence {percent(row['confidence'])}, "
        text += f"accuracy {percent(row['accuracy'])}"
        at = f'cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}"'
        parts.append(f'<circle class="fill s0" {at}><title>{text}</title></circle>')
    return svg(title, parts)
