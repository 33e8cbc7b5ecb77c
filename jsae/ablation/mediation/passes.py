"""Total effects of changed images, and what of them goes by way of few features (`jsae.metrics.mediation`).

A pass over train images ranks the features by their single natural indirect effects: exactly and all at once
where only pooling and a linear head follow on the site (`closed_form`: setting a feature to its changed
values removes as much of it as the mean over the grid of f - f~), elsewhere to first order, by the mean of
the target's gradients at the clean and at the changed image. A pass over test images then scores the first m
of them, beside random features that change as much, by setting them in the activations and running the rest
of the network. The features of a set are set together; single effects are not added up.

The target y of an image is the margin of its label: to the best other class, and of rendered images to the
twin's class (a contrast of two logits, as for counterfactual pairs). Images are dealt over the devices, and a
dictionary that is dealt stays so. Ranking keeps [n, input, F] on the host.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jsae import metrics
from jsae.ablation.all_features import closed_form
from jsae.ablation.effects import MEASURES
from jsae.ablation.mediation.changed import BEST_OTHER, Change, ChangedImages
from jsae.classifier import Head
from jsae.classifier.forward import as_argument
from jsae.runtime import mesh as meshes
from jsae.runtime.batches import map_rows
from jsae.sae import dealt

SIZES = (1, 4, 16, 32)  # m, of sets of features
N_RANDOM = 4  # random sets beside each
_N_NEAREST = 4  # features of nearest size, one of which stands for a chosen one


class Scores(NamedTuple):
    """Effects of n test images on the host, in units of the logits; NaN where an image has no such input.

    Attributes:
      names: of the inputs.
      area: what was blurred or masked: "mask", "box" or "image".
      sizes: m of each set of chosen features, the last one F: all of them.
      totals: TE [n, input].
      chosen, necessity: NIE_S and necessity_S of the chosen sets [n, input, m].
      random: NIE of random sets as large, mean over them [n, input, m]; NaN where there are none.
      size_ratio: mean size of the random features over that of the chosen ones [input, m].
      changed: share of the image that is changed [n, input].
    """

    names: tuple[str, ...]
    area: str
    sizes: tuple[int, ...]
    totals: np.ndarray
    chosen: np.ndarray
    necessity: np.ndarray
    random: np.ndarray
    size_ratio: np.ndarray
    changed: np.ndarray


def measure(
    forward: Callable,
    logits_from_acts: Callable,
    head: Head | None,
    dictionary: Any,
    train: ChangedImages,
    test: ChangedImages,
    change: Change,
    *,
    seed: int,
    **settings: Any,
) -> Scores:
    """Features chosen on train images, and their part in the effects of changing test images.

    Args:
      forward: images [B, S, S, 3] normalised -> (anything, acts [B, H, W, C]).
      logits_from_acts: acts [B, H, W, C] -> logits [B, L].
      head: of the site before pooling, by which single effects are exact; None: to first order.
      dictionary: the SAE of the site.
      train, test: images with the same inputs.
      change: what they become.
      seed: of the random features.
      settings: of `map_rows`: batch_size, mesh, context.
    """

    def on_devices(tree):
        mesh = settings.get("mesh")
        return tree if mesh is None else meshes.replicate(mesh, tree)

    forward, logits_from_acts, head, dictionary, change = on_devices(
        (as_argument(forward), as_argument(logits_from_acts), head, dictionary, change)
    )

    def rank_batch(batch):
        acts, _ = _activations(forward, change, batch)
        return _rank(logits_from_acts, head, dictionary, acts, batch)

    ranked = map_rows(rank_batch, train.read, len(train.numbers), label="mediation: train", **settings)
    share, size = rank(**ranked, known=train.known)  # [input, F] each
    sizes = tuple(m for m in SIZES if m < max(share.shape[1], 2))
    rng = np.random.default_rng([seed, 0x6D6564])
    sets = [np.stack([choose_sets(*one, m, rng) for one in zip(share, size, strict=True)]) for m in sizes]
    features = on_devices(tuple(np.maximum(of_m, 0) for of_m in sets))  # [input, 1 + N_RANDOM, m] each

    def score_batch(batch):
        acts, changed = _activations(forward, change, batch)
        return _score(logits_from_acts, dictionary, features, acts, batch) | {"changed": changed}

    scored = map_rows(score_batch, test.read, len(test.numbers), label="mediation: test", **settings)
    ratios = [[_ratio(*one) for one in zip(size, of_m, strict=True)] for of_m in sets]
    return _scores(scored, np.array(ratios).T, test, (*sizes, share.shape[1]))


def _scores(scored: dict[str, np.ndarray], ratios: np.ndarray, test: ChangedImages, sizes: tuple) -> Scores:
    """What `_score` found, unknown where an image has no such input; all features come behind the sets."""
    known = np.where(test.known, 1.0, np.nan)

    def with_all(of_sets, of_all):
        return known[..., None] * np.concatenate([of_sets, of_all[..., None]], -1)

    unknown = np.full(known.shape, np.nan)
    effects = scored["effects"]
    return Scores(
        names=test.names,
        area=test.area,
        sizes=sizes,
        totals=known * scored["totals"],
        chosen=with_all(effects[..., 0], scored["all"]),
        necessity=with_all(scored["necessity"], scored["all_necessity"]),
        random=with_all(np.where(np.isnan(ratios)[None], np.nan, effects[..., 1:].mean(-1)), unknown),
        size_ratio=np.pad(ratios, ((0, 0), (0, 1)), constant_values=np.nan),
        changed=known * scored["changed"],
    )


def rank(
    totals: np.ndarray, effects: np.ndarray, sizes: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the train images say of every feature, for each input.

    Args:
      totals: TE [n, input].
      effects: single natural indirect effects [n, input, F].
      sizes: mean over the cells of |f~ - f|, times ||w|| [n, input, F].
      known: bool [n, input], which images have the input.

    Returns:
      share float64 [input, F], the sum of effects over that of totals, NaN where that is 0; size, the mean.
    """
    inputs = [(totals[rows, i], effects[rows, i].T, sizes[rows, i]) for i, rows in enumerate(known.T)]
    share = np.stack([metrics.carried_share(of_features, total) for total, of_features, _ in inputs])
    return share, np.stack([of_features.mean(0, dtype=np.float64) for *_, of_features in inputs])


