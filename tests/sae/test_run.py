"""The stage: results, files, resume bit for bit, preemption, bad activations, errors."""

import jax
import numpy as np
import pytest

from jsae import sae
from jsae.runtime import artifacts, logs, preemption, stages
from jsae.runtime.context import RunContext
from jsae.sae import evaluate, export, loop, train
from jsae.sae.run import note_warmup, recipe_of, run

RESULTS = {
    *("variant", "n_channels", "n_features", "k", "l0", "fvu", "density_mean", "pca_fvu", "dead_fraction"),
    *("n_vectors_train", "n_vectors_test", "gamma", "steps", "refused_steps", "vectors_per_s"),
    *("store", "mixing", "precision"),
}


def rows_of(workdir):
    """metrics.jsonl without what a clock wrote."""
    rows = logs.read_metrics(workdir / "sae" / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "_per_s"))} for row in rows]


@pytest.fixture(scope="module")
def finished(examples, tmp_path_factory):
    """(config, workdir) of a run that nobody interrupted."""
    config, workdir = examples.small_config(), tmp_path_factory.mktemp("finished")
    examples.make_activations(config, workdir)
    run(config, workdir)
    return config, workdir


def test_results_files_and_metrics(finished):
    config, workdir = finished
    results = stages.results(config, workdir, "sae")
    assert set(results) == RESULTS
    assert results["fvu"] < 0.6
    assert results["l0"] <= 4
    assert results["pca_fvu"] > results["fvu"]  # 32 directions in 16 channels, 4 components
    assert (results["n_vectors_train"], results["n_vectors_test"], results["steps"]) == (540, 180, 60)
    assert results["density_mean"] == pytest.approx(results["l0"] / 64)
    rows = rows_of(workdir)
    trained = [row for row in rows if "train/loss" in row]
    evaluated = [row for row in rows if "eval/fvu" in row]
    assert [row["step"] for row in trained] == list(range(5, 61, 5))
    assert [row["step"] for row in evaluated] == [15, 30, 45, 60]
    assert trained[-1]["train/fvu"] < 0.6 * trained[0]["train/fvu"]
    raw = (workdir / "sae" / "metrics.jsonl").read_text()
    assert "train/vectors_per_s" in raw

    run(config, workdir)  # up to date
    assert rows_of(workdir) == rows


def test_load_and_export_give_the_trained_sae(finished, examples):
    config, workdir = finished
    model = sae.load(workdir / "sae")
    store = examples.open_store(config, workdir, "test")
    x = store.read(0, store.n_images)
    feats = np.asarray(model.encode(x))
    x_hat = np.asarray(model.decode(feats)).reshape(-1, 16)
    flat = x.reshape(-1, 16)
    fvu = ((flat - x_hat) ** 2).sum() / ((flat - flat.mean(0)[None, :]) ** 2).sum()
    assert fvu == pytest.approx(stages.results(config, workdir, "sae")["fvu"], rel=1e-4)
    np.testing.assert_array_equal(model.mean, store.mean)
    back = export.load(workdir / "sae" / "export")
    assert np.abs(back.encode(x) - feats).max() < 1e-4 * feats.max()


def raise_flag_at_call(monkeypatch, module, name, call):
    """Preemption is requested from the call-th call of module.name on."""
    original, flag, calls = getattr(module, name), [], []

    def wrapped(*args, **kwargs):
        calls.append(name)
        if len(calls) == call:
            flag.append(True)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, wrapped)
    monkeypatch.setattr(RunContext, "requested_by_any", lambda self: bool(flag))


