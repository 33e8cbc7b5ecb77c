"""Plots of a sweep: variance left and accuracy recovered against l0, a line a variant.

sweep/fvu.svg, sweep/accuracy_recovered.svg
"""

import numpy as np
from etils import epath
from markupsafe import Markup

from jsae.report import figures
from jsae.runtime import artifacts, logs

PLOTS = {
    "fvu": "Variance not explained (fvu) on test",
    "accuracy_recovered": "Accuracy recovered on test",
}


def run(workdir) -> None:
    """Draw the plots of workdir/sweep/table.parquet beside it; nothing is drawn of unknown numbers."""
    folder = epath.Path(workdir) / "sweep"
    for name, figure in plots(artifacts.read_table(folder / "table.parquet").to_pylist()).items():
        artifacts.write_bytes(folder / f"{name}.svg", figures.standalone(figure).encode())
        logs.get_logger().info("sweep: %s", folder / f"{name}.svg")


def plots(rows: list[dict]) -> dict[str, Markup]:
    """Figures by the name of their y column, from the rows of a sweep's table.

    A point is the mean over the SAEs that differ in their seed alone. In the plot of fvu, PCA with as many
    components as features are active is one more line.
    """
    drawn = {}
    for name, title in PLOTS.items():
        series = [
            (variant, *_line(rows, variant, name)) for variant in dict.fromkeys(r["variant"] for r in rows)
        ]
        if name == "fvu":
            known = [row for row in rows if row["pca_fvu"] is not None and row["l0"]]
            pairs = sorted({(row["l0"], row["pca_fvu"]) for row in known})
            series.append(("PCA", [x for x, _ in pairs], [y for _, y in pairs]))
        series = [line for line in series if line[1]]
        figure = figures.line_panel(title, series, "l0", title, dots=True, log_x=True)
        if figure:
            drawn[name] = figure
    return drawn


def _line(rows, variant: str, name: str) -> tuple[list, list]:
    """l0 (above 0) and `name` of a variant's settings, means over seeds, by rising l0."""
    settings = {}
    for row in rows:
        if row["variant"] == variant and row[name] is not None and row["l0"]:
            names = ("n_features", "k", "l1", "l0_coefficient", "learning_rate", "others")
            key = tuple(row.get(name) for name in names)  # tables of before have no "others"
            settings.setdefault(key, []).append((row["l0"], row[name]))
    means = sorted(tuple(np.mean(points, 0)) for points in settings.values())
    return [float(x) for x, _ in means], [float(y) for _, y in means]
