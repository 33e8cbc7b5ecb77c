"""The closed form's oracle: one pair at a time in numpy float64, subtracting first and normalising then."""

import jax
import jax.numpy as jnp
import numpy as np

from jsae import classifier, sae
from jsae.classifier import Head, HeadNorm

N_IMAGES, N_FEATURES, N_CHANNELS, N_CLASSES = 24, 37, 16, 5


def make_head(rng, n_channels=N_CHANNELS, n_classes=N_CLASSES, norm=True) -> Head:
    arrays = (
        rng.uniform(0.5, 2, n_channels),
        rng.normal(size=n_channels),
        rng.normal(size=(n_channels, n_classes)),
        rng.normal(size=n_classes),
    )
    scale, bias, kernel, offset = (np.asarray(a, np.float32) for a in arrays)
    return Head(kernel, offset, HeadNorm(scale, bias, 1e-3) if norm else None)


def make_case(seed=0, n_classes=N_CLASSES, norm=True) -> dict:
    """Arguments of `closed_form.effects` by name; a third of the pairs are silent."""
    rng = np.random.default_rng(seed)
    head = make_head(rng, n_classes=n_classes, norm=norm)
    w_dec = rng.normal(size=(N_FEATURES, N_CHANNELS)).astype(np.float32)
    w_dec /= np.linalg.norm(w_dec, axis=1, keepdims=True)
    pooled = (rng.normal(size=(N_IMAGES, N_CHANNELS)) + 3).astype(np.float32)
    strength = rng.exponential(2, (N_IMAGES, N_FEATURES)).astype(np.float32)
    strength[rng.random(strength.shape) < 1 / 3] = 0
    return {
        "head": head,
        "w_dec": w_dec,
        "pooled": pooled,
        "strength": strength,
        "labels": rng.integers(0, n_classes, N_IMAGES).astype(np.int32),
        "predictions": np.array([logits_of(head, p).argmax() for p in pooled], np.int32),
        "top_classes": rng.integers(0, n_classes, N_FEATURES).astype(np.int32),
    }


def logits_of(head, pooled) -> np.ndarray:
    if head.norm is None:
        return np.asarray(pooled, np.float64) @ head.kernel.astype(np.float64) + head.offset
    arrays = (head.norm.scale, head.norm.bias, head.kernel, head.offset)
    scale, bias, kernel, offset = (np.asarray(array, np.float64) for array in arrays)
    centred = np.asarray(pooled, np.float64) - np.mean(pooled, dtype=np.float64)
    return (centred / np.sqrt(np.mean(centred**2) + head.norm.eps) * scale + bias) @ kernel + offset


def measures_of(logits, target) -> np.ndarray:
    log_p = logits[target] - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    others = np.delete(logits, target)
    margin = logits[target] - others.max() if len(others) else np.nan
    return np.array([logits[target], margin, np.exp(log_p), log_p])


def naive(head, w_dec, pooled, strength, labels, predictions, top_classes):
    """deltas [target, measure, B, F] and flips [B, F]."""
    deltas = np.zeros((3, 4, *strength.shape))
    flips = np.zeros(strength.shape, bool)
    for b, f in np.ndindex(*strength.shape):
        if not strength[b, f]:
            continue
        clean = logits_of(head, pooled[b])
        without = logits_of(head, pooled[b].astype(np.float64) - float(strength[b, f]) * w_dec[f])
        flips[b, f] = without.argmax() != predictions[b]
        for t, target in enumerate((labels[b], predictions[b], top_classes[f])):
            deltas[t, :, b, f] = measures_of(without, target) - measures_of(clean, target)
    return deltas, flips


def make_network(n_classes=6):
    """(params, SAE, acts [40, 3, 3, 16]): strong weights, features that fire often and strongly."""
    arch = classifier.make_model("toy", n_classes, stem_stride=1, depths=(0, 0, 0, 1), dims=(4, 6, 8, 16))
    shapes = jax.eval_shape(lambda: classifier.init(jax.random.key(0), arch))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(0.5 * rng.normal(size=a.shape), jnp.float32), shapes)
    acts = rng.normal(size=(40, 3, 3, 16)) * rng.uniform(0.5, 3, 16)
    acts += 3 * rng.normal(size=(40, 1, 1, 16))  # what an image shares, so that one feature may carry it
    acts = acts.astype(np.float32)
    near = acts.mean((1, 2))[:20] * (1 + 0.03 * rng.normal(size=(20, 16)))  # what remains: a few hundredths
    rows = np.concatenate([near, rng.normal(size=(60, 16))])
    rows = jnp.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), jnp.float32)
    zeros = [jnp.zeros(80), jnp.zeros(16), jnp.zeros(16)]
    return params, sae.SAE(rows, zeros[0], rows, *zeros[1:], jnp.float32(1.5), sae.variants.TopK(k=20)), acts
