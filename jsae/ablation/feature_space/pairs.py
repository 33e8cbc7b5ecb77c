"""What single features do, in feature space: each is removed from the stored activations it fires on.

Every (feature, image) pair on which the feature fires gets nine forward passes from the site on: the clean
one; the feature removed at every position ("map") or at the cell of its peak only ("peak"); and for each of
the two scopes the three controls of `controls`. All nine take away s(y, x) * v from the activations, an
outer product of a map and a vector, so one compiled function with one batch shape serves them all, and an
intervention with s = 0 has an effect of exactly 0. Effects are intervened minus clean of the same pair.

`FindPairs` is a reducer of a pass over the split: it finds the pairs and their maps, and `effects_of_pairs`
runs the interventions on them, dealt over the devices. The public edits of `jsae.edits` do the same one
intervention at a time.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jsae import edits
from jsae.ablation.effects import MEASURES, TARGETS, Named, changes, flips_of, make_effects
from jsae.ablation.feature_space import controls
from jsae.activations import Encoded, Reducer
from jsae.classifier.forward import as_argument
from jsae.runtime import mesh as meshes
from jsae.runtime.batches import map_rows
from jsae.runtime.pytrees import pytree
from jsae.sae import dealt

SCOPES = ("map", "peak")
KINDS = ("effect", "direction", "auroc", "feature")  # the feature itself, then its controls


@dataclasses.dataclass(frozen=True)
class FeatureEffects:
    """Effects of M (feature, image) pairs, on the host.

    Attributes:
      features: int32 [M], SAE feature numbers.
      images: int32 [M], image numbers of the split.
      own_class: bool [M], the image is of the feature's top class.
      norms: float32 [M], size of what the scope "map" removes, mean over the grid of f times ||w_dec||.
      control_auroc: [M], train AUROC of the feature's control "auroc" for its top class.
      deltas: float32 [M, scope, kind, target, measure], intervened minus clean; NaN where a measure or a
        target does not exist, or the image has no such control.
      flips: bool [M, scope, kind], the prediction changed; False where there is no such control.
      has: bool [M, kind], whether the image has that control.
      n_images: images of the split, fired on or not.
    """

    features: np.ndarray
    images: np.ndarray
    own_class: np.ndarray
    norms: np.ndarray
    control_auroc: np.ndarray
    deltas: Named
    flips: Named
    has: Named
    n_images: int


@pytree
class FindPairs(Reducer):
    """The pairs on which one of `features` int32 [K] fires, by image, with what is removed of them.

    The result is a dict of arrays with M rows: "feature" and "image", numbers; "size" [M, H, W], the
    feature's map in raw units; for each scope "j_SCOPE", the feature matched to it, and its map "size_SCOPE";
    "matched", whether there is one. "n_images" is how many images the pass had.
    """

    features: jax.Array | np.ndarray

    def start(self, store: Any, dictionary: Any, images: np.ndarray) -> tuple[int, list]:
        return len(images), []

    def step(self, dictionary: Any, carry: Any, batch: Encoded) -> tuple[Any, tuple[jax.Array, dict]]:
        feats = batch.feats
        norms = jnp.linalg.norm(dictionary.w_dec, axis=-1)  # [F]
        strengths = {"map": feats.mean((1, 2)), "peak": feats.max((1, 2))}  # [B, F]

        def one(feature):
            found = {}
            for scope in SCOPES:
                j, found["matched"] = controls.nearest_feature(strengths[scope], norms, feature)
                found |= {f"j_{scope}": j, f"size_{scope}": dealt.map_per_image(dictionary, feats, j)}
            return found

        maps = dealt.feature_maps(dictionary, feats, self.features)
        found = jax.lax.map(one, self.features) | {"size": jnp.moveaxis(maps, -1, 0)}  # [K, B, ...]
        return carry, (batch.images, found)

    def add(self, total: tuple[int, list], part: tuple, rows: slice, n: int) -> tuple[int, list]:
        images, found = part
        b, k = np.nonzero(found["size"][:, :n].max((2, 3)).T > 0)  # by image
        pairs = {name: value[k, b] for name, value in found.items()}
        total[1].append(pairs | {"feature": np.asarray(self.features, np.int32)[k], "image": images[b]})
        return total

    def finish(self, carry: Any, total: tuple[int, list]) -> dict[str, Any]:
        n_images, parts = total
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return joined | {"n_images": n_images}


def effects_of_pairs(
    logits_from_acts: Callable,
    dictionary: Any,
    store: Any,
    pairs: dict[str, Any],
    *,
    top_classes: np.ndarray,
    auroc_train: np.ndarray,
    candidates: controls.Candidates,
    mean: np.ndarray,
    root: np.ndarray,
    key: jax.Array,
    **settings: Any,
) -> FeatureEffects:
    """Effects and controls of each pair.

    Args:
      logits_from_acts: acts [P, H, W, C] -> logits [P, L]; a pytree or a plain function.
      dictionary: the SAE of the site.
      store: activation store of the split: read(), labels.
      pairs: from `FindPairs`.
      top_classes: of all features, int [F]; -1 for one without.
      auroc_train: of all features for these classes on train [F], NaN where unknown.
      candidates: for the control "auroc".
      mean: mu [C], of the site's train activations.
      root: [C, C], a root of their covariance (`controls.root_of`).
      key: a jax random key for the control directions.
      settings: of `map_rows`: batch_size, mesh, context, label.
    """
    tops = top_classes[pairs["feature"]]
    features, place = np.unique(pairs["feature"], return_inverse=True)
    directions, control_auroc = candidates.nearest(top_classes[features], auroc_train[features])
    maps = ("size", *(f"{name}_{scope}" for scope in SCOPES for name in ("j", "size")))
    arrays = {name: pairs[name] for name in ("feature", "image", *maps)}
    arrays |= {"label": store.labels[pairs["image"]], "top_class": np.maximum(tops, 0)}

    def read(rows):
        images, of_row = np.unique(pairs["image"][rows], return_inverse=True)
        acts = np.concatenate([store.read(i, i + 1) for i in images.tolist()])
        read = {name: value[rows] for name, value in arrays.items()}
        return read | {"acts": acts[of_row], "auroc": directions[place[rows]]}

    fixed = (as_argument(logits_from_acts), dictionary, np.asarray(mean, np.float32), root, key)
    if settings.get("mesh") is not None:
        fixed = meshes.replicate(settings["mesh"], fixed)
    step = functools.partial(_remove, *fixed)
    found = map_rows(step, read, len(tops), unit="pair", **settings) or _nothing()
    axes = {"scope": SCOPES, "kind": KINDS}
    deltas, flips = make_effects(found["deltas"], found["flips"], **axes)
    deltas.forget(arrays["label"] < 0, target="label")
    deltas.forget(tops < 0, target="top_class")
    has = np.ones((len(tops), len(KINDS)), bool)
    has[:, 1:] = np.concatenate([found["there"], pairs["matched"][:, None]], axis=1)
    for i, kind in enumerate(KINDS):
        for each in (deltas, flips):
            each.forget(~has[:, i], kind=kind)
    return FeatureEffects(
        features=pairs["feature"],
        images=pairs["image"],
        own_class=(arrays["label"] == tops) & (tops >= 0),
        norms=found["norm"],
        control_auroc=control_auroc[place],
        deltas=deltas,
        flips=flips,
        has=Named(has, {"kind": KINDS}),
        n_images=pairs["n_images"],
    )


@jax.jit
def _remove(logits_from_acts, dictionary, mean, root, key, pairs: dict) -> dict:
    """Effects of P pairs.

    Args:
      pairs: acts [P, H, W, C] of the pair's image; feature, image, j_SCOPE, label, top_class: int32 [P];
        size, size_SCOPE: maps [P, H, W] of the feature and of the matched feature of each scope, raw units;
        auroc [P, C], the direction of that control.

    Returns:
      deltas [P, scope, kind, target, measure], flips [P, scope, kind], there [P, 2]:
      whether the image has something along the controls "direction" and "auroc", norm [P].
    """
    acts, size = pairs["acts"], pairs["size"]
    vector = dealt.decoder_rows(dictionary, pairs["feature"])
    norm = jnp.linalg.norm(vector, axis=-1)  # [P]
    direction = controls.draw_directions(key, root, pairs["feature"], pairs["image"])
    along = controls.along(acts, mean, direction)
    sign = jnp.where(along.sum((1, 2)) < 0, -1.0, 1.0)  # more is there on this side
    along, direction = jax.nn.relu(along * sign[:, None, None]), direction * sign[:, None]
    along_auroc = jax.nn.relu(controls.along(acts, mean, pairs["auroc"]))
    sizes, vectors = [jnp.zeros_like(size)], [vector]
    for scope in SCOPES:
        removed = [size, along, along_auroc, pairs[f"size_{scope}"]]  # in the order of KINDS
        removed = [at_peak_only(s) for s in removed] if scope == "peak" else removed
        amount = removed[0].sum((1, 2)) * norm
        removed[1:3] = [controls.of_size(each, amount) for each in removed[1:3]]
        sizes += removed
        vectors += [vector, direction, pairs["auroc"], dealt.decoder_rows(dictionary, pairs[f"j_{scope}"])]

    def logits_without(intervention):
        s, v = intervention
        return logits_from_acts(edits.subtract(acts, s[..., None] * v[:, None, None, :]))

    with jax.default_matmul_precision("float32"):
        logits = jax.lax.map(logits_without, (jnp.stack(sizes), jnp.stack(vectors)))  # [9, P, L]
    clean, changed = logits[0], logits[1:].reshape(len(SCOPES), len(KINDS), *logits.shape[1:])
    prediction = jnp.argmax(clean, -1)
    targets = jnp.stack([pairs["label"], prediction.astype(jnp.int32), pairs["top_class"]])  # TARGETS, P
    return {
        "deltas": jnp.moveaxis(changes(clean, changed, targets), -1, 0),
        "flips": jnp.moveaxis(flips_of(prediction, changed), -1, 0),
        "there": jnp.stack([each.max((1, 2)) > 0 for each in (along, along_auroc)], -1),
        "norm": size.mean((1, 2)) * norm,
    }


def at_peak_only(maps: jax.Array) -> jax.Array:
    """Maps [P, H, W] with all but the first largest cell set to 0."""
    flat = maps.reshape(maps.shape[0], -1)
    cells = jnp.arange(flat.shape[1])[None, :]
    return jnp.where(cells == jnp.argmax(flat, -1)[:, None], flat, 0).reshape(maps.shape)


def _nothing() -> dict:
    shape = (0, len(SCOPES), len(KINDS))
    return {
        "deltas": np.zeros((*shape, len(TARGETS), len(MEASURES)), np.float32),
        "flips": np.zeros(shape, bool),
        "there": np.zeros((0, 2), bool),
        "norm": np.zeros(0, np.float32),
    }
