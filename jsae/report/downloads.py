"""The files behind the pages: every table as tables/NAME.csv, every plot of the overview as figures/NAME.svg.

Numbers are written in full, as they are in Parquet; lists by class are left out, they are in Parquet only.
"""

import io

import pyarrow as pa
import pyarrow.csv

from jsae.report import figures
from jsae.report.reading import Study

_MAX_CELLS = 250_000  # about 4 MB; what is larger stays in the Parquet file


def csv_tables(study: Study) -> dict[str, pa.Table]:
    """File name without its ending -> the table written under it."""
    tables = dict(study.tables)
    for stage, rows in study.curves.items():
        if rows:
            names = dict.fromkeys(name for row in rows for name in row)
            names = [name for name in names if not name.endswith("_s")]  # times differ from run to run
            tables[f"{stage}_curve"] = pa.table({name: [row.get(name) for row in rows] for name in names})
    found = {}
    for name, table in sorted(tables.items()):
        flat = [f.name for f in table.schema if not pa.types.is_list(f.type)]
        if len(flat) * len(table) <= _MAX_CELLS:
            found[name] = table.select(flat)
    return found


def csv_bytes(table: pa.Table) -> bytes:
    """The table as CSV with a head line; unknown numbers are empty fields."""
    buffer = io.BytesIO()
    pyarrow.csv.write_csv(table, buffer)
    return buffer.getvalue()


def svg_bytes(figure) -> bytes:
    """A figure as a file that needs no style sheet."""
    return figures.standalone(figure).encode()
