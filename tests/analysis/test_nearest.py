"""Nearest features against cosines and counts in numpy, whatever the batch and the block."""

import functools

import numpy as np
import pytest

from jsae.activations import run_pass
from jsae.analysis import nearest
from jsae.tables import documentation
from tests.analysis import toy


def _table(store, sae, batch_size):
    over = functools.partial(run_pass, store, sae, batch_size=batch_size)
    return nearest.TABLE.make(nearest.columns(over, sae.w_dec))


@pytest.fixture(scope="module")
def setting():
    return toy.store(n=30), toy.sae(features=12)


@pytest.fixture(scope="module")
def rows(setting):
    return _table(*setting, batch_size=8)


def test_both_likenesses_by_hand(setting, rows):
    store, sae = setting
    feats = np.asarray(sae.encode(store.acts)).reshape(-1, 12) > 0
    n = feats.astype(float).T @ feats
    w = np.asarray(sae.w_dec, np.float64)
    likeness = {
        "decoder": w @ w.T / np.outer(*2 * [np.linalg.norm(w, axis=1)]),
        "coactivation": n / np.maximum(np.sqrt(np.outer(np.diag(n), np.diag(n))), 1),
    }
    listed = rows.to_pylist()
    for kind, values in likeness.items():
        np.fill_diagonal(values, -1)
        for feature in range(12):
            mine = [row for row in listed if (row["feature"], row["kind"]) == (feature, kind)]
            expected = np.sort(values[feature])[::-1][: nearest.N_NEAREST]
            expected = expected[expected > 0]
            np.testing.assert_allclose([row["value"] for row in mine], expected, atol=1e-6)  # float32
            assert [row["rank"] for row in mine] == list(range(len(expected)))
            for row in mine:
                assert row["other"] != feature
                assert values[feature, row["other"]] == pytest.approx(row["value"], abs=1e-6)
    assert all(documentation(rows).values())


def test_neither_batches_nor_blocks_change_a_number(setting, rows, monkeypatch):
    monkeypatch.setattr(nearest, "_COUNTS", 12 * 5)  # blocks of 5, 5 and 2 features
    assert _table(*setting, batch_size=11).equals(rows)
