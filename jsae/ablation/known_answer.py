"""known_answer.parquet: does removing the feature that finds a part hurt the variants that have the part?

For each part the feature that `jsae.analysis.parts` chose on train is removed at every position of every test
image. The margin of the label should fall for the variants that have the part and not for the others; what is
tested is the difference of the two means over images (an image in which the feature is silent counts with 0).
Beside it stand a direction of equal norm drawn from the activations' covariance, the random direction that
finds the part best, and the two directions that know the masks (`jsae.analysis.readouts`). All go through the
forward pass from the site on, whatever the site.
"""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

from jsae import edits, metrics
from jsae.ablation import controls, statistics
from jsae.analysis import parts, readouts
from jsae.analysis.tables import schema
from jsae.classifier.forward import as_argument

FILE = "known_answer.parquet"
KINDS = ("", "control_", "random_", *(f"{kind}_" for kind in readouts.KINDS))
_WHO = {
    "": "the feature",
    "control_": "a direction of equal norm drawn from the activations' covariance, in place of the feature",
    "random_": "random_feature",
    "mean_difference_": "what lies along the difference of the means, beyond the mean cell on the aircraft",
    "probe_": "what lies along the probe's weights, beyond the mean cell on the aircraft",
}


def _with_interval(name: str, doc: str) -> list[tuple]:
    ends = {"": doc, "_low": f"lower end of the 95% bootstrap interval over images of {name}"}
    ends["_high"] = "upper end of it"
    return [(name + end, pa.float64(), what) for end, what in ends.items()]


SCHEMA = schema(
    *((field.name, field.type, field.metadata[b"doc"].decode()) for field in parts.SCHEMA),
    ("n_with", pa.int32(), "test images of the variants that have the part"),
    ("n_without", pa.int32(), "test images of the other variants"),
    *(
        column
        for kind in KINDS
        for name, doc in (
            ("with_delta_margin", "change of the label's margin on images of variants with the part"),
            ("without_delta_margin", "the same on images of the other variants"),
            ("difference", "with_delta_margin - without_delta_margin; below 0: it hurts the right variants"),
        )
        for column in _with_interval(kind + name, f"{doc}, removing {_WHO[kind]}")
    ),
    ("specific", pa.bool_(), "difference_high < 0"),
)


def margin_effects(
    logits_from_acts: Callable,
    dictionary,
    batches: Iterable,
    *,
    labels: np.ndarray,
    features: np.ndarray,
    root: np.ndarray | None = None,
    key: jax.Array | None = None,
    on_batch: Callable[[int], None] = lambda n_images: None,
) -> np.ndarray:
    """Change of the label's margin when a feature is removed everywhere, [n_images, K].

    Args:
      logits_from_acts: acts [B, H, W, C] -> logits [B, L]; a pytree or a plain function.
      dictionary: a pytree with encode and w_dec [F, C].
      batches: yields (start, acts [B, H, W, C] raw, mask [B]) over the split.
      labels: int [n_images], -1 for unknown: NaN.
      features: [K].
      root, key: of `controls.draw_directions`; if given, a direction of equal norm takes the feature's place.
      on_batch: called with the number of images after each batch.
    """
    logits_from_acts = as_argument(logits_from_acts)
    features, found = jnp.asarray(features, jnp.int32), []
    for start, acts, mask in batches:
        n = int(np.sum(np.asarray(mask) > 0))
        of_batch = np.zeros(len(acts), np.int32)
        of_batch[:n] = labels[start : start + n]
        images = jnp.asarray(start + np.arange(len(acts)), jnp.int32)
        deltas = _remove(
            logits_from_acts, dictionary, acts, jnp.maximum(of_batch, 0), features, images, root, key
        )
        found.append(np.where(of_batch[:n, None] >= 0, np.asarray(deltas)[:n], np.nan))
        on_batch(n)
    return np.concatenate(found)


@jax.jit
def _remove(logits_from_acts, dictionary, acts, labels, features, images, root, key) -> jax.Array:
    with jax.default_matmul_precision("float32"):
        feats = dictionary.encode(acts)  # [B, H, W, F]

        def margin(acts):
            return metrics.measures(logits_from_acts(acts), labels)["margin"]

        def without(feature):
            vectors = jnp.broadcast_to(dictionary.w_dec[feature][None, :], (len(acts), acts.shape[-1]))
            if root is not None:
                drawn = controls.draw_directions(key, root, jnp.full(len(acts), feature), images)
                vectors = drawn * jnp.linalg.norm(vectors, axis=-1, keepdims=True)
            return margin(edits.subtract(acts, feats[..., feature][..., None] * vectors[:, None, None, :]))

        return (jax.lax.map(without, features) - margin(edits.subtract(acts, 0 * acts))[None, :]).T


def columns(
    found: dict, effects: dict, has_part: np.ndarray, labels: np.ndarray, *, n_bootstrap: int, seed: int
):
    """Columns of `SCHEMA`, one row for each part that some variants have and others do not.

    Args:
      found: columns of parts.parquet as arrays, P rows, "aircraft" last.
      effects: kind of KINDS -> [n_images, P], from `margin_effects` of what was chosen for each part.
      has_part: bool [L, P], which variants have which part.
      labels: int [n_images].
      n_bootstrap, seed: of the intervals.
    """
    rows = [p for p in range(has_part.shape[1]) if has_part[:, p].any() and not has_part[:, p].all()]
    result = {name: np.asarray(found[name])[rows] for name in found}
    known = labels >= 0
    result |= {"n_with": [], "n_without": []} | {
        f"{kind}{name}{end}": []
        for kind in KINDS
        for name in ("with_delta_margin", "without_delta_margin", "difference")
        for end in ("", "_low", "_high")
    }
    for p in rows:
        with_part = known & has_part[labels, p]
        without = known & ~has_part[labels, p]
        result["n_with"].append(int(with_part.sum()))
        result["n_without"].append(int(without.sum()))
        for kind in KINDS:
            deltas = effects[kind][:, p]
            rng = np.random.default_rng([seed, 6, p])
            for name, numbers in (
                ("with_delta_margin", statistics.mean_interval(deltas[with_part], n_bootstrap, rng)),
                ("without_delta_margin", statistics.mean_interval(deltas[without], n_bootstrap, rng)),
                (
                    "difference",
                    statistics.difference_interval(deltas[with_part], deltas[without], n_bootstrap, rng),
                ),
            ):
                for end, number in zip(("", "_low", "_high"), numbers, strict=True):
                    result[f"{kind}{name}{end}"].append(float(number))
    result = {name: values if name in found else np.array(values) for name, values in result.items()}
    return result | {"specific": result["difference_high"] < 0}


def variants_with(has: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """Which classes have which part, bool [L, P]: those that show it in most of their images; has [n, P]."""
    shares = np.array(
        [has[labels == c].mean(0) if (labels == c).any() else 0 * has[0] for c in range(n_classes)]
    )
    return shares > 0.5


def headline(columns: dict) -> dict:
    """The stage's results: how many parts there are, are found, hurt the right variants, and both."""
    both = columns["found"] & columns["specific"]
    counts = {
        "n_parts": len(both),
        "n_found": columns["found"].sum(),
        "n_specific": columns["specific"].sum(),
    }
    return {name: int(n) for name, n in (counts | {"n_found_and_specific": both.sum()}).items()}
