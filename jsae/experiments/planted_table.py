"""planted.parquet and results.json of planted directions, and what they say: is the instrument valid?"""

import itertools
from typing import Any

import pyarrow as pa
from etils import epath

from jsae import metrics
from jsae.runtime import artifacts, logs
from jsae.sae import VARIANTS
from jsae.tables import Column, Table

FOLDER = "planted"
RESULTS = "results.json"
FROZEN = {"frozen_decoder": "decoder", "frozen_encoder": "encoder"}
NAMES = ("oracle", *VARIANTS, *FROZEN)
_FLOAT = pa.float64()
TABLE = Table(
    "planted",
    (
        Column("dictionary", pa.string(), "which one: oracle, a variant of the SAE, or a frozen SAE"),
        Column("dose", _FLOAT, "variance of one planted direction as a share of that of the activations"),
        Column("m", pa.int32(), "features that may carry a direction, chosen on train"),
        Column("n_parts", pa.int32(), "directions planted, one for each part"),
        Column("n_features", pa.int32(), "features of the dictionary"),
        Column("coefficient", _FLOAT, "of the penalty; null for variants that have none"),
        Column("l0", _FLOAT, "mean number of features active on a test vector with all directions planted"),
        Column("fvu", _FLOAT, "on these vectors; null for the oracle, which reconstructs nothing"),
        Column("share", _FLOAT, "of a part's effect that its m features carry, on test; mean over parts"),
        Column("smallest_share", _FLOAT, "the same of the part where it is smallest"),
        Column("leak", _FLOAT, "mean |share| that these features carry of other parts, on test"),
        Column("isolated", _FLOAT, "mean over parts of 1 - |1 - share| - leak, on test"),
        Column("isolated_train", _FLOAT, "the same on train, by which one chooses between variants"),
        Column(
            "detection_limit",
            _FLOAT,
            "smallest dose so far at which the dictionary's share at m = 1 is at least 0.8; null: none",
        ),
        Column("seconds", _FLOAT, "of training and measuring it"),
    ),
)


def rows_of(path: epath.Path, made_of: str) -> list[dict[str, Any]]:
    """The rows of a table; none where it was made of other activations or settings."""
    if not path.exists():
        return []
    found = artifacts.read_table(path)
    if artifacts.manifest_of(found).get("made_of") != made_of:
        logs.get_logger().warning("planted: %s is of other activations or settings and is made again", path)
        return []
    return found.to_pylist()


def write(folder: epath.Path, rows: list[dict[str, Any]], made_of: str) -> None:
    """Write the table and results.json."""
    rows.sort(key=lambda row: (NAMES.index(row["dictionary"]), row["dose"], row["m"]))
    curves = {}
    for name, group in itertools.groupby(rows, key=lambda row: row["dictionary"]):
        of_name = list(group)
        first = [row for row in of_name if row["m"] == 1]
        limit = metrics.detection_limit([row["dose"] for row in first], [row["share"] for row in first])
        for row in of_name:
            row["detection_limit"] = limit
        curves[name] = {key: [row[key] for row in first] for key in ("dose", "share", "leak")}
    artifacts.write_table(folder / TABLE.file, TABLE.of_rows(rows), {"made_of": made_of})
    artifacts.write_json(folder / RESULTS, curves)


def load(workdir: Any) -> list[dict[str, Any]]:
    """The rows of a workdir's table. Raises FileNotFoundError without one."""
    return artifacts.read_table(epath.Path(workdir) / FOLDER / TABLE.file).to_pylist()


def verdict(rows: list[dict[str, Any]], dose: float = 0.01) -> dict[str, Any]:
    """Whether the instrument is valid, and how the best variant does at a dose; null where rows are missing.

    Returns:
      valid: the oracle has a share of 1 +- 0.05 and a leak of at most 0.05 at every dose, and the frozen
      decoder a share of at most 0.2 at `dose`, all at m = 1; best: the variant with the largest
      isolated_train at m = 1 and `dose`, of those that are there.
    """
    single = [row for row in rows if row["m"] == 1]
    oracle = [row for row in single if row["dictionary"] == "oracle"]
    at_dose = {row["dictionary"]: row for row in single if row["dose"] == dose}
    valid = None
    if oracle and "frozen_decoder" in at_dose:
        exact = all(abs(row["share"] - 1) <= 0.05 and row["leak"] <= 0.05 for row in oracle)
        valid = exact and at_dose["frozen_decoder"]["share"] <= 0.2
    there = [name for name in VARIANTS if name in at_dose]
    return {"valid": valid, "best": max(there, key=lambda n: at_dose[n]["isolated_train"], default=None)}


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as markdown, one line for each dictionary and dose; m in brackets, unknown is a dash."""
    counts = sorted({row["m"] for row in rows})
    of_m = [f"{name} ({m})" for m in counts for name in ("share", "smallest", "leak")]
    head = ["dose", "coefficient", "l0", "fvu", *of_m]
    lines = ["| | " + " | ".join([*head, "limit"]) + " |", "|---" * (len(head) + 2) + "|"]
    for (name, dose), group in itertools.groupby(rows, key=lambda row: (row["dictionary"], row["dose"])):
        by_m = {row["m"]: row for row in group}
        first = next(iter(by_m.values()))
        shown = [f"{100 * dose:g}%", _text(first["coefficient"]), _text(first["l0"]), _text(first["fvu"])]
        for m in counts:
            row = by_m.get(m, {})
            shown += [_text(row.get(key)) for key in ("share", "smallest_share", "leak")]
        limit = first["detection_limit"]
        shown.append("–" if limit is None else f"{100 * limit:g}%")
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    found = verdict(rows)
    best = "" if found["best"] is None else f"; best variant at 1%, chosen on train: {found['best']}"
    state = {None: "not known yet", True: "valid", False: "not valid"}[found["valid"]]
    return "\n".join([*lines, "", f"instrument: {state}{best}"])


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
