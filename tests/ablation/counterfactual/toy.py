"""Twins without a renderer: every part has a direction of its own, and a head reads it."""

import jax.numpy as jnp
import numpy as np

from jsae.ablation.counterfactual.comparators import Projections
from jsae.ablation.counterfactual.drawings import Drawn, Seen
from jsae.ablation.counterfactual.effects import Rest
from jsae.classifier import Head, head_logits
from jsae.data.twins import Pair

N_CHANNELS, GRID, N = 8, (2, 3), 40
PAIRS = (Pair("gear", 0, 1), Pair("gear", 2, 3), Pair("engine", 4, 5), Pair("window", 6, 7))
PARTS = tuple(dict.fromkeys(pair.part for pair in PAIRS))


def directions() -> np.ndarray:
    """One orthonormal row per part."""
    q = np.linalg.qr(np.random.default_rng(5).normal(size=(N_CHANNELS, N_CHANNELS)))[0]
    return q[: len(PARTS)].astype(np.float32)


def head(norm=None) -> Head:
    """c . l of a pair is 6 times the pooled activation along its part's direction, minus 3."""
    kernel, offset = np.zeros((N_CHANNELS, 8), np.float32), np.zeros(8, np.float32)
    for part, without, with_part in PAIRS:
        kernel[:, with_part] = 6 * directions()[PARTS.index(part)]
        offset[with_part] = -3
        offset[without] = 0
    return Head(jnp.asarray(kernel), jnp.asarray(offset), norm)


def drawn(head: Head, split="test", n=N, seed=0, weak=()) -> Drawn:
    """Classes of a pair are the same random activations without and with the part's direction in every cell.

    The pairs whose numbers are in `weak` get next to nothing of it.
    """
    rng, classes = np.random.default_rng(seed), {}
    for p, (part, without, with_part) in enumerate(PAIRS):
        acts = 0.3 * rng.normal(size=(n, *GRID, N_CHANNELS))
        acts -= 0.9 * (acts @ directions().T) @ directions()  # little of a part where none is drawn
        amount = rng.uniform(0.8, 1.2, (n, *GRID, 1)) * (1e-3 if p in weak else 1)
        for label, grid in ((without, acts), (with_part, acts + amount * directions()[PARTS.index(part)])):
            grid = grid.astype(np.float32)
            classes[label] = Seen(grid, np.asarray(head_logits(head, jnp.asarray(grid.mean((1, 2))))))
    return Drawn(split, PAIRS, classes)


def rest(head: Head) -> Rest:
    return Rest(None, head, "made up")


def true_dictionary() -> Projections:
    return Projections(directions(), np.zeros(N_CHANNELS, np.float32))
