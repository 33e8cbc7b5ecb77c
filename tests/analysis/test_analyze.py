"""The analysis of a small SAE against a naive one that holds everything, and on inputs at the edge."""

import dataclasses
import functools
import math

import jax
import numpy as np
import pytest

from configs import demo
from jsae import metrics
from jsae.activations import run_pass
from jsae.analysis import class_statistics, run
from jsae.analysis.strength import KeepPooled, MeasureStrength, spaced
from jsae.analysis.top_patches import KeepTopPatches
from jsae.runtime import artifacts, preemption
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from jsae.tables import documentation
from tests.analysis import toy


def _analyze(train, test, sae, *, n_top=16, batch_size=16, n_permutations=20, seed=0, mesh=None):
    study = toy.Study(sae, {"train": train, "test": test}, mesh)
    found = run.analyze(
        study,
        functools.partial(study.run_pass, batch_size=batch_size),
        n_top=n_top,
        n_permutations=n_permutations,
        seed=seed,
    )
    return found.patches, found.features, found.results


def _strength(store, sae, batch_size=8):
    reducers = {"strength": MeasureStrength(len(store.class_names)), "pooled": KeepPooled()}
    return run_pass(store, sae, reducers, batch_size=batch_size)


def _columns(table):
    return {name: np.array(table[name].to_pylist(), dtype=object) for name in table.column_names}


def _floats(column):
    return np.array([math.nan if v is None else v for v in column], np.float64)


def _encode(sae, store):
    """[n, H*W, F] in one go."""
    feats = np.asarray(sae.encode(store.acts))
    return feats.reshape(store.n_images, -1, feats.shape[-1]).astype(np.float64)


@pytest.fixture(scope="module")
def data():
    return toy.store(0, n=90), toy.store(1, n=70), toy.sae()


