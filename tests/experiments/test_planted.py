"""Planted directions on a store in memory: what must be found is found, and what cannot hold it does not."""

import json

import jax
import numpy as np
import pytest
from etils import epath

from configs import demo
from jsae import metrics
from jsae import study as opened
from jsae.ablation.counterfactual.comparators import Projections
from jsae.experiments import planted, planted_table
from jsae.runtime import artifacts, preemption, stages
from jsae.runtime import mesh as meshes
from jsae.runtime.context import RunContext
from tests.ablation.toy import StoppedWhen
from tests.analysis import toy
from tests.analysis.toy import Store, Study

CHANNELS, PARTS, GRID = 16, 3, (2, 3)


class PlantedStore(Store):
    """With what training reads of an activation store."""

    n_channels = CHANNELS

    @property
    def n_vectors(self):
        return self.acts[..., 0].size

    @property
    def scale(self):
        return float(np.sqrt(((self.acts - self.mean) ** 2).mean()))


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(10, CHANNELS))

    def store(n):
        sparse = rng.exponential(size=(n, *GRID, 10)) * (rng.random((n, *GRID, 10)) < 0.1)
        return PlantedStore((sparse @ basis + 3.0).astype(np.float32), np.zeros(n, np.int32), ["any"])

    mesh = meshes.make_mesh(1, 1, devices=jax.devices()[:1])
    return Study(None, {"train": store(256), "test": store(64)}, mesh)


@pytest.fixture(scope="module")
def covered():
    rng = np.random.default_rng(1)
    return {
        split: rng.random((n, *GRID, PARTS)) < np.array([0.1, 0.3, 0.5])
        for split, n in (("train", 256), ("test", 64))
    }


def make_config(**changes):
    config = demo.get_config()
    config.planted.update(dict(doses=(0.01, 1.0), n_images=48, n_epochs=40.0) | changes)
    config.sae.update(n_features=32, batch_size=256, learning_rate=1e-2, lr_warmup_steps=10)
    config.sae.topk.k, config.analysis.batch_size = 2, 16
    return config


def run(study, covered, folder, names, config=None, context=None):
    """The rows by (dictionary, dose, m) after a run."""
    planted.measure(
        study, config or make_config(), folder, lambda: covered, "upstream", context or RunContext(), names
    )
    rows = artifacts.read_table(folder / planted_table.TABLE.file).to_pylist()
    return {(row["dictionary"], row["dose"], row["m"]): row for row in rows}


@pytest.fixture(scope="module")
def rows(study, covered, tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("planted"))
    found = run(study, covered, folder, ("oracle", "topk", "frozen_decoder"))
    return found, json.loads((folder / planted_table.RESULTS).read_text())


def test_an_oracle_carries_all_of_its_part_and_nothing_of_others(rows):
    for dose in (0.01, 1.0):
        row = rows[0]["oracle", dose, 1]
        assert row["share"] == pytest.approx(1, abs=1e-4) and row["smallest_share"] > 1 - 1e-3
        assert row["leak"] < 1e-4 and row["fvu"] is None and row["detection_limit"] == 0.01
        assert row["isolated"] == pytest.approx(1, abs=1e-3) == row["isolated_train"]


def test_a_trained_sae_finds_what_a_frozen_decoder_does_not(rows):
    trained, frozen = ([rows[0][name, 1.0, m] for m in (1, 4)] for name in ("topk", "frozen_decoder"))
    assert trained[0]["share"] > frozen[0]["share"] + 0.1
    assert trained[1]["share"] > 0.85 > 0.75 > frozen[1]["share"]
    assert trained[0]["fvu"] < frozen[0]["fvu"] and trained[0]["l0"] <= 2
    assert frozen[0]["detection_limit"] is None


def test_the_curves_are_those_of_the_table_at_one_feature(rows):
    table, curves = rows
    assert list(curves) == ["oracle", "topk", "frozen_decoder"]
    for name, curve in curves.items():
        assert curve["dose"] == [0.01, 1.0]
        for key in ("share", "leak"):
            assert curve[key] == [table[name, dose, 1][key] for dose in curve["dose"]]


def test_a_coefficient_is_tuned_to_as_many_active_features():
    asked = []

    def make(coefficient):
        asked.append(coefficient)
        return len(asked), 200 * coefficient**-1.7

    made, coefficient = planted.tuned(make, 3.0, 16.0)
    assert abs(200 * coefficient**-1.7 / 16 - 1) <= 0.03 and asked[made - 1] == coefficient
    assert len(asked) <= 4
    made, coefficient = planted.tuned(lambda c: (c, 5.0 if c == 2.0 else 1.0), 2.0, 16.0)
    assert made == coefficient == 2.0  # the nearest, where none is near


