"""Result tables as Parquet files that explain themselves: every column carries what it means.

A table is declared once, as a `Table` of `Column`s; its schema, its file, the documentation and the made-up
tables of the tests all come from that. Unknown numbers are null, never NaN. A column with `interval` is
three: the number, and NAME_low and NAME_high, the ends of its interval.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

ENDS = ("low", "high")  # of an interval: NAME_low and NAME_high


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table.

    Attributes:
      name: as it stands in the file.
      type: its Arrow type.
      doc: what it means, with its unit and what a mean is over.
      interval: of which kind the interval beside it is ("95% bootstrap interval over images"); "": none.
    """

    name: str
    type: pa.DataType
    doc: str
    interval: str = ""

    def fields(self) -> list[pa.Field]:
        """The Arrow fields: the column itself, and the ends of its interval."""
        docs = {self.name: self.doc}
        if self.interval:
            docs[f"{self.name}_low"] = f"lower end of the {self.interval} of {self.name}"
            docs[f"{self.name}_high"] = f"upper end of the {self.interval} of {self.name}"
        return [pa.field(name, self.type, metadata={"doc": doc}) for name, doc in docs.items()]


@dataclasses.dataclass(frozen=True)
class Table:
    """The layout of a result table.

    Attributes:
      name: of the table; its file is NAME.parquet.
      columns: in order.
    """

    name: str
    columns: tuple[Column, ...]

    @property
    def file(self) -> str:
        return f"{self.name}.parquet"

    @functools.cached_property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with what each column means in its metadata."""
        return pa.schema([field for column in self.columns for field in column.fields()])

    @property
    def names(self) -> list[str]:
        """All column names, the ends of intervals among them."""
        return self.schema.names

    def make(self, columns: Mapping) -> pa.Table:
        """The table from columns by name: arrays (NaN becomes null), masked arrays, lists; for lists [F, L].

        Raises ValueError if the columns are not exactly those of the table.
        """
        if columns.keys() != set(self.names):
            differing = sorted(columns.keys() ^ set(self.names))
            raise ValueError(f"{self.file}: columns and schema differ in {', '.join(differing)}")
        return pa.table(
            [_array(columns[field.name], field.type) for field in self.schema], schema=self.schema
        )

    def of_rows(self, rows: Iterable[Mapping]) -> pa.Table:
        """The table from one dict per row; NaN becomes null. Raises KeyError if a row lacks a column."""
        rows = list(rows)
        return self.make({name: [_known(row[name]) for row in rows] for name in self.names})


def documentation(table_or_schema: pa.Table | pa.Schema) -> dict[str, str]:
    """Column -> what it means, of a table written here (also after reading it back)."""
    fields = getattr(table_or_schema, "schema", table_or_schema)
    return {field.name: (field.metadata or {}).get(b"doc", b"").decode() for field in fields}


def interval(name: str, mean: Any, low: Any, high: Any) -> dict[str, Any]:
    """The three columns of a number with its interval."""
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def known_class(label: ArrayLike) -> np.ma.MaskedArray:
    """Class indices with the unknown ones (-1) masked."""
    label = np.asarray(label)
    return np.ma.masked_array(label, label < 0)


def class_name(label: Iterable[int], class_names: Sequence[str]) -> list[str | None]:
    """Name of each class index, None for -1."""
    return [class_names[i] if i >= 0 else None for i in label]


def _known(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _array(values: Any, kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind) and not isinstance(values, list):
        values = np.asarray(values)
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(offsets, _array(values.reshape(-1), kind.value_type), type=kind)
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, kind, mask=np.ma.getmaskarray(values))
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return pa.array(values, kind, mask=~np.isfinite(values))
    return pa.array(values, kind)
