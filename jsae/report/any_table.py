"""A table of any columns as rows of cells, for the short tables that are shown as they are.

A number NAME with NAME_low and NAME_high (or ci95_low and ci95_high, which belong to the number before them)
becomes one cell with its interval. What a column means is read from the Parquet schema.
"""

import pyarrow as pa

from jsae.analysis.tables import documentation


def shown_table(table: pa.Table | None, *, first=(), max_rows: int = 60) -> dict | None:
    """Columns and rows for the template `any_table`, None for no table.

    Args:
      table: what is shown.
      first: the columns that matter; the others are left to the file where at least three of these exist.
      max_rows: those behind are left to the file too.

    Returns:
      columns: dicts name, doc; rows: lists of (value, (low, high) or None); n_rows, before `max_rows`.
    """
    if table is None or not len(table):
        return None
    docs = documentation(table)
    names = [n for n in table.column_names if not pa.types.is_list(table.schema.field(n).type)]
    ends = _intervals(names)
    used = {end for pair in ends.values() for end in pair}
    columns = [name for name in names if name not in used]
    wanted = [name for name in first if name in columns]
    columns = wanted if len(wanted) >= 3 else columns
    rows = [
        [(row[name], _pair(row, ends.get(name))) for name in columns]
        for row in table.slice(0, max_rows).to_pylist()
    ]
    heads = [{"name": name.replace("_", " "), "doc": docs.get(name, "")} for name in columns]
    return {"columns": heads, "rows": rows, "n_rows": len(table)}


def _intervals(names: list[str]) -> dict[str, tuple[str, str]]:
    found, previous = {}, None
    for name in names:
        if name.endswith("_low") and (high := name[:-4] + "_high") in names:
            stem = name[:-4].removesuffix("_ci95")
            owner = stem if stem in names else previous
            if owner is not None:
                found[owner] = (name, high)
        elif not name.endswith("_high"):
            previous = name
    return found


def _pair(row: dict, ends) -> tuple | None:
    return None if ends is None else (row[ends[0]], row[ends[1]])