@pytest.mark.parametrize("batch_size", [1, 16, 70, 128])
def test_a_pass_finds_what_a_naive_one_finds_for_every_batch_size(data, batch_size):
    _, test, sae = data
    both = _strength(test, sae, batch_size)
    found, feats = both["strength"], _encode(sae, test)
    np.testing.assert_array_equal(found.fires, (feats > 0).sum((0, 1)))
    np.testing.assert_array_equal(found.active_images, (feats > 0).any(1).sum(0))
    # float32 products at another batch size
    np.testing.assert_allclose(found.total, feats.sum((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.max, feats.max((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(both["pooled"], feats.mean(1), rtol=1e-5, atol=1e-6)
    for c in range(4):
        chosen = feats[test.labels == c]
        np.testing.assert_allclose(found.class_mean[:, c], chosen.mean(1).mean(0), rtol=1e-5)
        np.testing.assert_allclose(found.class_max[:, c], chosen.max(1).mean(0), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [7, 70])
def test_top_patches_are_the_naive_ones_with_one_patch_an_image(data, batch_size):
    train, test, sae = data
    patches, _, _ = _analyze(train, test, sae, batch_size=batch_size, n_top=20)
    feats, got = _encode(sae, test), _columns(patches)
    for feature in range(sae.n_features):
        peak = feats[:, :, feature].max(1)
        order = [i for i in np.argsort(-peak, kind="stable") if peak[i] > 0][:20]
        mine = got["feature"] == feature
        assert list(got["image"][mine]) == order
        assert list(got["rank"][mine]) == list(range(len(order)))
        np.testing.assert_allclose(got["value"][mine].astype(float), peak[order], rtol=1e-5)
        where = feats[order, :, feature].argmax(1)
        assert list(got["y"][mine]) == list(where // 2) and list(got["x"][mine]) == list(where % 2)
        assert list(got["label"][mine]) == list(test.labels[order])
        assert list(got["prediction"][mine]) == list(test.predictions[order])
        assert list(got["image_id"][mine]) == [f"image-{i}" for i in order]
        assert list(got["label_name"][mine]) == [f"class {c}" for c in test.labels[order]]
    assert (got["feature"] == 0).sum() == 0  # the dead one


def test_equal_values_keep_the_order_of_the_images():
    test = toy.store(0, n=40)
    test.acts[...] = 0.0
    test.acts[5:, 1, 1, 2] = 3.0
    top = run_pass(test, toy.sae_of_channels(), {"top": KeepTopPatches(16)}, batch_size=16)["top"]
    assert list(top.image[2]) == list(range(5, 21))
    assert set(top.position[2]) == {3}


def test_features_table_is_the_naive_one(data):
    train, test, sae = data
    _, rows, results = _analyze(train, test, sae)
    got, seen, learned = _columns(rows), _encode(sae, test), _encode(sae, train)
    alive = (learned > 0).any((0, 1))
    pooled = seen.mean(1)  # [n, F]
    top = np.array([learned[train.labels == c].mean((0, 1)) for c in range(4)]).argmax(0)
    assert list(got["feature"]) == list(range(8))
    assert list(got["alive"]) == list(alive)
    assert list(got["top_class"]) == [c if a else None for c, a in zip(top, alive, strict=True)]
    assert got["top_class_name"][3] == f"class {top[3]}"
    np.testing.assert_allclose(_floats(got["density"]), (seen > 0).mean((0, 1)))
    np.testing.assert_allclose(_floats(got["density_train"]), (learned > 0).mean((0, 1)))
    np.testing.assert_allclose(_floats(got["mean"]), seen.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(_floats(got["max"]), seen.max((0, 1)), rtol=1e-5)
    p_train = np.full(8, np.nan)
    for j in np.flatnonzero(alive):
        m = np.array([pooled[test.labels == c, j].mean() for c in range(4)])
        rest = np.delete(m, top[j]).mean()
        p = m[m > 0] / m.sum()
        assert got["selectivity"][j] == pytest.approx((m[top[j]] - rest) / (m[top[j]] + rest), rel=1e-4)
        assert got["label_entropy"][j] == pytest.approx(-(p * np.log(p)).sum() / np.log(4), rel=1e-4)
        area, _ = metrics.auroc(pooled[:, [j]].astype(np.float32), test.labels == top[j])
        assert got["auroc"][j] == pytest.approx(area[0])
        area, p = metrics.auroc(learned.mean(1)[:, [j]].astype(np.float32), train.labels == top[j])
        p_train[j] = p[0]
        assert got["auroc_train"][j] == pytest.approx(area[0])
        assert got["mean_active"][j] == pytest.approx(seen[:, :, j][seen[:, :, j] > 0].mean(), rel=1e-5)
        strongest = test.labels[np.argsort(-seen[:, :, j].max(1), kind="stable")[:16]]
        if got["n_active_images"][j] >= 16:
            assert got["purity16"][j] == np.bincount(strongest).max() / 16
            assert got["polysemanticity"][j] == pytest.approx(1 - got["purity16"][j])  # n_top is 16
    np.testing.assert_allclose(_floats(got["auroc_train_q"]), metrics.benjamini_hochberg(p_train), rtol=1e-6)
    assert results["n_features"] == 8 and results["n_features_alive"] == alive.sum() < 8
    assert results["n_class_selective"] == got["class_selective"].sum()


def test_features_that_are_the_class_are_class_selective():
    train, test = toy.store(0, n=80), toy.store(1, n=80)
    for split in (train, test):
        split.labels[...] = np.arange(80) % 4
        split.acts[...] = np.abs(split.acts) * 0.1
        split.acts[np.arange(80), :, :, split.labels] += 5.0
    _, rows, results = _analyze(train, test, toy.sae_of_channels())
    assert results["n_class_selective"] == 4  # channel 4 has no class
    assert rows["top_class"].to_pylist()[:4] == [0, 1, 2, 3]
    assert min(rows["auroc"].to_pylist()[:4]) == 1.0
    assert min(rows["purity16"].to_pylist()[:4]) == 1.0
    assert min(rows["selectivity_z"].to_pylist()[:4]) > 3 > -3 > max(rows["label_entropy_z"].to_pylist()[:4])


def test_a_class_is_chosen_on_train_and_test_chooses_nothing():
    """Channel 0 is plainly class 0 on test only, channel 1 class 1 on train only."""
    train, test = toy.store(0, n=80), toy.store(1, n=80)
    for split in (train, test):
        split.labels[...] = np.arange(80) % 4
        split.acts[...] = np.random.default_rng(5).random(split.acts.shape) * 0.1
    train.acts[train.labels == 0, :, :, 0] += 0.006  # its top class, but hardly
    test.acts[test.labels == 0, :, :, 0] += 5.0
    train.acts[train.labels == 1, :, :, 1] += 5.0
    _, rows, results = _analyze(train, test, toy.sae_of_channels())
    got = _columns(rows)
    assert list(got["class_selective"][:2]) == [False, True]
    assert got["auroc"][0] == pytest.approx(1) and got["auroc_train"][1] == 1 and got["auroc"][1] < 0.7
    assert results["n_excluded_by_q"] == 0
    train.labels[(train.labels == 1) & (np.arange(80) > 1)] = -1  # one image of class 1 is left
    _, rows, results = _analyze(train, test, toy.sae_of_channels())
    assert rows["auroc_train"][1].as_py() == 1 and rows["auroc_train_q"][1].as_py() > 0.05
    above = sum(value >= 0.8 for value in rows["auroc_train"].to_pylist())
    assert results["n_class_selective"] == 0 and results["n_excluded_by_q"] == above >= 1


def test_pooled_features_of_evenly_spaced_images(data):
    train, _, sae = data
    whole = _strength(train, sae)["pooled"]
    few = run_pass(train, sae, {"it": KeepPooled(8 * 31)}, batch_size=7)["it"]
    assert list(spaced(90, 8, 8 * 31)) == list(range(0, 90, 3)) and len(spaced(90, 8, None)) == 90
    np.testing.assert_allclose(few, whole[::3], rtol=1e-5)  # float32 at another batch size


def test_nulls_are_those_of_permuting_the_labels_by_hand(data):
    train, test, sae = data
    _, rows, _ = _analyze(train, test, sae, n_permutations=11, seed=3)
    got, pooled = _columns(rows), _encode(sae, test).mean(1)
    permuted = class_statistics._permutations(test.labels, 11, 3)
    assert (np.sort(permuted, 1) == np.sort(test.labels)[None, :]).all()
    for j in (2, 5):
        drawn = []
        for labels in permuted:
            m = np.array([pooled[labels == c, j].mean() for c in range(4)])
            rest = np.delete(m, got["top_class"][j]).mean()
            drawn.append((m[got["top_class"][j]] - rest) / (m[got["top_class"][j]] + rest))
        excess = got["selectivity"][j] - np.mean(drawn)
        assert got["selectivity_null"][j] == pytest.approx(np.mean(drawn), abs=1e-5)
        assert got["selectivity_excess"][j] == pytest.approx(excess, abs=1e-5)
        assert got["selectivity_z"][j] == pytest.approx(excess / np.std(drawn, ddof=1), rel=1e-3)


def test_a_sparse_feature_without_class_signal_looks_selective_and_its_null_says_so():
    rng = np.random.default_rng(0)
    test = toy.store(0, n=200, n_classes=20)
    test.acts[...] = 0.0
    for j in range(5):
        test.acts[rng.choice(200, 5, replace=False), 0, 0, j] = 1.0
    _, rows, _ = _analyze(test, test, toy.sae_of_channels(), n_permutations=50)
    got = _columns(rows)
    assert _floats(got["label_entropy"]).mean() < 0.6  # all alike would be 1
    assert abs(_floats(got["label_entropy_excess"]).mean()) < 0.1


def test_blocks_of_features_change_nothing(data, monkeypatch):
    train, test, sae = data
    _, whole, _ = _analyze(train, test, sae)
    monkeypatch.setattr(class_statistics, "_BLOCK", 3)
    _, blocks, _ = _analyze(train, test, sae)
    for name in whole.column_names:
        if str(whole[name].type) in ("double", "float", "int32"):
            np.testing.assert_allclose(
                _floats(_columns(whole)[name]), _floats(_columns(blocks)[name]), rtol=1e-4, atol=1e-5
            )


def test_eight_devices_find_what_one_finds(data):
    train, test, sae = data
    one = _columns(_analyze(train, test, sae)[1])
    eight = _columns(_analyze(train, test, sae, mesh=meshes.make_mesh())[1])
    for name in ("n_active_images", "top_class", "purity16", "class_selective"):
        assert list(one[name]) == list(eight[name])
    np.testing.assert_allclose(_floats(one["mean"]), _floats(eight["mean"]), rtol=1e-5)
    assert jax.device_count() == 8


def _no_nan(table):
    for name in table.column_names:
        values = table[name].to_pylist()
        flat = [v for item in values for v in (item if isinstance(item, list) else [item])]
        assert not any(isinstance(v, float) and not math.isfinite(v) for v in flat), name


@pytest.mark.parametrize(
    "case", ["all dead", "fires once", "one class", "few images", "class absent", "no label"]
)
def test_edges_give_nulls_and_never_nan(case):
    train, test, sae = toy.store(0, n=40), toy.store(1, n=40), toy.sae_of_channels()
    if case == "all dead":
        sae = dataclasses.replace(sae, b_enc=sae.b_enc - 1e6)
    if case == "fires once":
        for split in (train, test):
            split.acts[...] = -1.0
            split.acts[7, 2, 1, :] = 4.0
    if case == "one class":
        train, test = toy.store(0, n_classes=1), toy.store(1, n_classes=1)
    if case == "few images":
        test = toy.store(1, n=5)
    if case == "class absent":
        test.labels[test.labels == 2] = 1
        train.labels[train.labels == 3] = 0
    if case == "no label":
        test.labels[...] = train.labels[...] = -1
    patches, rows, results = _analyze(train, test, sae)
    _no_nan(patches)
    _no_nan(rows)
    assert len(rows) == 5
    got = _columns(rows)
    if case == "all dead":
        assert results["n_features_alive"] == 0 and len(patches) == 0
        assert set(got["top_class"]) == {None} and set(got["selectivity"]) == {None}
        assert set(got["max"]) == {0.0} and set(got["mean_active"]) == {None}
    if case == "fires once":
        assert set(got["n_active_images"]) == {1} and set(got["eligible"]) == {False}
        assert len(patches) == 5 and set(patches["image"].to_pylist()) == {7}
        assert set(got["purity16"]) == {None} and set(got["class_selective"]) == {False}
        assert set(got["mean_active"]) == {4.0} and set(got["top_class"]) == {int(train.labels[7])}
        assert set(got["selectivity"]) <= {1.0, -1.0}
    if case == "one class":
        assert set(got["selectivity"]) == {None} and set(got["auroc"]) == {None}
        assert set(got["label_entropy"]) == {None} and set(got["top_class"]) == {0}
    if case == "few images":
        assert results["n_top"] == 5 and max(patches["rank"].to_pylist()) <= 4
    if case == "class absent":
        assert all(means[2] is None and means[1] is not None for means in got["class_mean"])
        assert 3 not in got["top_class"]
    if case == "no label":
        assert set(got["top_class"]) == {None} and set(patches["label"].to_pylist()) == {None}


def test_an_image_that_is_not_finite_is_named(data):
    _, _, sae = data
    bad = toy.store(2, n=30)
    bad.acts[21, 1, 0, 3] = np.nan
    with pytest.raises(ValueError, match=r"'image-21'.*not finite"):
        _strength(bad, sae)


def test_settings_out_of_range_are_named():
    for key, value, words in (("n_top", 8, "=8 must be at least 16"), ("n_permutations", 1, "=1 must be at")):
        config = demo.get_config()
        config.analysis[key] = value
        with pytest.raises(ValueError, match=rf"config\.analysis\.{key}{words}"):
            run.check_config(config)
    wrong = toy.store(0)
    wrong.labels[3] = 9
    with pytest.raises(ValueError, match="label 9 has no name"):
        _strength(wrong, toy.sae())


def test_a_stop_is_heard_between_batches(data, monkeypatch):
    train, _, sae = data
    monkeypatch.setattr(RunContext, "requested_here", lambda self: True)
    with pytest.raises(preemption.Preempted):
        _strength(train, sae)


def test_every_column_is_documented_in_the_file(data, tmp_path):
    patches, rows, _ = _analyze(*data)
    for made in (patches, rows):
        artifacts.write_table(tmp_path / "made.parquet", made, {"digest": "d"})
        table = artifacts.read_table(tmp_path / "made.parquet")
        documented = documentation(table)
        assert list(documented) == table.column_names
        assert all(len(text) > 10 for text in documented.values())
        assert table.equals(made)