def choose_sets(share: np.ndarray, size: np.ndarray, m: int, rng: np.random.Generator) -> np.ndarray:
    """The m features of the largest shares, then N_RANDOM random sets of m others, int32 [1 + N_RANDOM, m].

    In place of each chosen feature a random set has one of the nearest in size that change at all and are
    not chosen, none twice; -1 where there are fewer than m of them.

    Args:
      share, size: [F], of the train images.
      m: at most F.
    """
    chosen = np.argsort(-np.nan_to_num(share), kind="stable")[:m]
    others = np.setdiff1d(np.flatnonzero(size > 0), chosen)
    sets = np.full((1 + N_RANDOM, m), -1, np.int32)
    sets[0] = chosen
    for row in sets[1:] if len(others) >= m else ():
        free = others
        for k, feature in enumerate(chosen):
            nearest = np.argsort(np.abs(size[free] - size[feature]), kind="stable")[:_N_NEAREST]
            row[k] = free[rng.choice(nearest)]
            free = free[free != row[k]]
    return sets


def _ratio(size: np.ndarray, sets: np.ndarray) -> float:
    """Mean size of the random features of some sets over that of the chosen ones; NaN without any."""
    of_chosen = size[sets[0]].mean()
    return float(size[sets[1:]].mean() / of_chosen) if (sets >= 0).all() and of_chosen > 0 else np.nan


def target(logits: jax.Array, labels: jax.Array, rivals: jax.Array) -> jax.Array:
    """y [B] of logits [B, L]: that of the label minus that of the rival, or of the best other class."""
    margin = metrics.measures(logits, labels)["margin"]
    of_rival = jnp.take_along_axis(logits, jnp.maximum(rivals, 0)[:, None], 1)[:, 0]
    of_label = jnp.take_along_axis(logits, labels[:, None], 1)[:, 0]
    return jnp.where(rivals == BEST_OTHER, margin, of_label - of_rival)