def test_a_tuned_variant_has_the_active_features_of_topk(study, covered, tmp_path):
    config = make_config(doses=(1.0,), n_epochs=12.0)
    config.planted.variants.relu_l1 = {"learning_rate": 1e-2, "relu_l1": {"l1": 0.3}}
    found = run(study, covered, epath.Path(tmp_path), ("relu_l1",), config)["relu_l1", 1.0, 1]
    config.planted.tuned = ()
    before = run(study, covered, epath.Path(tmp_path), ("relu_l1",), config)["relu_l1", 1.0, 1]
    assert before["coefficient"] == 0.3 != found["coefficient"]
    assert abs(found["l0"] / 2 - 1) < 0.15 < abs(before["l0"] / 2 - 1)  # train's, measured on test


def test_effects_of_pairs_are_those_of_a_loop(study, covered):
    ground = planted.plant(study, covered, make_config(), RunContext())
    d = ground.directions.astype(np.float64)
    np.testing.assert_allclose(d @ d.T, np.eye(PARTS), atol=1e-12)
    rng, alpha, images = np.random.default_rng(2), np.array([2.0, 0.5, 1.0]), np.arange(3, 40, 5)
    rows = rng.normal(size=(6, CHANNELS)).astype(np.float32)
    dictionary = Projections(rows, np.full(CHANNELS, 0.5, np.float32))
    reducer = planted.MeasurePairs(
        d.astype(np.float32), (alpha[:, None] * d).astype(np.float32), covered["test"]
    )
    found = study.run_pass("test", {"pairs": reducer}, dictionary=dictionary, images=images, batch_size=3)[
        "pairs"
    ]
    expected = np.zeros((PARTS, 6))
    for i in images:
        for p in range(PARTS):
            for y, x in np.ndindex(GRID):
                change = alpha[p] * covered["test"][i, y, x, p] * d[p] @ rows.T
                expected[p] += change * (rows @ d[p]) / np.prod(GRID)
    np.testing.assert_allclose(found["effects"], expected, rtol=1e-4, atol=1e-5)
    assert metrics.sae_metrics(found["fit"])["n_vectors"] == len(images) * np.prod(GRID)


def test_effects_do_not_depend_on_the_devices(study, covered):
    ground = planted.plant(study, covered, make_config(), RunContext())
    rows = ground.directions.astype(np.float32)
    reducers = {"pairs": planted.MeasurePairs(rows, 2 * rows, covered["test"])}
    found = []
    for mesh in (None, meshes.make_mesh(2, 4)):
        over = Study(toy.sae(8, CHANNELS), study.stores, mesh)
        found.append(over.run_pass("test", reducers, batch_size=12)["pairs"])
    np.testing.assert_allclose(*(pairs["effects"] for pairs in found), rtol=1e-4, atol=1e-5)
    assert np.abs(found[0]["effects"]).max() > 1
    np.testing.assert_allclose(*(metrics.sae_metrics(pairs["fit"])["fvu"] for pairs in found), rtol=1e-5)


def test_each_direction_adds_its_dose_of_the_variance(study, covered):
    ground = planted.plant(study, covered, make_config(), RunContext())
    store, q = study.activations("train"), covered["train"].mean((0, 1, 2))
    total = store.acts.reshape(-1, CHANNELS).var(0).sum()
    alpha = metrics.planted_strengths(q, store.scale**2 * CHANNELS, 0.03)
    values = covered["train"] * alpha  # alpha_p 1[covered]
    np.testing.assert_allclose(values.reshape(-1, PARTS).var(0), 0.03 * total, rtol=1e-4)
    planted_rows = (alpha[:, None] * ground.directions).astype(np.float32)
    with_all = np.concatenate(list(planted._vectors(store, covered["train"], planted_rows)))
    np.testing.assert_allclose(
        with_all, store.acts.reshape(-1, CHANNELS) + values.reshape(-1, PARTS) @ ground.directions, atol=1e-4
    )


def test_features_are_chosen_on_train_and_scored_on_test():
    choose = np.array([[0.1, 0.9, 0.0, 0.5], [0.2, 0.0, 0.3, 0.0]])
    score = np.array([[5.0, 0.6, 0.0, 0.1], [0.4, -0.2, 0.7, 0.0]])
    share, leak = metrics.chosen_shares(choose, score, 1)
    np.testing.assert_allclose(share, [0.6, 0.7])  # 5.0 is known on test alone
    np.testing.assert_allclose(leak, [0.2, 0.0])
    share, leak = metrics.chosen_shares(choose, score, 2)
    np.testing.assert_allclose(share, [0.7, 1.1])
    np.testing.assert_allclose(leak, [0.2, 5.0])
    assert metrics.detection_limit([0.03, 0.001, 0.01], [0.9, 0.2, 0.8]) == 0.01
    assert np.isnan(metrics.detection_limit([0.01], [0.79]))


