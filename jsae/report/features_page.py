"""The table of all features: its columns, its rows as text for readers without a script, and as data.

The script gets what it shows as text made here, and the order of each column as ranks made here, so that
no number is rounded or compared twice; only purity16, which can be filtered by value, is a number.
"""

import json

from jsae.report.formatting import is_known, number, shown_p
from jsae.report.reading import Study

_MAX_CROPS = 3
_FEW = "it fires on fewer than 20 test images, or was not ablated"
# name, head, explanation, why a number may be unknown. The first order of a column is by falling values
# unless it is in _RISING.
COLUMNS = (
    (
        "purity16",
        "purity16",
        "share of the commonest class among the 16 top test images",
        "fires in fewer than 16 images",
    ),
    (
        "selectivity_excess",
        "selectivity excess",
        "selectivity minus its mean over shuffled labels",
        "silent on test",
    ),
    (
        "auroc",
        "auroc",
        "of the top class, chosen on train, against the rest of test",
        "fires on fewer than 20 test images",
    ),
    ("density", "density", "share of test vectors on which it fires", "silent on test"),
    ("removed", "removed", "change of the top class's margin when the feature is removed everywhere", _FEW),
    ("effect_minus_direction", "removed − control", "the same minus a direction of equal norm", _FEW),
    ("p_direction", "p", "of the difference to the control, two-sided", _FEW),
    ("q_direction", "q", "the same after Benjamini-Hochberg", _FEW),
    (
        "blurred_minus_control",
        "blurred − control",
        "change of that margin when its patch is blurred, minus the matched patch",
        _FEW,
    ),
    (
        "polysemanticity",
        "poly\u00adsemanticity",
        "share of the top patches whose class is not the commonest",
        "silent on test",
    ),
    ("n_parts", "parts found", "number of parts with a part AUROC above 0.8 on test", "no masks"),
    (
        "erf_share",
        "erf share",
        "share of the gradient that falls inside the cell's own stride",
        "not measured",
    ),
    (
        "part_auroc",
        "part auroc",
        "how well it finds the part that it finds best, over cells on the aircraft; 0.5 by chance",
        "not measured",
    ),
)
_RISING = ("removed", "effect_minus_direction", "p_direction", "q_direction", "blurred_minus_control")


def features_data(study: Study) -> dict:
    """Everything features.html shows: columns, rows, the classes that can be asked for, and how many."""
    columns = _columns(study)
    pages = set(study.chosen)
    order = list(study.chosen) + [f for f in study.features.get("feature", []) if f not in pages]
    place = {feature: i for i, feature in enumerate(study.features.get("feature", []))}
    found = study.features
    rows = []
    for feature in order:
        i = place[feature]
        flags = "".join(
            letter
            for letter, on in (
                ("s", found["class_selective"][i]),
                ("a", columns["removed_any"][i]),
                ("e", found["eligible"][i]),
                ("d", not found["alive"][i]),
                ("q", is_known(columns["q_direction"][i]) and columns["q_direction"][i] <= 0.05),
            )
            if on
        )
        rows.append(
            {
                "feature": feature,
                "page": feature in pages,
                "name": found["top_class_name"][i],
                "part": found["part"][i] if "part" in found else None,
                "flags": flags,
                "values": [columns[name][i] for name, *_ in _shown(columns)],
            }
        )
    heads = [
        {"name": name, "head": head, "doc": doc, "reason": reason, "rising": name in _RISING}
        for name, head, doc, reason in _shown(columns)
    ]
    return {
        "columns": heads,
        "rows": rows,
        "classes": sorted({row["name"] for row in rows if row["name"] is not None}),
        "has_part": "part" in found,
        "n_pages": len(pages),
    }


def data_script(study: Study, page: dict) -> bytes:
    """features.js: the rows of `features_data` as a classic script that assigns one global."""
    rows = page["rows"]
    names = page["classes"]
    index = {name: i for i, name in enumerate(names)}
    columns = []
    for k, column in enumerate(page["columns"]):
        values = [row["values"][k] for row in rows]
        columns.append(
            {
                "text": [cell_text(column["name"], value) for value in values],
                "rank": ranks(values),
                "reason": column["reason"],
                "rising": column["rising"],
            }
        )
    purity = next((k for k, c in enumerate(page["columns"]) if c["name"] == "purity16"), None)
    data = {
        "feature": [row["feature"] for row in rows],
        "page": [int(row["page"]) for row in rows],
        "class": [index.get(row["name"], -1) for row in rows],
        "classes": names,
        "part": [row["part"] for row in rows] if page["has_part"] else None,
        "flags": [row["flags"] for row in rows],
        "purity16": [_plain(row["values"][purity]) for row in rows] if purity is not None else None,
        "grid": study.facts["grid"],
        "crops": [
            [[p["image"], p["y"], p["x"]] for p in study.patches(row["feature"])[:_MAX_CROPS]]
            if row["page"] and study.facts["image_px"]
            else []
            for row in rows
        ],
        "columns": columns,
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return f"window.JSAE_FEATURES={text};\n".encode()


def cell_text(name: str, value) -> str:
    """What a cell of a column shows, "" for an unknown number."""
    if not is_known(value):
        return ""
    return str(shown_p(value)) if name in ("p_direction", "q_direction") else number(value)


def ranks(values: list) -> list[int]:
    """The position of each value among the distinct ones, -1 for an unknown one."""
    position = {value: i for i, value in enumerate(sorted({v for v in values if is_known(v)}))}
    return [position[v] if is_known(v) else -1 for v in values]


def _plain(value) -> float | None:
    return round(float(value), 6) if is_known(value) else None


def _shown(columns: dict) -> list[tuple]:
    return [column for column in COLUMNS if column[0] in columns]


def _columns(study: Study) -> dict[str, list]:
    """Column name -> values in the order of features.parquet; columns that no row knows are left out."""
    features = study.features.get("feature", [])
    found = {name: study.features[name] for name, *_ in COLUMNS if name in study.features}
    removed = _by_feature(study, "atlas", "map_top_class_margin")
    direct = _by_feature(
        study, "feature_space", "mean_delta", scope="map", target="top_class", measure="margin"
    )
    keys = {"target": "top_class", "measure": "margin"}
    found["removed"] = [removed.get(f, direct.get(f)) for f in features]
    for name in ("effect_minus_direction", "p_direction", "q_direction"):
        values = _by_feature(study, "feature_space", name, scope="map", **keys)
        found[name] = [values.get(f) for f in features]
    values = _by_feature(study, "input_space", "effect_minus_control", **keys)
    found["blurred_minus_control"] = [values.get(f) for f in features]
    always = ("purity16", "q_direction")
    kept = {k: v for k, v in found.items() if k in always or any(is_known(x) for x in v)}
    ablated = set(study.ablated)
    return kept | {"removed_any": [f in ablated for f in features]}


def _by_feature(study: Study, name: str, column: str, **equal: str) -> dict:
    """feature -> `column` of the rows of a table in which the columns `equal` have these values."""
    table = study.tables.get(name)
    if table is None or column not in table.column_names:
        return {}
    columns = table.select(["feature", column, *equal]).to_pydict()
    rows = zip(*(columns[k] for k in ("feature", column, *equal)), strict=True)
    return {f: value for f, value, *keys in rows if tuple(keys) == tuple(equal.values())}
