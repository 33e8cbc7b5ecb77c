"""The effect of a disturbed patch against how it is disturbed: charts and a table of sigma_sweep.parquet.

A blur is drawn against its sigma, a line a size of the patch; other fills, which have no strength, against
the size. Beside each stands the matched patch. Numbers are means over the features in the rows.
"""

from jsae.report import figures
from jsae.report.figures import Series
from jsae.report.formatting import is_known, number

_VALUES = ("delta_margin", "control_delta_margin", "effect_minus_control", "feature_fall")
_LINES = (("delta_margin", "feature's patch"), ("control_delta_margin", "matched patch"))


def fill_section(rows: list[dict], y_label: str = "mean Δ margin over features") -> dict | None:
    """Figures named blur-FILL, and a table of means; None where the rows have no such columns.

    Where there is one feature, its 95% intervals are drawn as bands; over features there is none.

    Returns:
      figures: by name; rows: dicts fill, sigma_px, size_px, n_features and the means of the columns known.
    """
    if not rows or "delta_margin" not in rows[0]:
        return None
    means = _means(rows)
    drawn = {}
    for fill in dict.fromkeys(row["fill"] for row in means):
        here = [row for row in means if row["fill"] == fill]
        by_sigma = any(row["sigma_px"] is not None for row in here)
        x, x_label = ("sigma_px", "sigma, px") if by_sigma else ("size_px", "side of the patch, px")
        series = []
        for size in sorted({row["size_px"] for row in here}, key=str) if by_sigma else [None]:
            line = [row for row in here if size is None or row["size_px"] == size]
            line = sorted((row for row in line if row[x] is not None), key=lambda row: row[x])
            for key, name in _LINES:
                known = [row for row in line if is_known(row[key])]
                label = name if size is None else f"{name}, {number(size)} px"
                ends = [[row["ends"][key][i] for row in known] for i in (0, 1)]
                series.append(Series(label, [row[x] for row in known], [row[key] for row in known], *ends))
        drawn[f"blur-{fill}"] = figures.line_panel(f"Fill: {fill}", series, x_label, y_label, dots=True)
    return {"figures": {name: figure for name, figure in drawn.items() if figure}, "rows": means}


def _means(rows: list[dict]) -> list[dict]:
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        sigma, size = row.get("sigma_px"), row.get("size_px")
        key = (str(row.get("fill") or "blur"), sigma if is_known(sigma) else None, size)
        groups.setdefault(key, []).append(row)
    found = []
    for (fill, sigma, size), here in groups.items():
        entry = {"fill": fill, "sigma_px": sigma, "size_px": size}
        entry["n_features"] = sum(is_known(row["delta_margin"]) for row in here)
        entry["ends"] = {
            name: tuple(here[0].get(f"{name}_{end}") if len(here) == 1 else None for end in ("low", "high"))
            for name in _VALUES
        }
        for name in _VALUES:
            known = [row[name] for row in here if is_known(row.get(name))]
            entry[name] = sum(known) / len(known) if known else None
        found.append(entry)
    return sorted(found, key=lambda e: (e["fill"], e["size_px"] or 0, e["sigma_px"] or 0))
