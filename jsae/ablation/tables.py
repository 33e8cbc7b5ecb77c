"""The rows of the ablation stage's tables: effects reduced to means, intervals and p-values.

Every column is documented in its schema, which the Parquet file carries. Effects of features that fire on
fewer than 20 test images are null. Benjamini-Hochberg runs over the features of one kind of row, i.e. for
each (scope, target, measure) by itself.
"""

import numpy as np
import pyarrow as pa

from jsae import metrics
from jsae.ablation import statistics
from jsae.ablation.feature_space import MEASURES, SCOPES, TARGETS, FeatureEffects
from jsae.ablation.input_space import KINDS as INPUT_KINDS
from jsae.ablation.input_space import InputEffects


def schema(**fields) -> pa.Schema:
    """A schema from column names and pairs (type, what the column means)."""
    return pa.schema([pa.field(n, t, metadata={"doc": doc}) for n, (t, doc) in fields.items()])


_INT, _FLOAT, _TEXT = pa.int32(), pa.float64(), pa.string()
_TARGET = {
    "target": (_TEXT, "class looked at: label, the clean prediction, or the feature's top class on train"),
    "measure": (
        _TEXT,
        "of the target: logit, margin (minus the best other), confidence (softmax), log_confidence",
    ),
}


def _difference(name: str, what: str) -> dict:
    """Columns of a paired difference to a control."""
    return {
        f"effect_minus_{name}": (_FLOAT, f"mean over images of effect - effect of {what}"),
        f"effect_minus_{name}_low": (_FLOAT, "lower end of its 95% bootstrap interval over images"),
        f"effect_minus_{name}_high": (_FLOAT, "upper end of its 95% bootstrap interval over images"),
    }


def _test(end: str, what: str) -> dict:
    return {
        f"p{end}": (_FLOAT, f"two-sided p of the difference to {what}: exact sign-flip, or its t tail"),
        f"q{end}": (_FLOAT, "Benjamini-Hochberg q over the ablated features of the same kind of row"),
    }


_INTERVAL = {
    "ci95_low": (_FLOAT, "lower end of the 95% bootstrap interval of mean_delta over images"),
    "ci95_high": (_FLOAT, "upper end of the 95% bootstrap interval of mean_delta over images"),
}
_DIRECTION = "a direction of equal norm drawn from the activations' covariance"
_FEATURE = "another feature active on the image, of nearest contribution"

FEATURE_SPACE = schema(
    feature=(_INT, "SAE feature"),
    scope=(_TEXT, "map: removed at every grid position; peak: at the cell of its largest activation only"),
    **_TARGET,
    n_active=(_INT, "test images on which the feature fires; all means are over these"),
    share_active=(_FLOAT, "n_active divided by the number of test images"),
    mean_delta=(_FLOAT, "mean of ablated minus clean; null with fewer than 20 active images"),
    **_INTERVAL,
    control_direction_mean_delta=(_FLOAT, f"mean effect of removing {_DIRECTION}"),
    **_difference("direction", _DIRECTION),
    **_test("_direction", _DIRECTION),
    n_control_feature=(_INT, "active images on which another feature fires; the feature control's pairs"),
    control_feature_mean_delta=(_FLOAT, f"mean effect of removing {_FEATURE}, over n_control_feature images"),
    **_difference("feature", _FEATURE),
    **_test("_feature", _FEATURE),
    flip_rate=(_FLOAT, "share of active images whose prediction changes"),
    control_direction_flip_rate=(_FLOAT, f"the same for {_DIRECTION}"),
    control_feature_flip_rate=(_FLOAT, f"the same for {_FEATURE}"),
)

INPUT_SPACE = schema(
    feature=(_INT, "SAE feature"),
    **_TARGET,
    n_images=(_INT, "test images looked at: a seeded random subset of those on which the feature fires"),
    mean_delta=(
        _FLOAT,
        "mean of blurred minus clean; null if the feature fires on fewer than 20 test images",
    ),
    **_INTERVAL,
    control_mean_delta=(_FLOAT, "mean effect of blurring the matched patch, over images that have one"),
    **_difference("control", "the matched patch"),
    **_test("", "the matched patch"),
    feature_fall=(_FLOAT, "mean relative fall of the feature at its peak cell when blurred there; 1: gone"),
    control_feature_fall=(_FLOAT, "the same when the matched patch is blurred"),
    energy_matched_share=(_FLOAT, "share of images whose matched patch has a blur energy within 20%"),
    control_on_aircraft_share=(
        _FLOAT,
        "share of images whose matched patch is known to lie on the aircraft; else it is anywhere",
    ),
    flip_rate=(_FLOAT, "share of images whose prediction changes"),
    control_flip_rate=(_FLOAT, "the same for the matched patch"),
)

AGREEMENT = schema(
    feature=(_INT, "SAE feature"),
    n_images=(_INT, "(feature, image) pairs, the same for both means"),
    input_delta_margin=(_FLOAT, "mean change of the top class's margin when the peak cells are blurred"),
    feature_delta_margin=(_FLOAT, "mean change of it when the feature is removed at its peak cell"),
)


