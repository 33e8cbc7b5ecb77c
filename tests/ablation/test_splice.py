"""Splice metrics against a plain loop, and at their fixed points."""

import jax.numpy as jnp
import numpy as np

from jsae.ablation import splice
from tests.ablation.toy import ToyHead, ToySAE, make_acts, make_head, make_sae, reduce


def test_equals_a_plain_computation_whatever_the_batch():
    sae, head, acts = make_sae(), make_head(False), make_acts(30)
    labels, mean = np.arange(30) % 4, acts.mean((0, 1, 2))
    versions = [acts, sae.decode(sae.encode(acts)), np.broadcast_to(mean, acts.shape)]
    for size in (8, 64):
        found = reduce(splice.MeasureSplice(head, mean), sae, acts, labels, size)
        log_p = []
        for name, x in zip(splice.VERSIONS, versions, strict=True):
            z = np.asarray(head(jnp.asarray(x)), np.float64)
            log_p.append(z - np.log(np.exp(z).sum(1, keepdims=True)))
            own = z[np.arange(30), labels]
            others = np.where(np.eye(4, dtype=bool)[labels], -np.inf, z).max(1)
            correct = z.argmax(1) == labels
            assert found[name]["accuracy"] == correct.mean()
            by_class = [correct[labels == c].mean() for c in range(4)]
            np.testing.assert_allclose(found[name]["mean_per_class_accuracy"], np.mean(by_class))
            # float32 logits
            np.testing.assert_allclose(found[name]["margin"], (own - others).mean(), atol=1e-5)
            np.testing.assert_allclose(
                found[name]["cross_entropy"], -log_p[-1][np.arange(30), labels].mean(), atol=1e-5
            )
        kl = (np.exp(log_p[0]) * (log_p[0] - log_p[1])).sum(1).mean()
        np.testing.assert_allclose(found["kl"], kl, atol=1e-5)
        ce = [found[name]["cross_entropy"] for name in splice.VERSIONS]
        np.testing.assert_allclose(found["ce_recovered"], (ce[2] - ce[1]) / (ce[2] - ce[0]))


def test_a_perfect_reconstruction_recovers_one_and_the_mean_zero():
    acts = make_acts(30)
    plus_minus = jnp.concatenate([jnp.eye(8), -jnp.eye(8)])
    perfect = ToySAE(plus_minus, plus_minus, 0.0)
    labels = np.arange(30) % 4
    found = reduce(splice.MeasureSplice(make_head(True), acts.mean((0, 1, 2))), perfect, acts, labels)
    assert found["ce_recovered"] == found["accuracy_recovered"] == 1.0 and found["kl"] == 0.0
    dead = ToySAE(plus_minus, plus_minus, 1e9)  # decodes to 0, the mean given here
    found = reduce(splice.MeasureSplice(make_head(True), np.zeros(8, np.float32)), dead, acts, labels)
    assert found["ce_recovered"] == 0.0


def test_one_class_has_no_margin_and_nothing_to_recover():
    reducer = splice.MeasureSplice(ToyHead(jnp.ones((8, 1))), np.zeros(8, np.float32))
    found = reduce(reducer, make_sae(), make_acts(5), size=8)
    assert found["clean"]["margin"] is None and found["accuracy_recovered"] is None
    assert found["clean"]["accuracy"] == 1.0
