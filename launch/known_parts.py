"""What the SAE finds of the parts that aircraft are drawn from, over the studies of several seeds.

    python -m launch.known_parts runs/demo0 runs/demo1 runs/demo2

Reads ablation/known_answer.parquet of each workdir and prints one markdown row a part: means over workdirs,
in brackets the smallest and largest; then how many parts are found, and for how many the margin falls more
in the variants that have the part (95% interval of the difference below 0), in each workdir.
"""

import numpy as np
from absl import app

from jsae.ablation import known_answer
from launch import usage

SHOWN = (
    "auroc",
    "random_auroc",
    "centre_auroc",
    "position_auroc",
    "mean_difference_auroc",
    "probe_auroc",
    "pointing",
    "random_pointing",
)
EFFECTS = tuple(f"{kind}difference" for kind in known_answer.KINDS)


def markdown(tables: list[dict]) -> str:
    """The table of known_answer.parquet as columns (name -> list), one of each workdir."""
    shared = [part for part in tables[0]["part"] if all(part in table["part"] for table in tables)]
    lines = ["| part | " + " | ".join((*SHOWN, *EFFECTS, "found", "specific")) + " |"]
    lines.append("|---" * (len(SHOWN) + len(EFFECTS) + 3) + "|")
    for part in shared:
        rows = [_row(table, part) for table in tables]
        cells = [_over([row[name] for row in rows]) for name in (*SHOWN, *EFFECTS)]
        counts = [f"{sum(row[name] for row in rows)}/{len(rows)}" for name in ("found", "specific")]
        lines.append(f"| {part} | " + " | ".join(cells + counts) + " |")
    for name, verb in (("found", "found"), ("specific", "with a margin that falls in the right variants")):
        counts = ", ".join(f"{sum(table[name])} of {len(table[name])}" for table in tables)
        lines.append(f"\nparts {verb}: {counts}")
    return "\n".join(lines)


def _row(table: dict, part: str) -> dict:
    at = table["part"].index(part)
    return {name: values[at] for name, values in table.items()}


def _over(values: list) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    ends = f" [{min(known):.2f}, {max(known):.2f}]" if len(known) > 1 else ""
    return f"{np.mean(known):.2f}{ends}"


def main(argv) -> None:
    import jsae

    if len(argv) < 2:
        raise app.UsageError("give the workdirs of one or more finished studies")
    print(markdown([jsae.load(workdir).table("known_answer").to_pydict() for workdir in argv[1:]]))


if __name__ == "__main__":
    usage.run(main)
