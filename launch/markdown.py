"""Tables as markdown, for the commands that print one."""

from collections.abc import Mapping, Sequence


def table(rows: Sequence[Mapping[str, object]], digits: int = 4) -> str:
    """One line per row below the names of the columns; floats with so many significant digits."""
    lines = [list(rows[0]), ["---"] * len(rows[0])]
    lines += [[f"{v:.{digits}g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
