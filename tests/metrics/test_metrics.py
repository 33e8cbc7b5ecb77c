"""Every formula of jsae/metrics against a naive one, and the ways such formulas go wrong elsewhere."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jsae import metrics


def _vectors(seed=0, n=200, channels=6, features=9, offset=0.0):
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, channels)) + offset).astype(np.float32)
    x_hat = (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32)
    feats = (rng.normal(size=(n, features)) * (rng.random((n, features)) < 0.3)).astype(np.float32)
    feats[:, 0] = 0.0
    return x, x_hat, feats


def _naive_fvu(x, x_hat):
    x, x_hat = x.astype(np.float64), x_hat.astype(np.float64)
    return ((x - x_hat) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()


def _sae(x, x_hat, feats, shift=None, batch=64, pad=np.nan):
    """The metrics over padded batches, padding rows filled with `pad`."""
    shift = np.zeros(x.shape[1], np.float32) if shift is None else shift
    step, total = jax.jit(metrics.sae_sums), None
    for start in range(0, len(x), batch):
        rows = slice(start, start + batch)
        lack = batch - len(x[rows])
        padded = [
            np.concatenate([a[rows], np.full((lack, a.shape[1]), pad, np.float32)]) for a in (x, x_hat, feats)
        ]
        mask = (np.arange(batch) < batch - lack).astype(np.float32)
        total = metrics.add_sums(total, step(*padded, mask, shift))
    return metrics.sae_metrics(total)


@pytest.mark.parametrize("batch", [7, 64, 200, 256])
def test_sae_metrics_are_the_naive_ones_for_every_batch_size(batch):
    x, x_hat, feats = _vectors()
    got = _sae(x, x_hat, feats, batch=batch)
    assert got["fvu"] == pytest.approx(_naive_fvu(x, x_hat), rel=1e-5)  # float32 sums
    assert got["ev"] == 1 - got["fvu"]
    assert got["l0"] == (feats != 0).sum(1).mean()
    np.testing.assert_array_equal(got["density"], (feats != 0).mean(0))
    assert got["dead_fraction"] == 1 / 9
    assert got["n_vectors"] == 200


def test_padding_may_hold_anything():
    x, x_hat, feats = _vectors()
    assert _sae(x, x_hat, feats, pad=np.nan)["fvu"] == _sae(x, x_hat, feats, pad=0.0)["fvu"]


def test_ev_is_1_for_x_itself_0_for_its_mean_and_falls_with_a_constant_offset():
    x, x_hat, feats = _vectors(offset=3.0)
    assert _sae(x, x, feats)["ev"] == 1.0
    assert _sae(x, np.broadcast_to(x.mean(0), x.shape), feats)["ev"] == pytest.approx(0.0, abs=1e-6)
    assert _sae(x, x_hat + 1.0, feats)["ev"] < _sae(x, x_hat, feats)["ev"] - 0.5


@pytest.mark.parametrize("shift_by", [0.0, 1000.0])
def test_fvu_survives_a_mean_of_1000_standard_deviations(shift_by):
    x, x_hat, feats = _vectors(offset=1000.0)
    got = _sae(x, x_hat, feats, shift=np.full(x.shape[1], shift_by, np.float32), batch=32)
    assert got["fvu"] == pytest.approx(_naive_fvu(x, x_hat), rel=1e-5)


def test_one_vector_near_the_mean_does_not_rule_the_fvu():
    x, x_hat, feats = _vectors()
    x[0] = x[1:].mean(0)
    assert _sae(x, x_hat, feats)["fvu"] == pytest.approx(_naive_fvu(x, x_hat), rel=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
def test_constant_activations_have_no_fvu_and_say_so(value):
    x = np.full((50, 4), value, np.float32)
    with _records("jsae.metrics") as records:
        got = _sae(x, x + 1, np.ones((50, 3), np.float32), batch=16)
    assert got["fvu"] is None and got["ev"] is None and got["l0"] == 3.0
    assert "constant" in records[0].getMessage()


def test_activations_that_are_not_finite_have_no_fvu():
    x, x_hat, feats = _vectors()
    x[3, 2] = np.inf
    with _records("jsae.metrics") as records:
        assert _sae(x, x_hat, feats)["fvu"] is None
    assert "not finite" in records[0].getMessage()


def test_counts_beyond_int32_are_exact():
    one = metrics.SaeSums(
        np.int32(2**30), np.float32(1), np.zeros(2), np.float32(1), np.full(3, 2**30, np.int32)
    )
    total = None
    for _ in range(5):
        total = metrics.add_sums(total, one)
    assert metrics.sae_metrics(total)["n_vectors"] == 5 * 2**30
    assert metrics.sae_metrics(total)["l0"] == 3.0


class _records:
    """Collects the records of one logger, whatever handlers the process has."""

    def __init__(self, name):
        self._logger, self.found = logging.getLogger(name), []

    def __enter__(self):
        self._handler = logging.Handler()
        self._handler.emit = self.found.append
        self._logger.addHandler(self._handler)
        return self.found

    def __exit__(self, *_):
        self._logger.removeHandler(self._handler)


@pytest.mark.parametrize("batch", [16, 100, 128])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_moments_are_those_of_numpy(batch, offset):
    x, _, _ = _vectors(n=100, offset=offset)
    shift, total = np.zeros(6, np.float32), None
    for start in range(0, 100, batch):
        part = x[start : start + batch]
        rows = np.zeros((batch, 6), np.float32)
        rows[: len(part)] = part
        total = metrics.add_sums(
            total, jax.jit(metrics.moments)(rows, (np.arange(batch) < len(part)).astype(np.float32), shift)
        )
    exact = x.astype(np.float64)
    np.testing.assert_allclose(total.mean, exact.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(metrics.covariance(total), np.cov(exact.T, bias=True), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("k", [0, 2, 6, 50])
def test_pca_fvu_is_that_of_projecting_every_vector(k):
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 6))
    train, test = rng.normal(size=(300, 6)) @ mix + 5, rng.normal(size=(80, 6)) @ mix + 4.5
    mu = train.mean(0)
    v = np.linalg.svd(train - mu, full_matrices=False)[2][:k].T
    x_hat = mu + (test - mu) @ v @ v.T
    got = metrics.pca_fvu(mu, np.cov(train.T, bias=True), test.mean(0), np.cov(test.T, bias=True), k)
    assert got == pytest.approx(_naive_fvu(test, x_hat), abs=1e-9)


def test_pca_fvu_without_variance_is_none_and_k_is_checked():
    mean, cov = np.zeros(3), np.eye(3)
    assert metrics.pca_fvu(mean, cov, mean, np.zeros((3, 3)), 1) is None
    with pytest.raises(ValueError, match="k=-1"):
        metrics.pca_fvu(mean, cov, mean, cov, -1)


def test_gamma_and_recovered():
    assert metrics.gamma([3.0, 4.0], [0.6, 0.8]) == pytest.approx(5.0)
    assert metrics.gamma([3.0, 4.0], [0.0, 0.0]) is None
    assert metrics.recovered(0.2, 0.7, 0.8) == pytest.approx(-0.5 / -0.6)
    assert metrics.recovered(0.5, 0.5, 0.5) is None
    assert metrics.recovered(None, 0.5, 0.5) is None


def _logits(seed=0, b=40, n_classes=5):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(b, n_classes)).astype(np.float32) * 3, rng.integers(0, n_classes, b)


def test_measures_are_the_naive_ones_under_jit_and_vmap():
    logits, target = _logits()
    got = jax.jit(metrics.measures)(logits, target)
    by_row = jax.vmap(metrics.measures)(logits, target)
    for i, (row, t) in enumerate(zip(logits.astype(np.float64), target, strict=True)):
        p = np.exp(row) / np.exp(row).sum()
        naive = {
            "logit": row[t],
            "margin": row[t] - np.delete(row, t).max(),
            "confidence": p[t],
            "log_confidence": np.log(p[t]),
        }
        for name, value in naive.items():
            assert got[name][i] == pytest.approx(value, rel=1e-5, abs=1e-6)
            assert by_row[name][i] == pytest.approx(value, rel=1e-5, abs=1e-6)


def test_measures_of_one_class_have_no_margin():
    got = metrics.measures(jnp.array([[2.0], [3.0]]), jnp.array([0, 0]))
    assert np.isnan(got["margin"]).all()
    np.testing.assert_array_equal(got["confidence"], [1.0, 1.0])


@pytest.mark.parametrize("batch", [8, 40, 64])
def test_classifier_metrics_are_the_naive_ones(batch):
    logits, labels = _logits()
    labels[labels == 3] = 1  # class 3 is absent
    clean = logits + np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    total = None
    for start in range(0, len(logits), batch):
        part = slice(start, start + batch)
        lack = batch - len(labels[part])
        rows = [np.concatenate([a[part], np.full((lack, 5), np.nan, np.float32)]) for a in (logits, clean)]
        sums = jax.jit(metrics.classifier_sums)(
            rows[0], np.pad(labels[part], (0, lack)), (np.arange(batch) < batch - lack) * 1.0, rows[1]
        )
        total = metrics.add_sums(total, sums)
    got = metrics.classifier_metrics(total)
    correct = logits.argmax(1) == labels
    log_p, log_q = (np.asarray(a) - scipy.special.logsumexp(a, axis=1)[:, None] for a in (clean, logits))
    other = np.where(np.arange(5)[None, :] == labels[:, None], -np.inf, logits).max(1)
    assert got["n_images"] == 40
    assert got["accuracy"] == correct.mean()
    assert got["mean_per_class_accuracy"] == pytest.approx(
        np.mean([correct[labels == c].mean() for c in (0, 1, 2, 4)])
    )
    assert got["cross_entropy"] == pytest.approx(-log_q[np.arange(40), labels].mean(), rel=1e-5)
    assert got["margin"] == pytest.approx((logits[np.arange(40), labels] - other).mean(), rel=1e-4)
    assert got["kl"] == pytest.approx((np.exp(log_p) * (log_p - log_q)).sum(1).mean(), rel=1e-4)
    for name in ("accuracy", "mean_per_class_accuracy", "cross_entropy"):
        assert getattr(metrics, name)(logits, labels) == pytest.approx(got[name], rel=1e-6)
        half = getattr(metrics, name)(logits, labels, (np.arange(40) < 20).astype(np.float32))
        assert half == pytest.approx(getattr(metrics, name)(logits[:20], labels[:20]), rel=1e-6)


def test_classifier_metrics_of_one_class_and_of_no_images():
    sums = metrics.classifier_sums(jnp.ones((3, 1)), jnp.zeros(3, int), jnp.ones(3))
    assert metrics.classifier_metrics(sums)["margin"] is None
    empty = metrics.classifier_metrics(
        metrics.classifier_sums(jnp.ones((3, 2)), jnp.zeros(3, int), jnp.zeros(3))
    )
    assert empty["accuracy"] is None and empty["mean_per_class_accuracy"] is None and empty["n_images"] == 0


def test_selectivity_and_label_entropy():
    m = np.array([[4.0, 1.0, 3.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0], [2.0, 2.0, 2.0], [4.0, np.nan, 3.0]])
    got = metrics.selectivity(m, np.array([0, 0, 0, 1, 0]))
    np.testing.assert_allclose(got, [(4 - 2) / (4 + 2), np.nan, 1.0, 0.0, 1 / 7])
    assert np.isnan(metrics.selectivity(m, np.array([-1, -1, -1, -1, 1]))).all()  # no class, class not seen
    assert np.isnan(metrics.selectivity(m[:, :1], np.zeros(5, int))).all()  # one class only
    p = np.array([4.0, 1.0, 3.0]) / 8
    entropy = metrics.label_entropy(m)
    np.testing.assert_allclose(entropy[:4], [-(p * np.log(p)).sum() / np.log(3), np.nan, 0.0, 1.0])
    q = np.array([4.0, 3.0]) / 7
    np.testing.assert_allclose(entropy[4], -(q * np.log(q)).sum() / np.log(2))
    assert np.isnan(metrics.label_entropy(m[:, :1])).all()


def test_purity_counts_16_images_and_polysemanticity_all_of_them():
    labels = np.full((4, 20), -1)
    labels[0] = [2] * 12 + [1] * 8
    labels[1, :16] = [0] * 9 + [5] * 7
    labels[2, :3] = [7, 7, 1]
    np.testing.assert_allclose(metrics.purity16(labels), [12 / 16, 9 / 16, np.nan, np.nan])
    np.testing.assert_allclose(metrics.polysemanticity(labels), [8 / 20, 7 / 16, 1 / 3, np.nan])


def test_auroc_and_p_are_those_of_scipy_with_ties():
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(size=(150, 12)) - 0.7, 0).astype(np.float32)
    positive = rng.random((150, 12)) < 0.2
    values[:, 1] += positive[:, 1]
    values[:, 2] = rng.integers(0, 3, 150)
    area, p = metrics.auroc(values, positive)
    for j in range(12):
        column = values[:, j].astype(np.float64)  # scipy ranks float32 in float32
        a, b = column[positive[:, j]], column[~positive[:, j]]
        exact = scipy.stats.mannwhitneyu(a, b, method="asymptotic", use_continuity=True)
        assert area[j] == pytest.approx(exact.statistic / (len(a) * len(b)))
        assert p[j] == pytest.approx(exact.pvalue, rel=1e-9)
    pairs = values[positive[:, 0], 0][:, None] - values[~positive[:, 0], 0][None, :]
    assert area[0] == pytest.approx((np.sign(pairs) + 1).mean() / 2)


def test_auroc_by_class_is_auroc_class_by_class():
    rng = np.random.default_rng(0)
    values = np.maximum(rng.normal(size=(60, 5)), 0)
    labels = rng.integers(-1, 3, 60)
    found = metrics.auroc_by_class(values, labels, 4)
    known = labels >= 0
    for c in range(3):
        np.testing.assert_allclose(found[:, c], metrics.auroc(values[known], labels[known] == c)[0])
    assert np.isnan(found[:, 3]).all() and np.isnan(metrics.auroc_by_class(values, 0 * labels, 1)).all()


def test_a_pattern_is_the_regression_of_the_activations_on_the_output():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4))
    filters = rng.normal(size=(2, 4))
    found = metrics.pattern(filters, np.cov(x.T, bias=True))
    for w, row in zip(filters, found, strict=True):
        y = (x - x.mean(0)) @ w
        slopes = [np.polyfit(y, channel, 1)[0] for channel in x.T]
        np.testing.assert_allclose(row, slopes, rtol=1e-8)  # float64 sums in another order
        assert row @ w == pytest.approx(1)
    assert np.isnan(metrics.pattern(np.zeros(4), np.eye(4))).all()


def test_auroc_at_its_edges():
    values = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    area, p = metrics.auroc(values, np.array([False, False, True]))
    np.testing.assert_allclose(area, [0.5, 1.0])
    assert p[0] == 1.0
    for nothing in (np.zeros(3, bool), np.ones(3, bool)):
        area, p = metrics.auroc(values, nothing)
        assert np.isnan(area).all() and np.isnan(p).all()


def test_benjamini_hochberg_tests_eligible_entries_only():
    p = np.array([0.01, 0.02, 0.03, 0.9, 1e-9, np.nan])
    q = metrics.benjamini_hochberg(p, np.array([1, 1, 1, 1, 0, 1], bool))
    np.testing.assert_allclose(q, [0.04, 0.04, 0.04, 0.9, np.nan, np.nan])
    assert np.isnan(metrics.benjamini_hochberg(np.full(3, np.nan))).all()


@pytest.mark.parametrize("n, k", [(1, 0), (7, 7), (96, 31), (1536, 1414)])
def test_wilson_is_the_closed_form(n, k):
    z, share = metrics.Z95, k / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    expected = max(centre - half, 0.0), min(centre + half, 1.0)
    assert metrics.wilson(share, n) == pytest.approx(expected, abs=1e-12)


def test_wilson_of_nothing_is_none():
    assert metrics.wilson(None, 5) is metrics.wilson(0.5, 0) is metrics.wilson(0.5, None) is None


def test_spearman_is_that_of_scipy():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 6, 50).astype(float)
    b = a + rng.normal(size=50)
    assert metrics.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b).statistic)
    a[7] = np.nan
    keep = np.isfinite(a)
    assert metrics.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a[keep], b[keep]).statistic)
    assert metrics.spearman([1, 2], [3, 4]) is None
    assert metrics.spearman([1, 1, 1], [1, 2, 3]) is None


def test_joined_moments_and_their_interval_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    values = 1000 + rng.normal(size=(30, 4))

    def of(rows):
        return len(rows), rows.mean(0), ((rows - rows.mean(0)) ** 2).sum(0)

    empty = (0, np.zeros(4), np.zeros(4))
    joined = metrics.join_moments(metrics.join_moments(empty, of(values[:7])), of(values[7:]))
    for found, expected in zip(joined, of(values), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12)  # float64 sums in another order
    low, high = metrics.t_interval(*joined)
    error = values.std(0, ddof=1) / np.sqrt(30)
    expected = scipy.stats.t.interval(0.95, 29, loc=values.mean(0), scale=error)
    np.testing.assert_allclose([low, high], expected, rtol=1e-12)
    np.testing.assert_allclose(metrics.standard_error(30, joined[2]), error, rtol=1e-9)  # float64 sums
    assert np.isnan(metrics.t_interval(1, 5.0, 0.0)).all() and np.isnan(metrics.standard_error(0, 0.0))
