"""Stages start, resume, are up to date, or name the keys that differ."""

import json
import multiprocessing
import pathlib
import subprocess
import sys
import time

import pytest

import jsae
from configs import demo
from jsae.runtime import attempts, circumstances, compilation, stages, workdirs
from jsae.runtime.context import RunContext

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def config():
    return demo.get_config("small")


def finished(config, workdir, *names):
    for name in names:
        stages.begin(config, workdir, name).finish({"name": name})


def test_a_stage_starts_resumes_and_is_up_to_date(config, tmp_path):
    assert not stages.begin(config, tmp_path, "classifier").up_to_date
    again = stages.begin(config, tmp_path, "classifier")
    assert not again.up_to_date
    again.finish({"test_accuracy": 0.5, "margin": None})
    assert stages.begin(config, tmp_path, "classifier").up_to_date
    assert stages.results(config, tmp_path, "classifier") == {"test_accuracy": 0.5, "margin": None}


def test_the_manifest_says_where_a_result_comes_from(config, tmp_path):
    finished(config, tmp_path, "classifier", "activations")
    upper, lower = (
        json.loads((tmp_path / n / "manifest.json").read_text()) for n in ("classifier", "activations")
    )
    assert lower["upstream"] == upper["digest"] and upper["upstream"] is None
    assert upper["config"]["classifier"]["batch_size"] == config.classifier.batch_size
    assert upper["versions"].keys() >= {"jax", "flax", "orbax-checkpoint"}
    assert "bit-identical" in upper["resume"]


def test_a_stage_needs_the_one_above(config, tmp_path):
    with pytest.raises(stages.StageMissing, match=r"'classifier' was never started.*launch.train_classifier"):
        stages.begin(config, tmp_path, "activations")
    stages.begin(config, tmp_path, "classifier")
    with pytest.raises(stages.StageMissing, match="'classifier' is not finished"):
        stages.begin(config, tmp_path, "activations")


def test_another_config_names_the_keys_and_loses_nothing(config, tmp_path):
    finished(config, tmp_path, "classifier")
    rate, pad_px = config.classifier.learning_rate, config.classifier.augmentation.pad_px
    config.classifier.learning_rate = 0.5
    config.classifier.augmentation.pad_px = 9
    with pytest.raises(stages.ConfigMismatch) as caught:
        stages.begin(config, tmp_path, "classifier")
    message = str(caught.value)
    assert f"config.classifier.learning_rate: {rate} there, 0.5 now" in message
    assert f"config.classifier.augmentation.pad_px: {pad_px} there, 9 now" in message
    assert "--restart=classifier" in message and "batch_size" not in message
    assert (tmp_path / "classifier" / "manifest.json").exists()


@pytest.mark.parametrize("found, way", [(None, "git revision 1ca682e"), (3, "the revision that made it")])
def test_a_study_of_another_format_is_refused_and_stays_as_it_is(config, tmp_path, found, way):
    finished(config, tmp_path, "classifier", "activations")
    workdirs.write_config(config, tmp_path)
    path = tmp_path / "activations" / "manifest.json"
    manifest = json.loads(path.read_text())
    assert manifest.pop("format") == stages.FORMAT
    path.write_text(json.dumps(manifest if found is None else manifest | {"format": found}))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    words = (
        rf"activations/manifest.json is of format {found or 1}, and .* format 2; the study stays as it is: "
    )
    words += rf"take {way} to go on with it, or another --workdir to make it again$"
    opened = (
        lambda: stages.begin(config, tmp_path, "activations"),
        lambda: stages.begin(config, tmp_path, "sae"),
        lambda: stages.check_format(tmp_path),
        lambda: workdirs.write_config(config, tmp_path),
        lambda: jsae.load(tmp_path),
    )
    for refused in opened:
        with pytest.raises(stages.OtherFormat, match=words):
            refused()
    assert before == {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}


