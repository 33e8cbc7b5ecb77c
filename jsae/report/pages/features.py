"""The table of all features: its columns, its rows as text for readers without a script, and as data.

The script gets what it shows as text made here, and the order of each column as ranks made here, so that
no number is rounded or compared twice; only purity16, which can be filtered by value, is a number.
"""

import json

from jsae import metrics
from jsae.analysis.features import MAX_Q, MIN_ACTIVE_IMAGES
from jsae.metrics import class_selectivity
from jsae.report.formatting import is_known, number, shown_p
from jsae.report.results import Results

_MAX_CROPS = 3
RARE = f"it fires on fewer than {MIN_ACTIVE_IMAGES} test images"
_NO_EFFECT = f"{RARE}, or was not ablated"
# name, head, explanation, why a number may be unknown. The first order of a column is by falling values
# unless it is in _RISING.
COLUMNS = (
    (
        "purity16",
        "purity16",
        f"share of the commonest class among the {metrics.N_PURITY} top test images",
        f"fires in fewer than {metrics.N_PURITY} images",
    ),
    (
        "selectivity_excess",
        "selectivity excess",
        "selectivity minus its mean over shuffled labels",
        "silent on test",
    ),
    ("auroc", "auroc", "of the top class, chosen on train, against the rest of test", RARE),
    ("density", "density", "share of test vectors on which it fires", "silent on test"),
    (
        "removed",
        "removed",
        "change of the top class's margin when the feature is removed at every position",
        _NO_EFFECT,
    ),
    ("effect_minus_direction", "removed − control", "the same minus a direction of equal norm", _NO_EFFECT),
    ("p_direction", "p", "of the difference to the control, two-sided", _NO_EFFECT),
    ("q_direction", "q", "the same after Benjamini-Hochberg", _NO_EFFECT),
    (
        "blurred_minus_control",
        "blurred − control",
        "change of that margin when its patch is blurred, minus the matched patch",
        _NO_EFFECT,
    ),
    (
        "polysemanticity",
        "poly\u00adsemanticity",
        "share of the top patches whose class is not the commonest",
        "silent on test",
    ),
    (
        "n_parts",
        "parts found",
        f"number of parts with a part AUROC above {class_selectivity.N_PARTS_AUROC} on test",
        "no masks",
    ),
    (
        "erf_share",
        "erf share",
        "share of the gradient that falls inside the cell's own stride",
        "not measured",
    ),
    (
        "part_auroc",
        "part auroc",
        "how well it finds the part that it finds best, over cells on the foreground; 0.5 by chance",
        "not measured",
    ),
)
_RISING = {"removed", "effect_minus_direction", "p_direction", "q_direction", "blurred_minus_control"}
_ALWAYS = {"purity16", "q_direction"}  # columns that are shown although no row knows them
_P_VALUES = {"p_direction", "q_direction"}


def features_data(results: Results) -> dict:
    """Everything features.html and its script show, in the order of the pages, then of the table.

    Returns:
      feature, page (has one), name (of the top class), part, flags, crops: one entry per feature; classes:
      those that can be asked for; columns: dicts name, head, doc, reason, rising, values, text, rank.
    """
    found = results.features
    place = {feature: i for i, feature in enumerate(found["feature"])}
    order = list(dict.fromkeys([*results.chosen, *found["feature"]]))
    rows = [place[feature] for feature in order]
    listed = {name: [values[i] for i in rows] for name, values in (found | _effects(results)).items()}
    ablated, pages = set(results.ablated), set(results.chosen)
    differs = [is_known(q) and q <= MAX_Q for q in listed["q_direction"]]
    kinds = {
        "s": listed["class_selective"],
        "a": [feature in ablated for feature in order],
        "e": listed["eligible"],
        "d": [not alive for alive in listed["alive"]],
        "q": differs,
    }
    names = listed["top_class_name"]
    return {
        "feature": order,
        "page": [feature in pages for feature in order],
        "name": names,
        "classes": sorted({name for name in names if name is not None}),
        "part": listed.get("part"),
        "flags": ["".join(kind for kind in kinds if kinds[kind][i]) for i in range(len(order))],
        "crops": [_crops(results, feature) if feature in pages else [] for feature in order],
        "columns": [
            {
                "name": name,
                "head": head,
                "doc": doc,
                "reason": reason,
                "rising": name in _RISING,
                "values": listed[name],
                "text": [_text(name, value) for value in listed[name]],
                "rank": ranks(listed[name]),
            }
            for name, head, doc, reason in COLUMNS
            if name in _ALWAYS or any(map(is_known, listed.get(name, ())))
        ],
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
            {key: column[key] for key in ("text", "rank", "reason", "rising")} for column in page["columns"]
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
    return str(shown_p(value)) if name in _P_VALUES else number(value)


def _crops(results: Results, feature: int) -> list[list[int]]:
    """image, y, x of the top patches shown in the table; none where there are no images."""
    patches = results.patches(feature)[:_MAX_CROPS] if results.facts["image_px"] else []
    return [[patch["image"], patch["y"], patch["x"]] for patch in patches]


def _effects(results: Results) -> dict[str, list]:
    """Effects on the margin of the top class, in the order of features.parquet."""
    features = results.features["feature"]
    keys = {"target": "top_class", "measure": "margin"}
    names = ("mean_delta", "effect_minus_direction", "p_direction", "q_direction")
    direct = {name: _by_feature(results, "feature_space", name, scope="map", **keys) for name in names}
    blurred = _by_feature(results, "input_space", "effect_minus_control", **keys)
    removed = direct.pop("mean_delta") | _by_feature(results, "all_features", "map_top_class_margin")
    found = {"removed": removed, "blurred_minus_control": blurred, **direct}
    return {name: [values.get(feature) for feature in features] for name, values in found.items()}


def _by_feature(results: Results, name: str, column: str, **equal: str) -> dict:
    """feature -> `column` of the rows of a table in which the columns `equal` have these values."""
    if name not in results.tables:
        return {}
    columns = results.tables[name].select(["feature", column, *equal]).to_pydict()
    rows = zip(columns["feature"], columns[column], *(columns[k] for k in equal), strict=True)
    return {feature: value for feature, value, *keys in rows if tuple(keys) == tuple(equal.values())}