def feature_space_rows(effects: FeatureEffects, features, n_bootstrap: int, seed: int) -> list[dict]:
    """One row a (feature, scope, target, measure), unknown numbers None.

    Args:
      effects: all pairs.
      features: the ablated features, in order.
      n_bootstrap, seed: of the intervals.
    """
    rows = []
    for feature in features:
        mine = effects.features == feature
        deltas, flips, matched = effects.deltas[mine], effects.flips[mine], effects.matched[mine]
        n, paired = len(deltas), int(matched.sum())
        rng = np.random.default_rng([seed, int(feature)])
        own, direction, other = (deltas[:, :, kind].astype(np.float64) for kind in range(3))
        columns = _mean("mean_delta", own, n, n_bootstrap, rng, ("ci95_low", "ci95_high"))
        columns |= _paired("direction", own - direction, n, n_bootstrap, rng)
        columns |= _paired("feature", (own - other)[matched], paired, n_bootstrap, rng)
        columns["control_direction_mean_delta"] = _stated(direction, n)
        columns["control_feature_mean_delta"] = _stated(other[matched], paired)
        for kind, name in enumerate(("", "control_direction_", "control_feature_")):
            changed = flips[matched, :, kind] if name == "control_feature_" else flips[:, :, kind]
            columns[f"{name}flip_rate"] = _stated(changed, len(changed))[:, None, None]
        fixed = {
            "feature": int(feature),
            "n_active": n,
            "n_control_feature": paired,
            "share_active": n / effects.n_images if effects.n_images else None,
        }
        for s, scope in enumerate(SCOPES):
            picked = {name: value[s] for name, value in columns.items()}
            rows += _long(fixed | {"scope": scope}, picked)
    for end in ("_direction", "_feature"):
        _add_q(rows, end, ("scope", "target", "measure"))
    return rows


def input_space_rows(
    effects: InputEffects, features, n_active: dict, n_bootstrap: int, seed: int
) -> list[dict]:
    """One row a (feature, target, measure), unknown numbers None.

    Args:
      effects: the pairs looked at.
      features: the ablated features, in order.
      n_active: feature -> number of test images on which it fires; below 20 its effects are null.
      n_bootstrap, seed: of the intervals.
    """
    rows = []
    for feature in features:
        mine = effects.features == feature
        eligible = n_active.get(int(feature), 0) >= statistics.MIN_ACTIVE
        n = int(mine.sum())
        rng = np.random.default_rng([seed, int(feature), 1])
        have, have_control = (n, int(effects.matched[mine].sum())) if eligible else (0, 0)
        deltas, matched = effects.deltas[mine].astype(np.float64), effects.matched[mine]
        own, control = deltas[:, INPUT_KINDS.index("effect")], deltas[:, INPUT_KINDS.index("patch")]
        columns = _mean("mean_delta", own, have, n_bootstrap, rng, ("ci95_low", "ci95_high"), least=1)
        columns |= _paired("control", (own - control)[matched], have_control, n_bootstrap, rng, "", least=1)
        columns["control_mean_delta"] = _stated(control[matched], have_control, least=1)
        flips, falls = effects.flips[mine], effects.falls[mine]
        single = {
            "flip_rate": _stated(flips[:, 0], have, least=1),
            "control_flip_rate": _stated(flips[matched, 1], have_control, least=1),
            "feature_fall": _mean_of_known(falls[:, 0]),
            "control_feature_fall": _mean_of_known(falls[:, 1]),
            "energy_matched_share": _mean_of_known(effects.energy_matched[mine]),
            "control_on_aircraft_share": _mean_of_known(effects.on_aircraft[mine]),
        }
        columns |= {name: np.asarray(value)[None, None] for name, value in single.items()}
        rows += _long({"feature": int(feature), "n_images": n}, columns)
    _add_q(rows, "", ("target", "measure"))
    return rows


def table(rows: list[dict], columns: pa.Schema) -> pa.Table:
    """The rows as a table; NaN becomes null. Raises KeyError if a row lacks a column."""
    values = [[_plain(row[name]) for row in rows] for name in columns.names]
    arrays = [pa.array(v, type=field.type) for v, field in zip(values, columns, strict=True)]
    return pa.table(arrays, schema=columns)


def _plain(value):
    value = value.item() if isinstance(value, np.generic) else value
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _stated(values: np.ndarray, n: int, least: int = statistics.MIN_ACTIVE) -> np.ndarray:
    """Mean over rows, NaN with fewer than `least` of them."""
    return values.mean(0) if n >= least else np.full(values.shape[1:], np.nan)


def _mean_of_known(values: np.ndarray) -> float:
    values = np.asarray(values, np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def _mean(name, values, n, n_bootstrap, rng, ends, least: int = statistics.MIN_ACTIVE) -> dict:
    """Mean and interval under the names given; NaN with fewer than `least` rows."""
    found = statistics.mean_interval(values if n >= least else values[:0], n_bootstrap, rng)
    return dict(zip((name, *ends), found, strict=True))


def _paired(name, values, n, n_bootstrap, rng, end=None, least: int = statistics.MIN_ACTIVE) -> dict:
    """Mean, interval and p of paired differences to the control `name`."""
    full = f"effect_minus_{name}"
    columns = _mean(full, values, n, n_bootstrap, rng, (f"{full}_low", f"{full}_high"), least)
    p = statistics.paired_p(values if n >= least else values[:0])
    return columns | {f"p{f'_{name}' if end is None else end}": p}


def _long(fixed: dict, columns: dict) -> list[dict]:
    """Rows over targets and measures of columns that broadcast to [target, measure]."""
    shape = (len(TARGETS), len(MEASURES))
    full = {name: np.broadcast_to(value, shape) for name, value in columns.items()}
    return [
        fixed
        | {"target": target, "measure": measure}
        | {name: float(value[t, m]) for name, value in full.items()}
        for t, target in enumerate(TARGETS)
        for m, measure in enumerate(MEASURES)
    ]


def _add_q(rows: list[dict], end: str, family: tuple[str, ...]) -> None:
    """Benjamini-Hochberg within each family of rows, over those that have a p."""
    families = {}
    for row in rows:
        families.setdefault(tuple(row[name] for name in family), []).append(row)
    for members in families.values():
        q = metrics.benjamini_hochberg([row[f"p{end}"] for row in members])
        for row, value in zip(members, q, strict=True):
            row[f"q{end}"] = float(value)
