"""The table of all features: its columns, its rows as text for readers without a script, and as data.

The script gets what it shows as text made here, and the order of each column as ranks made here, so that
no number is rounded or compared twice; only purity16, which can be filtered by value, is a number.
"""

import json

from jsae.ablation.input_space.table import OWN
from jsae.analysis.features import MAX_Q
from jsae.report.formatting import is_known, number, shown_p
from jsae.report.results import Results
from jsae.tables import documentation

_MAX_CROPS = 3
COLUMNS = (  # head, table ("features": of `Results.features`), column; those that no row knows are left out
    ("purity16", "features", "purity16"),
    ("selectivity excess", "features", "selectivity_excess"),
    ("auroc", "features", "auroc"),
    ("density", "features", "density"),
    ("removed", "all_features", "own_class_margin"),
    ("removed − control", "feature_space", "effect_minus_direction"),
    ("p", "feature_space", "p_direction"),
    ("q", "feature_space", "q_direction"),
    ("blurred − control", "input_space", "effect_minus_control"),
    ("poly\u00adsemanticity", "features", "polysemanticity"),
    ("pixel map in cell", "features", "pixel_map_in_cell"),
    ("insertion", "features", "pixel_map_insertion"),
    ("part auroc", "features", "part_auroc"),
)
_ROWS = {  # table -> the rows shown: margin of the top class, removed everywhere (own class) or blurred
    "feature_space": {"scope": "map", "target": "own_class", "measure": "margin"},
    "input_space": {**OWN, "target": "top_class", "measure": "margin"},
    "all_features": {},
}


def features_data(results: Results) -> dict:
    """Everything features.html and its script show, in the order of the pages, then of the table.

    Returns:
      feature, page (has one), name (of the top class), part, flags, crops: one entry per feature; classes:
      those that can be asked for; columns: dicts name, head, doc, rising, values, text, rank. The first order
      of a column is by falling values unless it is `rising`, as effects and p values are.
    """
    found = results.features
    place = {feature: i for i, feature in enumerate(found["feature"])}
    order = list(dict.fromkeys([*results.chosen, *found["feature"]]))
    listed = {name: [values[place[feature]] for feature in order] for name, values in found.items()}
    columns = []
    for head, table, name in COLUMNS:
        values, doc = listed.get(name, []), results.docs.get(name, "")
        if table in results.tables and table in _ROWS:
            by_feature = _by_feature(results, table, name)
            values = [by_feature.get(feature) for feature in order]
            doc = documentation(results.tables[table])[name]
        if name == "purity16" or any(map(is_known, values)):
            text = [_text(name, value) for value in values]
            column = {"name": name, "head": head, "doc": doc, "rising": table in _ROWS, "values": values}
            columns.append(column | {"text": text, "rank": ranks(values)})
    q = _by_feature(results, "feature_space", "q_direction")
    kinds = {
        "s": {f for f, is_selective in zip(order, listed["class_selective"], strict=True) if is_selective},
        "a": set(results.ablated),
        "e": {f for f, is_eligible in zip(order, listed["eligible"], strict=True) if is_eligible},
        "d": {f for f, is_alive in zip(order, listed["alive"], strict=True) if not is_alive},
        "q": {f for f, value in q.items() if is_known(value) and value <= MAX_Q},
    }
    pages = set(results.chosen)
    return {
        "feature": order,
        "page": [feature in pages for feature in order],
        "name": listed["top_class_name"],
        "classes": sorted({name for name in listed["top_class_name"] if name is not None}),
        "part": listed.get("part"),
        "flags": ["".join(kind for kind, those in kinds.items() if feature in those) for feature in order],
        "crops": [_crops(results, feature) if feature in pages else [] for feature in order],
        "columns": columns,
    }


def data_script(page: dict, grid: tuple[int, int] | None) -> bytes:
    """features.js: what `features_data` returns as a classic script that assigns one global."""
    index = {name: i for i, name in enumerate(page["classes"])}
    purity = next(column["values"] for column in page["columns"] if column["name"] == "purity16")
    data = {name: page[name] for name in ("feature", "classes", "part", "flags", "crops")} | {
        "page": [int(has_page) for has_page in page["page"]],
        "class": [index.get(name, -1) for name in page["name"]],
        "purity16": [round(float(value), 6) if is_known(value) else None for value in purity],
        "grid": grid,
        "columns": [
            {key: column[key] for key in ("text", "rank", "doc", "rising")} for column in page["columns"]
        ],
    }
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return f"window.JSAE_FEATURES={text};\n".encode()


def ranks(values: list) -> list[int]:
    """The position of each value among the distinct ones, -1 for an unknown one."""
    position = {value: i for i, value in enumerate(sorted({v for v in values if is_known(v)}))}
    return [position[v] if is_known(v) else -1 for v in values]


def _text(name: str, value: float | None) -> str:
    """What a cell of a column shows, "" for an unknown number."""
    if not is_known(value):
        return ""
    return str(shown_p(value)) if name in ("p_direction", "q_direction") else number(value)


def _crops(results: Results, feature: int) -> list[list[int]]:
    """image, y, x of the top patches shown in the table; none where there are no images."""
    patches = results.patches(feature)[:_MAX_CROPS] if results.facts["image_px"] else []
    return [[patch["image"], patch["y"], patch["x"]] for patch in patches]


def _by_feature(results: Results, name: str, column: str) -> dict:
    """feature -> `column` of the rows of a table that are shown, {} where it does not exist."""
    if name not in results.tables:
        return {}
    equal = _ROWS[name]
    columns = results.tables[name].select(["feature", column, *equal]).to_pydict()
    rows = zip(columns["feature"], columns[column], *(columns[k] for k in equal), strict=True)
    return {feature: value for feature, value, *keys in rows if tuple(keys) == tuple(equal.values())}
