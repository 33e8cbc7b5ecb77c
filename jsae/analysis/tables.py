"""Documented Arrow tables: every column carries what it means, and unknown numbers are null, never NaN."""

import numpy as np
import pyarrow as pa


def schema(*columns: tuple) -> pa.Schema:
    """A schema from (name, type, meaning) triples; the meaning lies in the field's metadata under "doc"."""
    return pa.schema([pa.field(name, kind, metadata={"doc": doc}) for name, kind, doc in columns])


def documentation(table_or_schema) -> dict[str, str]:
    """Column -> what it means, of a table written here (also after reading it back)."""
    fields = getattr(table_or_schema, "schema", table_or_schema)
    return {field.name: (field.metadata or {}).get(b"doc", b"").decode() for field in fields}


def make(columns: dict, schema: pa.Schema) -> pa.Table:
    """A table from columns by name: arrays (NaN becomes null), masked arrays, lists, or [F, L] for lists.

    Raises ValueError if the columns are not exactly those of the schema.
    """
    if columns.keys() != set(schema.names):
        differing = sorted(columns.keys() ^ set(schema.names))
        raise ValueError(f"columns and schema differ in {', '.join(differing)}")
    return pa.table([_array(columns[field.name], field.type) for field in schema], schema=schema)


def _array(values, kind: pa.DataType) -> pa.Array:
    if pa.types.is_list(kind):
        values = np.asarray(values)
        offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
        return pa.ListArray.from_arrays(offsets, _array(values.reshape(-1), kind.value_type), type=kind)
    if isinstance(values, np.ma.MaskedArray):
        return pa.array(values.data, kind, mask=np.ma.getmaskarray(values))
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return pa.array(values, kind, mask=~np.isfinite(values))
    return pa.array(values, kind)


def known_class(label) -> np.ma.MaskedArray:
    """Class indices with the unknown ones (-1) masked."""
    label = np.asarray(label)
    return np.ma.masked_array(label, label < 0)


def class_name(label, class_names) -> list[str | None]:
    """Name of each class index, None for -1."""
    return [class_names[i] if i >= 0 else None for i in label]
