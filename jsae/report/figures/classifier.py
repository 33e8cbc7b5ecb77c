"""Charts of what the classifier gets right: the confusion matrix and the reliability diagram."""

import collections
from collections.abc import Sequence

from markupsafe import Markup

from jsae.report.figures.axes import END, FLOOR, LEFT, TOP, Axes, box, disc, label, segment, svg
from jsae.report.formatting import number, percent

_SIDE = 300.0
_MARGIN = 30.0


def confusion(title: str, cells: Sequence[dict], names: Sequence[str]) -> Markup:
    """The matrix as squares, one row per true class, one column per predicted one; darker: a larger share.

    Args:
      title: of the figure.
      cells: rows of confusion.parquet; pairs without images may be left out.
      names: class names by index.
    """
    n = len(names)
    totals = collections.Counter()
    for cell in cells:
        totals[cell["label"]] += cell["n_images"]
    side = _SIDE / n
    parts = [f'<rect class="frame" x="{_MARGIN}" y="{_MARGIN}" width="{_SIDE}" height="{_SIDE}"/>']
    for cell in cells:
        row, column, count = cell["label"], cell["prediction"], cell["n_images"]
        text = f"{names[row]} taken for {names[column]}: {number(count)} of {number(totals[row])}"
        shade = f"fill {'s0' if row == column else 's1'}"
        shade += f'" opacity="{0.12 + 0.88 * count / totals[row]:.2f}'
        parts.append(box(shade, _MARGIN + column * side, _MARGIN + row * side, side, side, text))
    for i in range(0, n, max(1, -(-n // 10))):
        middle = _MARGIN + (i + 0.5) * side
        parts.append(label(_MARGIN - 5, middle + 4, str(i), "end"))
        parts.append(label(middle, _MARGIN - 6, str(i), "middle"))
    parts.append(label(_MARGIN, 10, "predicted class →   (rows: true class ↓)"))
    return svg(title, parts, height=_SIDE + _MARGIN + 4)


def reliability(title: str, bins: Sequence[dict]) -> Markup:
    """Accuracy against confidence with its intervals; on the dashed line a classifier is calibrated.

    Args:
      title: of the figure.
      bins: rows of calibration.parquet with images, with the interval of their accuracy.
    """
    axes = Axes((0.0, 1.0), (0.0, 1.0))
    parts = axes.frame("confidence, mean of the bin", "accuracy")
    parts.append(segment("zero d1", LEFT, END, FLOOR, TOP))
    most = max(row["n_images"] for row in bins)
    for row in bins:
        x = axes.x(row["confidence"])
        parts.append(segment("line s0", x, x, axes.y(row["accuracy_low"]), axes.y(row["accuracy_high"])))
        text = f"{number(row['n_images'])} images: confidence {percent(row['confidence'])}, "
        text += f"accuracy {percent(row['accuracy'])}"
        radius = 2.5 + 4.0 * (row["n_images"] / most) ** 0.5
        parts.append(disc("fill s0", x, axes.y(row["accuracy"]), radius, text))
    return svg(title, parts)