def single_effects(
    head: Head, dictionary: Any, pooled: jax.Array, moved: jax.Array, labels: jax.Array, rivals: jax.Array
) -> jax.Array:
    """NIE of every feature by itself, [B, F], in closed form; traced.

    Args:
      head: the classifier's head.
      dictionary: the SAE of the site before pooling.
      pooled: mean over the grid of the clean activations [B, C].
      moved: mean over the grid of f~ - f [B, F].
      labels, rivals: int [B].
    """

    def of_shard(head, w_dec, pooled, moved, labels, rivals):
        classes = (labels, jnp.maximum(rivals, 0), jnp.zeros(len(w_dec), jnp.int32))
        to = ("label", "prediction")  # the rival takes the place of the prediction
        found = closed_form.effects(head, w_dec, pooled, -moved, *classes, targets=to).deltas
        logit, margin = (MEASURES.index(name) for name in ("logit", "margin"))
        contrast = found[0, logit] - found[1, logit]
        return jnp.where(rivals[:, None] == BEST_OTHER, found[0, margin], contrast)

    image, feature, both = (PartitionSpec(*axes) for axes in (("data",), ("model",), ("data", "model")))
    specs = (PartitionSpec(), feature, image, both, image, image)
    dealt_effects = dealt.map_shards(of_shard, dealt.mesh_of(dictionary), specs, both)
    return dealt_effects(head, dictionary.w_dec, pooled, moved, labels, rivals)


@jax.jit
def _activations(forward, change, batch) -> tuple[jax.Array, jax.Array]:
    """(acts [1 + input, B, H, W, C] of the clean images, then of each input, changed share [B, input])."""
    with jax.default_matmul_precision("float32"):
        clean, changed, shares = change(batch)
        images = jnp.concatenate([clean[None], changed])
        return jax.lax.map(lambda each: forward(each)[1], images), shares.T  # one after the other


@jax.jit
def _rank(logits_from_acts, head, dictionary, acts, batch) -> dict[str, jax.Array]:
    """totals [B, input], effects and sizes [B, input, F] of single features."""
    labels, w_dec = batch["labels"], dictionary.w_dec

    def of_input(clean, feats, other, rivals):
        def y(acts):
            return target(logits_from_acts(acts), labels, rivals)

        moved = dictionary.encode(other) - feats  # [B, H, W, F]
        if head is not None:
            pooled = clean.mean((1, 2)), moved.mean((1, 2))
            effects = single_effects(head, dictionary, *pooled, labels, rivals)
        else:
            gradients = (jax.grad(lambda acts: y(acts).sum())(each) for each in (clean, other))
            effects = (jnp.matmul(sum(gradients) / 2, w_dec.T) * moved).sum((1, 2))
        sizes = jnp.abs(moved).mean((1, 2)) * jnp.linalg.norm(w_dec, axis=-1)[None, :]
        return {"totals": y(other) - y(clean), "effects": effects, "sizes": sizes}

    return _over_inputs(of_input, dictionary, acts, batch["rivals"].T)


@jax.jit
def _score(logits_from_acts, dictionary, features, acts, batch) -> dict[str, jax.Array]:
    """totals, all and all_necessity [B, input], necessity [B, input, m], effects [B, input, m, set].

    Args:
      features: for each m int [input, set, m], the chosen features first.
    """
    labels = batch["labels"]

    def of_input(clean, feats, other, rivals, features):
        def y(acts):
            return target(logits_from_acts(acts), labels, rivals)

        moved = dictionary.encode(other) - feats  # [B, H, W, F]
        before, after = y(clean), y(other)
        effects, necessity = [], []
        for sets in features:  # [set, m]
            maps = dealt.feature_maps(dictionary, moved, sets.reshape(-1))
            maps = maps.reshape(*maps.shape[:3], *sets.shape)  # [B, H, W, set, m]
            carried = jnp.einsum("bhwsm,smc->sbhwc", maps, dealt.decoder_rows(dictionary, sets))
            effects.append(jax.lax.map(lambda each: y(clean + each) - before, carried))
            necessity.append(after - y(other - carried[0]))
        carried = jnp.matmul(moved, dictionary.w_dec)
        return {
            "totals": after - before,
            "all": y(clean + carried) - before,
            "all_necessity": after - y(other - carried),
            "effects": jnp.moveaxis(jnp.stack(effects), -1, 0),
            "necessity": jnp.stack(necessity, -1),
        }

    return _over_inputs(of_input, dictionary, acts, batch["rivals"].T, features)


def _over_inputs(of_input, dictionary, acts, *by_input) -> dict[str, jax.Array]:
    """What `of_input` returns for every input [B, input, ...], one after the other."""
    with jax.default_matmul_precision("float32"):
        feats = dictionary.encode(acts[0])
        each = (acts[1:], *by_input)
        found = jax.lax.map(lambda each: of_input(acts[0], feats, *each), each)
    return {name: jnp.moveaxis(array, 0, 1) for name, array in found.items()}