def test_a_run_stopped_three_times_goes_on_bit_for_bit(finished, study, monkeypatch):
    """Stopped in evaluation (step 15), in training and in the last pass, grouped otherwise each time."""
    config, workdir = study
    stops = (
        (evaluate, "over_store", 1, 4, 15),
        (loop._Reader, "_report", 2, 7, 25),
        (evaluate, "over_store", 4, 0, 60),  # after the evaluations at 30, 45 and 60
    )
    for module, name, call, steps_per_dispatch, stopped_at in stops:
        config.sae.steps_per_dispatch = steps_per_dispatch
        config.sae.save_every_s = 0.0 if steps_per_dispatch else 1e-3  # then at every dispatch
        with monkeypatch.context() as patch:
            raise_flag_at_call(patch, module, name, call)
            with pytest.raises(preemption.Preempted):
                run(config, workdir)
        kept = max(int(path.name) for path in (workdir / "sae" / "checkpoints").iterdir())
        assert kept >= stopped_at
        assert not (workdir / "sae" / "export").exists()
    assert "steps_per_dispatch" in stages.read_manifest(config, workdir, "sae")
    run(config, workdir)
    expected = sae.load(finished[1] / "sae")
    jax.tree.map(np.testing.assert_array_equal, sae.load(workdir / "sae"), expected)
    assert rows_of(workdir) == rows_of(finished[1])


def test_activations_that_are_not_finite_stop_the_run_and_name_the_step(study):
    config, workdir = study
    shard = workdir / "activations" / "train" / "shard-00000.npy"
    acts = artifacts.read_array(shard).copy()
    acts[:] = np.nan
    artifacts.write_array(shard, acts)
    with pytest.raises(FloatingPointError, match="stopped at step 3: the last 3 steps in a row"):
        run(config, workdir)


def test_one_bad_vector_is_refused_counted_and_named(study, examples):
    """A NaN in image 7, row 1, column 2 spoils one batch an epoch; 12 steps refused in a run of 60."""
    config, workdir = study
    shard = workdir / "activations" / "train" / "shard-00000.npy"
    acts = artifacts.read_array(shard).copy()
    acts[7, 1, 2, 3] = np.nan
    artifacts.write_array(shard, acts)
    config.sae.max_bad_steps = 1
    with pytest.raises(FloatingPointError, match=r"1 activation vector\(s\) .*: 68 of the train split"):
        run(config, workdir)  # 7 x 9 + 1 x 3 + 2
    config.sae.max_bad_steps = 10
    stages.restart(config, workdir, "sae")
    run(config, workdir)
    assert stages.results(config, workdir, "sae")["refused_steps"] == 12
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sae.load(workdir / "sae")))


def test_metrics_are_read_while_the_next_dispatch_runs(study, monkeypatch):
    """Between two dispatches the host reads nothing of the later one: the devices never wait for it.

    A dispatch ends where a profile begins and where it ends.
    """
    config, workdir = study
    config.sae.update(save_every_steps=0, eval_every_steps=0, n_epochs=4.0)
    told, make, report = [], train.make_dispatch, loop._Reader._report

    def make_dispatch(*args):
        dispatch = make(*args)

        def told_dispatch(state, *rest):
            told.append(("sent", rest[-1]))
            return dispatch(state, *rest)

        return told_dispatch

    def told_report(reader, first, n, *rest):
        told.append(("read", n))
        return report(reader, first, n, *rest)

    monkeypatch.setattr(train, "make_dispatch", make_dispatch)
    monkeypatch.setattr(loop._Reader, "_report", told_report)
    monkeypatch.setattr(RunContext, "profile_bounds", lambda self: (3, 7))
    run(config, workdir)
    assert {3, 7} <= set(np.cumsum([steps for kind, steps in told if kind == "sent"]).tolist())
    kinds = [kind for kind, _ in told]
    n = len(kinds) // 2
    assert n > 4
    assert kinds == ["sent", "sent", *["read", "sent"] * (n - 2), "read", "read"]
    assert sum(steps for kind, steps in told if kind == "read") == 20


def test_finite_activations_that_blow_up_blame_the_learning_rate():
    assert "lower sae.learning_rate" in loop._reason([])
    assert ", ..." in loop._reason(list(range(20)))


