"""Plots of a sweep: variance left and accuracy recovered against l0, one line per variant.

sweep/fvu.svg, sweep/accuracy_recovered.svg
"""

import numpy as np
from etils import epath
from markupsafe import Markup

from jsae.report.figures.axes import standalone
from jsae.report.figures.lines import Series, line_panel
from jsae.runtime import artifacts, logs

PLOTS = {
    "fvu": "Variance not explained (fvu) on test",
    "accuracy_recovered": "Accuracy recovered on test",
}
_MEASURED = ("l0", "fvu", "pca_fvu", "dead_fraction", "accuracy_recovered", "ce_recovered", "seconds")
_NO_SETTING = {"digest", "seed", *_MEASURED}  # SAEs that differ in these alone are one point


def run(workdir: str | epath.Path) -> None:
    """Draw the plots of workdir/sweep/table.parquet beside it; nothing is drawn of unknown numbers."""
    folder = epath.Path(workdir) / "sweep"
    for name, figure in plots(artifacts.read_table(folder / "table.parquet").to_pylist()).items():
        artifacts.write_bytes(folder / f"{name}.svg", standalone(figure))
        logs.get_logger().info("sweep: %s", folder / f"{name}.svg")


def plots(rows: list[dict]) -> dict[str, Markup]:
    """Figures by the name of their y column, from the rows of a sweep's table.

    A point is the mean over the SAEs that differ in their seed alone. In the plot of fvu, PCA with as many
    components as features are active is one more line.
    """
    drawn = {}
    rows = [row for row in rows if row["l0"]]
    for name, title in PLOTS.items():
        known = [row for row in rows if row[name] is not None]
        series = [_line(known, variant, name) for variant in dict.fromkeys(row["variant"] for row in known)]
        if name == "fvu":
            pairs = sorted({(row["l0"], row["pca_fvu"]) for row in rows if row["pca_fvu"] is not None})
            series.append(Series("PCA", [x for x, _ in pairs], [y for _, y in pairs]))
        figure = line_panel(title, series, "l0", title, dots=True, log_x=True)
        if figure:
            drawn[name] = figure
    return drawn


def _line(rows: list[dict], variant: str, name: str) -> Series:
    """l0 and `name` of a variant's settings, means over seeds, by rising l0."""
    settings = {}
    for row in rows:
        if row["variant"] == variant:
            key = tuple(value for column, value in row.items() if column not in _NO_SETTING)
            settings.setdefault(key, []).append((row["l0"], row[name]))
    means = sorted(tuple(np.mean(points, 0)) for points in settings.values())
    return Series(variant, [float(x) for x, _ in means], [float(y) for _, y in means])