def test_a_resumed_run_makes_what_is_missing_only(study, covered, tmp_path):
    folder, config = epath.Path(tmp_path), make_config(n_epochs=4.0)
    table = folder / planted_table.TABLE.file
    with pytest.raises(preemption.Preempted):
        run(study, covered, folder, ("topk",), config, StoppedWhen(table.exists))
    first = artifacts.read_table(table).to_pylist()
    assert [(row["dose"], row["m"]) for row in first] == [(0.01, 1), (0.01, 4)]
    found = run(study, covered, folder, ("topk", "oracle"), config)
    assert len(found) == 6 and found["topk", 0.01, 1]["seconds"] == first[0]["seconds"]
    stamp = table.stat().mtime
    assert run(study, covered, folder, ("oracle", "topk"), config) == found
    assert table.stat().mtime == stamp
    whole = run(study, covered, folder / "whole", ("topk", "oracle"), config)
    assert [row | {"seconds": 0} for row in found.values()] == [r | {"seconds": 0} for r in whole.values()]
    other = run(study, covered, folder, ("oracle",), make_config(n_epochs=5.0))
    assert set(other) == {("oracle", dose, 1) for dose in (0.01, 1.0)}


def test_parts_that_cover_nothing_are_left_out_and_one_part_is_too_few(study, covered, caplog):
    gone = {split: array & [True, False, True] for split, array in covered.items()}
    ground = planted.plant(study, gone, make_config(), RunContext())
    assert ground.directions.shape == (2, CHANNELS) and ground.covered["test"].shape[-1] == 2
    gone = {split: array & [True, False, False] for split, array in covered.items()}
    with pytest.raises(ValueError, match="1 of 3 parts cover some cells"):
        planted.plant(study, gone, make_config(), RunContext())


@pytest.mark.parametrize(
    "changes, names, words",
    [
        ({"doses": (0.01, 0.0)}, ("topk",), r"config\.planted\.doses=\(0.01, 0.0\) must be above 0"),
        ({"n_images": 0}, ("topk",), r"config\.planted\.n_images=0 must be at least 1"),
        ({"n_epochs": -1.0}, ("topk",), r"config\.planted\.n_epochs=-1.0 must be above 0"),
        ({"m": (4, 16)}, ("topk",), "must have a 1"),
        ({}, ("topkk",), "--variants='topkk' is unknown; valid are 'oracle', 'relu_l1'"),
        ({"variants": {"top": {}}}, ("topk",), "config.planted.variants='top' is unknown"),
        ({"tuned": ("topk",)}, ("topk",), "config.planted.tuned='topk' is unknown; valid are 'relu_l1'"),
        (
            {"variants": {"relu_l1": {"relu_l1": {"l1": 0.0}}}},
            ("topk",),
            r"variants\.relu_l1\.relu_l1\.l1=0.0 must be above 0",
        ),
    ],
)
def test_settings_that_cannot_be_are_named(changes, names, words):
    with pytest.raises(ValueError, match=words):
        planted.check_config(make_config(**changes), names)


def test_a_study_reads_the_table_where_it_lies(rows, tmp_path):
    config, folder = demo.get_config(), epath.Path(tmp_path)
    study = opened.Study(folder, stages.plain(config))
    assert not study.has_table("planted")
    table = planted_table.TABLE.of_rows(rows[0].values())
    artifacts.write_table(folder / "planted" / "planted.parquet", table, {})
    assert study.table("planted").to_pylist() == table.to_pylist() == planted_table.load(folder)


def test_the_verdict_and_the_markdown_of_a_table(rows):
    found = list(rows[0].values())
    assert planted_table.verdict(found, 1.0)["best"] == "topk"
    assert planted_table.verdict([row for row in found if row["dictionary"] != "oracle"])["valid"] is None
    worse = [dict(row, share=0.9) if row["dictionary"] == "oracle" else row for row in found]
    assert planted_table.verdict(worse)["valid"] is False
    lines = planted_table.markdown(found).splitlines()
    assert len(lines) == 2 + 6 + 2 and len({line.count("|") for line in lines[:-2]}) == 1
    assert lines[2].startswith("| oracle | 1% | ")
