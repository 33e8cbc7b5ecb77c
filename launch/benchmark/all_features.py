"""The section `all_features` of the benchmark: how fast the closed form is, and how near to the forward pass.

`rates` is on random numbers, every pair active. `study` opens a finished study of the final site and compares
1,000 of its active (feature, image) pairs, the 100 with the largest a * ||w|| among them, with the forward
pass from the stored activations, the feature edited out; then it times the stage's pass over the test split.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

import jsae
from jsae import classifier, edits
from jsae.ablation.all_features import closed_form
from jsae.ablation.all_features.reducer import MeasureAllFeatures
from jsae.ablation.effects import MEASURES, TARGETS, measures_of
from jsae.activations import run_pass

N_PAIRS, N_STRONGEST = 1000, 100
_BATCH = 128  # images


def rates(
    alternate,
    rounds: int,
    n_images: int = 256,
    n_features: int = 6144,
    n_channels: int = 768,
    n_classes: int = 100,
) -> dict:
    """Ablations/s of the closed form on random numbers, all pairs active, moments over images included."""
    keys = jax.random.split(jax.random.key(0), 6)
    rows = jax.random.normal(keys[0], (n_features, n_channels))
    pooled = jax.random.normal(keys[1], (n_images, n_channels))
    head = classifier.Head(
        kernel=jax.random.normal(keys[2], (n_channels, n_classes)) / n_channels**0.5,
        offset=jnp.zeros(n_classes),
        norm=classifier.HeadNorm(jnp.ones(n_channels), jnp.zeros(n_channels), 1e-6),
    )
    arguments = (
        head,
        rows / jnp.linalg.norm(rows, axis=-1, keepdims=True),
        pooled,
        0.01 + 2 * jax.random.exponential(keys[3], (n_images, n_features)),
        jax.random.randint(keys[4], (n_images,), 0, n_classes),
        jnp.argmax(classifier.head_logits(head, pooled), -1),
        jax.random.randint(keys[5], (n_features,), 0, n_classes),
    )
    together = {"groups": jnp.zeros(n_images, jnp.int32), "n_groups": 1}
    variants = {
        "label": lambda: closed_form.moments(*arguments, **together, targets=("label",)),
        "three_targets": lambda: closed_form.moments(*arguments, **together, targets=TARGETS),
    }
    found = alternate(variants, n_images * n_features, rounds)
    return {
        "ablations_per_s": found["label"],
        "three_targets_ablations_per_s": found["three_targets"],
        "n_guarded": int(variants["label"]()[1]),
        "n_pairs": n_images * n_features,
    }


def study(workdir, rounds: int) -> dict:
    """`against_forward_pass` of a study's test images, and pairs and seconds of the stage's pass over them.

    The seconds are those of the whole pass without compiling: three scopes, moments by class, joint removals.
    Raises ValueError if its site is not the final one.
    """
    opened = jsae.load(workdir)
    last = opened.classifier.params.model.sites[-1]
    if opened.site != last:
        raise ValueError(f"{workdir} is a study of {opened.site}; the closed form is of {last}")
    params, sae, store = opened.classifier.params, opened.sae, opened.activations("test")
    found = opened.table("features")["top_class"].to_pylist()
    tops = np.array([-1 if top is None else top for top in found], np.int32)
    row = against_forward_pass(params, sae, store, tops)
    head = params.model.linear_head(params.variables)
    block = closed_form.block_features(_BATCH, len(head.offset), jax.local_devices()[0].platform)
    reducer = MeasureAllFeatures(head, tops, jax.random.key(0), n_joint=32, block=block)
    seconds = []
    for _ in range(1 + rounds):
        start = time.monotonic()
        run_pass(store, sae, {"all_features": reducer}, batch_size=_BATCH)
        seconds.append(time.monotonic() - start)
    return row | {"pass_seconds": statistics.median(seconds[1:])}


def against_forward_pass(
    params, sae, store, top_classes, *, n_pairs=N_PAIRS, n_strongest=N_STRONGEST
) -> dict:
    """The closed form beside the forward pass in which the feature is edited out, on active pairs.

    Args:
      params, sae: classifier and SAE of the final site.
      store: activation store of the images, with labels and predictions.
      top_classes: int [F], -1 for a feature without one.
      n_pairs, n_strongest: pairs compared; how many of them are those with the largest a * ||w||, the others
        being drawn at random.

    Returns:
      n_pairs (all), n_active_pairs, n_guarded, n_silent_not_zero (silent pairs with an effect other than 0),
      n_compared, smallest_share_left (of |P|^2 in a pair compared; guarded below closed_form.GUARD),
      largest_logit (of the clean images), n_flips_differing, and for each measure largest_difference_MEASURE:
      the largest |closed form - forward pass| over pairs and targets.
    """
    head, tops = params.model.linear_head(params.variables), np.maximum(top_classes, 0).astype(np.int32)
    labels = np.maximum(store.labels, 0).astype(np.int32)
    encode = jax.jit(lambda sae, acts: sae.encode(acts).mean((1, 2)))
    with jax.default_matmul_precision("float32"):
        strength = np.concatenate(
            [np.asarray(encode(sae, batch.acts))[batch.mask > 0] for batch in store.batches(_BATCH)]
        )  # [n, F]
    pairs = _chosen(strength, np.linalg.norm(np.asarray(sae.w_dec), axis=-1), n_pairs, n_strongest)
    closed, flips = np.zeros((len(TARGETS), len(MEASURES), len(pairs))), np.zeros(len(pairs), bool)
    n_guarded = n_not_zero = 0
    for batch in store.batches(_BATCH):
        acts, rows, start = batch.acts, batch.images, int(batch.images[0])
        at = slice(start, start + int(batch.mask.sum()))
        present = strength[rows] * batch.mask[:, None]
        effects = closed_form.effects(
            head, sae.w_dec, acts.mean((1, 2)), present, labels[rows], store.predictions[rows], tops
        )
        deltas, n_guarded = np.asarray(effects.deltas), n_guarded + int(effects.n_guarded)
        n_not_zero += int(np.count_nonzero(deltas[:, :, present == 0]))
        mine = (pairs[:, 0] >= at.start) & (pairs[:, 0] < at.stop)
        image, feature = pairs[mine, 0] - start, pairs[mine, 1]
        closed[:, :, mine], flips[mine] = (
            deltas[:, :, image, feature],
            np.asarray(effects.flips)[image, feature],
        )
    acts = np.stack([store.read(i, i + 1)[0] for i in pairs[:, 0].tolist()])
    with jax.default_matmul_precision("float32"):
        clean, without = _forward(params, sae, acts, pairs[:, 1].astype(np.int32))
    targets = (labels[pairs[:, 0]], store.predictions[pairs[:, 0]], tops[pairs[:, 1]])
    expected = np.stack([measures_of(without, t) - measures_of(clean, t) for t in map(jnp.asarray, targets)])
    largest = np.abs(closed - expected).max((0, 2), initial=0)
    centred = acts.mean((1, 2)) - acts.mean((1, 2, 3))[:, None]
    taken = strength[tuple(pairs.T)][:, None] * np.asarray(sae.w_dec)[pairs[:, 1]]
    left = np.square(centred - taken + taken.mean(-1)[:, None]).sum(-1)
    flipped = np.asarray(without).argmax(-1) != store.predictions[pairs[:, 0]]
    return {
        "n_pairs": strength.size,
        "n_active_pairs": int(np.count_nonzero(strength)),
        "n_guarded": n_guarded,
        "n_silent_not_zero": n_not_zero,
        "n_compared": len(pairs),
        "smallest_share_left": float((left / np.square(centred).sum(-1)).min()),
        "largest_logit": float(np.abs(clean).max()),
        "n_flips_differing": int((flips != flipped).sum()),
    } | {f"largest_difference_{name}": float(value) for name, value in zip(MEASURES, largest, strict=True)}


def _chosen(strength, norms, n_pairs: int, n_strongest: int) -> np.ndarray:
    """(image, feature) [n, 2]: active pairs, the strongest first, then others at random."""
    active = np.flatnonzero(strength)
    order = active[np.argsort(-(strength * norms[None, :]).ravel()[active], kind="stable")]
    rest = np.random.default_rng(0).permutation(order[n_strongest:])[: n_pairs - n_strongest]
    return np.stack(np.unravel_index(np.concatenate([order[:n_strongest], rest]), strength.shape), -1)


@jax.jit
def _forward(params, sae, acts, features):
    """Logits of maps [n, H, W, C] as they are and with the feature [n] of each edited out, [n, L] each."""

    def one(pair):
        acts, feature = pair
        site = params.model.sites[-1]
        without = {site: edits.suppress(sae, feature[None])}
        return tuple(
            classifier.apply(params, acts[None], start=site, edits=chosen)[0][0] for chosen in (None, without)
        )

    return jax.lax.map(one, (acts, features))