def test_a_study_of_another_format_is_refused_by_a_script_before_it_writes_a_file(tmp_path):
    path = tmp_path / "w/sae/manifest.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"stage": "sae", "status": "complete"}')
    command = [sys.executable, "-m", "launch.report", "--config=configs/demo.py", f"--workdir={tmp_path}/w"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and f"error: {path} is of format 1" in done.stderr, done.stderr
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [path]


def test_a_stage_counts_how_long_it_lives_while_its_run_makes_progress(config, tmp_path, monkeypatch):
    monkeypatch.setattr(attempts, "_WRITE_EVERY_S", 0.0)
    context = RunContext(compiling=compilation.Seconds())
    context.compiling.total_s = 2.0
    stage = stages.begin(config, tmp_path, "classifier", context)
    with context.progress(2) as bar:
        time.sleep(0.01)
        bar.update()
        (entry,) = json.loads((stage.folder / attempts.FILE).read_text())
        assert entry["alive_s"] > 0 and entry["kept_s"] == 0
        stage.kept()
        stage.saved(3)
        (entry,) = json.loads((stage.folder / attempts.FILE).read_text())
        assert entry["kept_s"] > 0 and entry["saves"].keys() == {"3"}
        context.compiling.total_s = 3.5
        stage.finish({})
        bar.update()
    assert not (stage.folder / attempts.FILE).exists() and stage.manifest["compile_seconds"] == 1.5


def test_a_stage_that_was_refused_before_it_made_anything_takes_another_config(config, tmp_path):
    stages.begin(config, tmp_path, "classifier")
    config.data.on_bad_image = "skip"
    assert stages.begin(config, tmp_path, "classifier").manifest["config"]["data"]["on_bad_image"] == "skip"
    (tmp_path / "classifier" / "checkpoints" / "1").mkdir(parents=True)
    config.data.on_bad_image = "error"
    with pytest.raises(stages.ConfigMismatch, match=r"config.data.on_bad_image: 'skip' there, 'error' now"):
        stages.begin(config, tmp_path, "classifier")


def test_bare_activations_have_no_classifier_and_no_ablation(config, tmp_path):
    assert stages.skipped(config) == ()
    config.activations.site = stages.IMPORTED
    assert stages.skipped(config) == ("classifier", "ablation")
    assert [stages.above(config, name) for name in ("activations", "sae", "analysis", "report")] == [
        None, "activations", "sae", "analysis"
    ]  # fmt: skip
    for name in ("classifier", "ablation"):
        with pytest.raises(stages.StageMissing, match=f"stage '{name}' cannot run: there is no classifier"):
            stages.begin(config, tmp_path, name)
        with pytest.raises(stages.StageMissing, match=f"this study has no stage '{name}'"):
            stages.require(config, tmp_path, name)
    finished(config, tmp_path, "activations", "sae", "analysis", "report")
    config.classifier.learning_rate = 0.7  # of no stage here
    config.data.seed = 5
    with pytest.raises(stages.ConfigMismatch, match=r"config.data.seed: 0 there, 5 now"):
        stages.begin(config, tmp_path, "activations")
    config.data.seed = 0
    assert stages.begin(config, tmp_path, "activations").up_to_date
    stages.restart(config, tmp_path, "classifier")
    assert not (tmp_path / "activations").exists()


def test_keys_that_change_no_result_are_left_out(config, tmp_path):
    finished(config, tmp_path, "classifier", "activations", "sae")
    config.classifier.log_every_steps = 999
    config.sae.save_every_steps = 999
    config.runtime.data_axis = 1
    config.report.n_features = 3
    for name in ("classifier", "activations", "sae"):
        assert stages.begin(config, tmp_path, name).up_to_date


@pytest.mark.parametrize(
    "change", [("versions", "jax", "0.1"), ("device", "cores", 3), ("device", "kind", "x")]
)
def test_a_run_resumed_under_other_circumstances_is_told_so(config, tmp_path, notes, change):
    stages.begin(config, tmp_path, "classifier").note(begun=True)
    stages.begin(config, tmp_path, "classifier")
    assert notes.texts == []
    path, (group, name, value) = tmp_path / "classifier/manifest.json", change
    manifest = json.loads(path.read_text())
    now = manifest[group][name]
    manifest[group][name] = value
    path.write_text(json.dumps(manifest))
    (tmp_path / "classifier/checkpoints/1").mkdir(parents=True)
    stages.begin(config, tmp_path, "classifier")
    (note,) = notes.texts
    assert (
        f"{name} {value} then, {now} now" in note and "classifier: resumed under other circumstances" in note
    )


def test_the_git_revision_is_this_repositorys_or_none(tmp_path, monkeypatch):
    def git(*words):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "other")
    inside = tmp_path / "env/jsae/runtime/stages.py"
    inside.parent.mkdir(parents=True)
    monkeypatch.setattr(circumstances, "__file__", str(inside))  # installed in a folder of another repository
    assert circumstances.git_revision() is None
    at_root = tmp_path / "jsae/runtime/stages.py"
    at_root.parent.mkdir(parents=True)
    monkeypatch.setattr(circumstances, "__file__", str(at_root))
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook
    assert circumstances.git_revision() == git("--git-dir=.git", "rev-parse", "HEAD")


def test_a_stage_made_anew_invalidates_those_below(config, tmp_path):
    finished(config, tmp_path, "classifier", "activations")
    stages.restart(config, tmp_path, "activations")
    assert (tmp_path / "classifier").exists() and not (tmp_path / "activations").exists()
    finished(config, tmp_path, "activations", "sae")
    config.classifier.learning_rate = 0.5
    stages.restart(config, tmp_path, "classifier")
    assert not (tmp_path / "sae").exists()


def test_an_upstream_change_is_named(config, tmp_path):
    finished(config, tmp_path, "classifier", "activations", "sae")
    path = tmp_path / "activations" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"digest": "0" * 16}))
    with pytest.raises(stages.ConfigMismatch, match="the stage above it, activations, has been made again"):
        stages.begin(config, tmp_path, "sae")


def test_a_classifier_of_another_workdir(config, tmp_path):
    finished(config, tmp_path / "first", "classifier")
    config.seed = 7  # the SAE's seed; the classifier stays the other's
    config.classifier.workdir = str(tmp_path / "first")
    assert stages.begin(config, tmp_path / "second", "classifier").up_to_date
    finished(config, tmp_path / "second", "activations")
    with pytest.raises(ValueError, match="belongs to another workdir"):
        stages.restart(config, tmp_path / "second", "classifier")
    config.data.seed = 5
    with pytest.raises(stages.ConfigMismatch, match=r"config.data.seed: 0 there, 5 now"):
        stages.begin(config, tmp_path / "second", "classifier")


def test_unknown_stage_lists_the_stages(config, tmp_path):
    with pytest.raises(ValueError, match=r"no stage 'sea'; the stages are classifier, activations, sae"):
        stages.begin(config, tmp_path, "sea")


def test_a_damaged_manifest_is_named(config, tmp_path):
    finished(config, tmp_path, "classifier")
    path = tmp_path / "classifier" / "manifest.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(ValueError, match=r"classifier/manifest.json is not valid JSON"):
        stages.begin(config, tmp_path, "classifier")


def _hold(folder, ready, leave):
    held = workdirs.lock(folder)
    ready.set()
    leave.wait(60)
    del held


def test_a_second_run_on_a_workdir_is_refused_by_name(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path, ready, leave))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RuntimeError, match=rf"another run works in .*: process {other.pid} "):
            workdirs.lock(tmp_path)
    finally:
        leave.set()
        other.join(60)
    workdirs.lock(tmp_path).close()
