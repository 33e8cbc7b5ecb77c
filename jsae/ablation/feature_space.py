"""What single features do, in feature space: each is removed from the stored activations it fires on.

Every (feature, image) pair on which the feature fires gets seven forward passes from the site on: the clean
one; the feature removed at every position ("map") or at the cell of its peak only ("peak"); and for each of
the two scopes the two controls of `controls`. All seven take away s(y, x) * v from the activations, an
outer product of a map and a vector, so one compiled function with one batch shape serves them all, and an
intervention with s = 0 has an effect of exactly 0. Effects are intervened minus clean of the same pair.

The public edits of `jsae.edits` do the same one intervention at a time.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from jsae import edits, metrics
from jsae.ablation import controls
from jsae.classifier.forward import as_argument

SCOPES = ("map", "peak")
KINDS = ("effect", "direction", "feature")  # the feature itself, then its two controls
TARGETS = ("label", "prediction", "top_class")
MEASURES = ("logit", "margin", "confidence", "log_confidence")


@dataclasses.dataclass(frozen=True)
class FeatureEffects:
    """Effects of M (feature, image) pairs, on the host.

    Attributes:
      features: int32 [M], SAE feature numbers.
      images: int32 [M], image numbers of the split.
      peaks: int32 [M, 2], the feature's peak cell (y, x) on that image.
      deltas: float32 [M, scope, kind, target, measure], intervened minus clean; NaN where a measure or a
        target does not exist, and for the kind "feature" where no other feature fires on the image.
      flips: bool [M, scope, kind], the prediction changed; False where deltas are NaN for want of a control.
      matched: bool [M], whether another feature fires on the image.
      n_images: images of the split, fired on or not.
    """

    features: np.ndarray
    images: np.ndarray
    peaks: np.ndarray
    deltas: np.ndarray
    flips: np.ndarray
    matched: np.ndarray
    n_images: int


def measure(
    logits_from_acts: Callable,
    sae,
    batches: Iterable,
    *,
    labels: np.ndarray,
    features: np.ndarray,
    top_classes: np.ndarray,
    root: np.ndarray,
    key: jax.Array,
    pair_batch: int,
    on_batch: Callable[[int], None] = lambda n_images: None,
) -> FeatureEffects:
    """Effects and controls of each feature on every image on which it fires.

    Args:
      logits_from_acts: acts [B, H, W, C] -> logits [B, L]; a pytree or a plain function.
      sae: the SAE of the site.
      batches: yields (start, acts [B, H, W, C] raw, mask [B]) over the split, all of one B.
      labels: int [n_images].
      features: [K] feature numbers.
      top_classes: [K]; each feature's top class, -1 if it has none.
      root: [C, C], a root of the site's covariance (`controls.covariance_root`).
      key: a jax random key for the control directions.
      pair_batch: P, pairs a forward pass.
      on_batch: called with the number of images after each batch (progress, a stop asked for).
    """
    logits_from_acts = as_argument(logits_from_acts)
    features = np.asarray(features, np.int32)
    top_of = dict(zip(features.tolist(), np.asarray(top_classes).tolist(), strict=True))
    pending, done, grid, n_images = _Pending(), [], (1, 1), 0
    sae = jax.tree.map(jnp.asarray, sae)

    def run(pairs: dict) -> dict:
        tops = np.array([top_of[f] for f in pairs["feature"].tolist()], np.int32)
        targets = np.stack([labels[pairs["image"]], np.maximum(tops, 0)]).astype(np.int32)  # [2, P]
        full = {name: _pad(rows, pair_batch) for name, rows in pairs.items() if name != "matched"}
        deltas, flips, peaks = _intervene(
            logits_from_acts, sae.w_dec, root, key, targets=_pad(targets.T, pair_batch).T, **full
        )
        n = len(tops)
        deltas, flips = np.array(deltas)[:n], np.array(flips)[:n]
        deltas[tops < 0, :, :, TARGETS.index("top_class")] = np.nan
        deltas[~pairs["matched"], :, KINDS.index("feature")] = np.nan
        flips[~pairs["matched"], :, KINDS.index("feature")] = False
        return {
            "features": pairs["feature"],
            "images": pairs["image"],
            "peaks": np.stack(np.unravel_index(np.array(peaks)[:n], grid), 1).astype(np.int32),
            "deltas": deltas,
            "flips": flips,
            "matched": pairs["matched"],
        }

    for start, acts, mask in batches:
        n = int(np.sum(np.asarray(mask) > 0))
        grid, n_images = acts.shape[1:3], max(n_images, start + n)
        if len(features):
            pending.add(_active_pairs(sae, features, acts, start, n), start, acts)
        while len(pending) >= pair_batch:
            done.append(run(pending.take(pair_batch)))
        on_batch(n)
    if len(pending):
        done.append(run(pending.take(len(pending))))
    if not done:
        done = [_nothing()]
    joined = {name: np.concatenate([part[name] for part in done]) for name in done[0]}
    return FeatureEffects(**joined, n_images=n_images)


def _active_pairs(sae, features: np.ndarray, acts: np.ndarray, start: int, n: int) -> dict:
    """The pairs of one batch of images on which a feature fires, with their maps and matched features."""
    seen = {name: np.asarray(value) for name, value in _look(sae, features, acts).items()}  # each [K, B, ...]
    k, b = np.nonzero(seen["size"][:, :n].max((2, 3)) > 0)
    order = np.argsort(b, kind="stable")  # by image
    k, b = k[order], b[order]
    pairs = {name: value[k, b] for name, value in seen.items()}
    return pairs | {"feature": features[k], "image": (start + b).astype(np.int32)}


@jax.jit
def _look(sae, features: jax.Array, acts: jax.Array) -> dict:
    """Maps of the features on a batch of images, and their matched features, each [K, B, ...]."""
    feats = sae.encode(acts)  # [B, H, W, F]
    norms = jnp.linalg.norm(sae.w_dec, axis=-1)  # [F]
    strengths = {"map": feats.mean((1, 2)), "peak": feats.max((1, 2))}  # [B, F]

    def one(feature):
        found = {"size": feats[..., feature]}
        for scope in SCOPES:
            j, matched = controls.nearest_feature(strengths[scope], norms, feature)
            found[f"j_{scope}"] = j
            found[f"size_{scope}"] = jnp.take_along_axis(feats, j[:, None, None, None], axis=3)[..., 0]
        return found | {"matched": matched}

    return jax.lax.map(one, features)


@jax.jit
def _intervene(
    logits_from_acts,
    w_dec: jax.Array,
    root: jax.Array,
    key: jax.Array,
    *,
    acts: jax.Array,
    feature: jax.Array,
    image: jax.Array,
    size: jax.Array,
    j_map: jax.Array,
    size_map: jax.Array,
    j_peak: jax.Array,
    size_peak: jax.Array,
    targets: jax.Array,
):
    """Effects of P pairs.

    Args:
      acts: [P, H, W, C]; feature, image, j_map, j_peak: int32 [P]; size, size_map, size_peak: maps
        [P, H, W] of the feature and of the matched feature of each scope, raw units.
      targets: int32 [2, P], label and top class; the prediction is the clean pass's own.

    Returns:
      deltas [P, scope, kind, target, measure], flips [P, scope, kind], peak cells [P] (flat).
    """
    direction = controls.draw_directions(key, root, feature, image)
    direction *= jnp.linalg.norm(w_dec[feature], axis=-1)[:, None]
    at_peak = at_peak_only(size)
    sizes = [jnp.zeros_like(size), size, size, size_map, at_peak, at_peak, at_peak_only(size_peak)]
    vectors = [w_dec[feature], w_dec[feature], direction, w_dec[j_map]]
    vectors += [w_dec[feature], direction, w_dec[j_peak]]

    def logits_without(intervention):
        s, v = intervention
        return logits_from_acts(edits.subtract(acts, s[..., None] * v[:, None, None, :]))

    logits = jax.lax.map(logits_without, (jnp.stack(sizes), jnp.stack(vectors)))  # [7, P, L]
    predictions = jnp.argmax(logits, -1)  # [7, P]
    targets = jnp.stack([targets[0], predictions[0].astype(jnp.int32), targets[1]])  # TARGETS, P
    values = jax.vmap(lambda rows: jax.vmap(lambda target: measures(rows, target))(targets))(logits)
    deltas = (values[1:] - values[:1]).reshape(len(SCOPES), len(KINDS), *values.shape[1:])
    flips = (predictions[1:] != predictions[:1]).reshape(len(SCOPES), len(KINDS), -1)
    peaks = jnp.argmax(size.reshape(size.shape[0], -1), -1)
    return jnp.moveaxis(deltas, -1, 0), jnp.moveaxis(flips, -1, 0), peaks


def measures(logits: jax.Array, target: jax.Array) -> jax.Array:
    """The MEASURES of logits [P, L] for target [P], stacked: [measure, P]."""
    values = metrics.measures(logits, target)
    return jnp.stack([values[name] for name in MEASURES])


def at_peak_only(maps: jax.Array) -> jax.Array:
    """Maps [P, H, W] with all but the first largest cell set to 0."""
    flat = maps.reshape(maps.shape[0], -1)
    cells = jnp.arange(flat.shape[1])[None, :]
    return jnp.where(cells == jnp.argmax(flat, -1)[:, None], flat, 0).reshape(maps.shape)


class _Pending:
    """Pairs that wait until a forward pass is full, and the activations of their images only."""

    def __init__(self):
        self._parts, self._acts = {}, {}

    def __len__(self):
        return len(self._parts["image"]) if self._parts else 0

    def add(self, pairs: dict, start: int, acts: np.ndarray) -> None:
        old = self._parts
        self._parts = {k: np.concatenate([old[k], v]) if old else v for k, v in pairs.items()}
        self._acts |= {start + b: row for b, row in enumerate(np.asarray(acts))}
        self._forget()

    def take(self, n: int) -> dict:
        taken = {k: v[:n] for k, v in self._parts.items()}
        taken["acts"] = np.stack([self._acts[i] for i in taken["image"].tolist()])
        self._parts = {k: v[n:] for k, v in self._parts.items()}
        self._forget()
        return taken

    def _forget(self) -> None:
        needed = set(self._parts["image"].tolist())
        self._acts = {i: row for i, row in self._acts.items() if i in needed}


def _pad(rows: np.ndarray, n: int) -> np.ndarray:
    """The rows, and as many zero rows as make n."""
    return np.concatenate([rows, np.zeros((n - len(rows), *rows.shape[1:]), rows.dtype)])


@functools.cache
def _nothing() -> dict:
    shape = (0, len(SCOPES), len(KINDS))
    return {
        "features": np.zeros(0, np.int32),
        "images": np.zeros(0, np.int32),
        "peaks": np.zeros((0, 2), np.int32),
        "deltas": np.zeros((*shape, len(TARGETS), len(MEASURES)), np.float32),
        "flips": np.zeros(shape, bool),
        "matched": np.zeros(0, bool),
    }
