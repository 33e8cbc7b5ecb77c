"""Columns about features from other tables of the analysis, in the order of features.parquet.

localisation.parquet has a row a (feature, part): a feature gets the part that it finds best on train, and how
well it does so on test. receptive.parquet and monosemanticity.parquet have a row a feature.
"""

import pyarrow as pa

from jsae.report.formatting import is_known

_WHOLE = "aircraft"  # a row of the whole object, which is not one of its parts
_SAME = ("feature", "n_images", "n_patches")


def more_columns(tables: dict[str, pa.Table], features: list[int]) -> dict[str, list]:
    """Column name -> a value a feature, None where it is not known; {} without the tables."""
    found = {}
    for name in ("localisation", "receptive", "monosemanticity"):
        table = tables.get(name)
        if table is None or "feature" not in table.column_names:
            continue
        rows = _one_a_feature(table)
        for column in table.column_names:
            if column not in _SAME:
                values = [rows[f].get(column) if f in rows else None for f in features]
                found[_name(column, "part" in table.column_names)] = values
    return found


def _one_a_feature(table: pa.Table) -> dict[int, dict]:
    """feature -> its row; of several the one with the largest AUROC on train."""
    chosen: dict[int, dict] = {}
    score = next((n for n in table.column_names if n.endswith("auroc_train")), None)
    for row in table.to_pylist():
        feature = row["feature"]
        if row.get("part") == _WHOLE or (score and not is_known(row[score])):
            continue
        if feature not in chosen or (score and row[score] > chosen[feature][score]):
            chosen[feature] = row
    return chosen


def _name(column: str, of_parts: bool) -> str:
    """A name that says what it is beside the columns of features.parquet, which has an auroc of its own."""
    return f"part_{column}" if of_parts and not column.startswith("part") else column