def test_evaluation_touches_neither_the_order_nor_the_state(finished, study):
    config, workdir = study
    config.sae.eval_every_steps = 0
    run(config, workdir)
    jax.tree.map(np.testing.assert_array_equal, sae.load(workdir / "sae"), sae.load(finished[1] / "sae"))


@pytest.mark.parametrize("variant", ["batch_topk", "gated"])
def test_a_run_with_averaged_weights_is_evaluated_loaded_and_exported_with_them(variant, study, examples):
    config, workdir = study
    config.sae.update(variant=variant, ema_decay=0.9, n_epochs=2.0)
    config.sae.gated.l1 = 0.05
    run(config, workdir)
    results = stages.results(config, workdir, "sae")
    model, store = sae.load(workdir / "sae"), examples.open_store(config, workdir, "test")
    x = store.read(0, store.n_images)
    flat, x_hat = (a.reshape(-1, 16) for a in (x, np.asarray(model.decode(model.encode(x)))))
    fvu = ((flat - x_hat) ** 2).sum() / ((flat - flat.mean(0)[None, :]) ** 2).sum()
    assert fvu == pytest.approx(results["fvu"], rel=1e-4)  # the numbers are of the averaged weights too
    back = export.load(workdir / "sae" / "export")
    feats = np.asarray(model.encode(x))
    assert (np.abs(back.encode(x) - feats) > 1e-4 * feats.max()).mean() < 1e-3


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"variant": "tokp"}, "relu_l1, topk, batch_topk, jumprelu, matryoshka, gated"),
        (
            {"k": 4},
            r"sae\.k is a setting of single variants: config\.sae\.topk\.k, config\.sae\.batch_topk\.k",
        ),
        ({"topk": {"kk": 4}}, "variant 'topk' has no kk; its settings are k, aux_alpha"),
        ({"variant": "relu_l1", "relu_l1": {"decoder_norm": "none"}}, "valid are 'unit', 'free'"),
        ({"variant": "jumprelu", "jumprelu": {"bandwidth": 0.0}}, "bandwidth=0.0 must be above 0"),
        ({"variant": "matryoshka", "matryoshka": {"prefix_shares": (0.5, 0.9)}}, "n_features=64"),
        ({"frozen": "both"}, "'decoder' and 'encoder'"),
        ({"ema_decay": 1.0}, "ema_decay"),
        ({"topk": {"k": 65}}, r"1\.\.n_features=64"),
        ({"batch_size": 100}, "multiple of 64"),
        ({"store": "disk"}, "auto, resident, streamed"),
        ({"store": "streamed", "buffer_mib": 0.001}, "buffer_mib"),
        ({"n_features": 2**40}, r"needs about .* GiB per device .*: lower sae\.n_features or raise runtime"),
    ],
)
def test_bad_settings_are_named_before_anything_is_trained(study, changes, message):
    config, workdir = study
    config.sae.update(changes)
    with pytest.raises(ValueError, match=message):
        run(config, workdir)
    assert not (workdir / "sae" / "checkpoints").exists()


def test_a_warmup_longer_than_a_run_on_few_photos_is_cut_and_said(study, monkeypatch):
    config, _ = study
    notes, context = [], RunContext()
    monkeypatch.setattr(context, "note", notes.append)
    recipe = recipe_of(config.sae, n_steps=101, dead_after_steps=1)
    note_warmup(config.sae, recipe, context)
    assert recipe.lr_warmup_steps == config.sae.lr_warmup_steps and notes == []
    config.sae.lr_warmup_steps = 100
    recipe = recipe_of(config.sae, n_steps=100, dead_after_steps=1)
    assert recipe.lr_warmup_steps == 10
    note_warmup(config.sae, recipe, context)
    (note,) = notes
    assert "config.sae.lr_warmup_steps=100, and the run has 100 steps: 10 are taken" in note


def test_load_says_what_to_run_where_nothing_was_trained(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"run launch\.train_sae"):
        sae.load(tmp_path)
