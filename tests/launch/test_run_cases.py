"""Runs and command lines that go wrong: what a newcomer types and what machines do, and what comes of it.

Each row is the real pipeline on bare activations, started by a fork of one Python. `--cases-table=FILE`
writes the rows with what was said.
"""

import json
import os
import shutil
import time

import numpy as np
import pytest

from jsae.runtime import stages, workdirs
from launch.faults import plan, runs

SMALL = (
    "--config=configs/arrays.py",
    "--config.sae.n_features=32",
    "--config.sae.topk.k=2",
    "--config.sae.batch_size=64",
    "--config.sae.n_epochs=6",
    "--config.sae.save_every_steps=4",
    "--config.sae.eval_every_steps=0",
    "--config.analysis.n_permutations=2",
    "--config.analysis.batch_size=16",
)


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """An .npz of 40 images on a 3x3 grid with 16 channels."""
    path = tmp_path_factory.mktemp("arrays") / "x.npz"
    rng = np.random.default_rng(0)
    np.savez(path, activations=rng.normal(size=(70, 3, 3, 16)).astype(np.float32), labels=np.arange(70) % 2)
    return path


@pytest.fixture(scope="module")
def run(clean_environment, arrays):
    """run(workdir, *settings): an Outcome, never a traceback.

    But for a full disk and for a checkpoint that cannot be read (orbax_prints): there threads of orbax's own
    may print one that nothing of ours can catch.
    """

    def run(workdir, *settings, base=SMALL, orbax_prints=False, **how):
        settings = [*base, f"--config.data.dir={arrays}", *settings] if base else settings
        done = runs.run(workdir, settings, environment=clean_environment, **how)
        orbax_prints = orbax_prints or "full" in str(how.get("fail"))
        assert orbax_prints or not done.says("Traceback"), done.lines
        return done

    return run


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The workdir of a finished study."""
    workdir = tmp_path_factory.mktemp("finished") / "w"
    done = run(workdir)
    assert done.code == 0, done.lines
    return workdir


@pytest.fixture
def study(finished, tmp_path):
    """A copy of it."""
    return shutil.copytree(finished, tmp_path / "w")


def error_of(done) -> str:
    return next((line[line.index("error:") :] for line in done.lines if "error:" in line), done.lines[-1])


# What is typed after the config, on which workdir (finished, extracted: up to the activations, new), and
# words of the answer; "" for a run that ends well.
TYPED = [
    ("an unknown key", "--config.sae.kk=3", "finished", "config.sae has no 'kk'; its keys are batch_size"),
    (
        "a variant's setting outside its section",
        "--config.sae.k=3",
        "finished",
        "config.sae has no 'k'; there is config.sae.batch_topk.k, config.sae.matryoshka.k, config.sae.topk.k",
    ),
    (
        "a setting of another variant",
        "--config.sae.gated.l1=3",
        "finished",
        "it is of variant 'gated', and config.sae.variant is 'topk' with config.sae.topk.",
    ),
    (
        "a key of a value",
        "--config.sae.topk.k.x=3",
        "finished",
        "config.sae.topk.k has no 'x'; it is a value",
    ),
    ("an unknown section", "--config.sea.k=3", "finished", "config has no 'sea'; its keys are ablation"),
    (
        "a word for a number",
        "--config.sae.topk.k=many",
        "finished",
        "config.sae.topk.k is a whole number (in",
        "not 'many'",
    ),
    ("a fraction for a whole number", "--config.sae.topk.k=2.5", "finished", "a whole number", "not '2.5'"),
    (
        "a word for yes or no",
        "--config.runtime.deterministic=perhaps",
        "finished",
        "true or false",
        "perhaps",
    ),
    (
        "a stage that is none",
        "--restart=sea",
        "finished",
        "no stage 'sea'; the stages are classifier",
    ),
    ("a word too many", "sae", "finished", "unexpected argument 'sae'; flags are --config"),
    ("a flag that is none", "--worksdir=x", "finished", "worksdir"),
    ("a mesh of more devices than there are", "--config.runtime.data_axis=3", "finished", "data_axis=3"),
    ("a typo in the variant", "--config.sae.variant=topkk", "extracted", "topkk", "topk, batch_topk"),
    ("k = 0", "--config.sae.topk.k=0", "extracted", "k=0"),
    ("k > F", "--config.sae.topk.k=33", "extracted", "k=33"),
    ("F < C", "--config.sae.n_features=8", "extracted", ""),
    ("a batch that 64 does not divide", "--config.sae.batch_size=65", "extracted", "65", "multiple of 64"),
    ("15 top patches", "--config.analysis.n_top=15", "extracted", "n_top=15 must be at least 16"),
    ("more top patches than images", "--config.analysis.n_top=999", "extracted", ""),
    ("a data kind that is none", "--config.data.kind=array", "new", "'array'", "arrays"),
    ("a file of arrays that is not there", "--config.data.dir=/nowhere/x.npz", "new", "/nowhere/x.npz"),
    ("a site that is none", "--config.activations.site=stage5", "new", "no site 'stage5'", "stem, stage1"),
    ("a type of activations that is none", "--config.activations.dtype=int8", "new", "float32, bfloat16"),
]


@pytest.mark.parametrize(
    "given, typed, where, words", [(*row[:3], row[3:]) for row in TYPED], ids=[row[0] for row in TYPED]
)
def test_a_mistyped_command_is_told_what_is_valid(run, study, note_case, given, typed, where, words):
    for name in {"finished": (), "extracted": ("sae", "analysis", "report")}.get(where, ()):
        shutil.rmtree(study / name)
    if where == "new":
        shutil.rmtree(study)
    before = snapshot(study)
    done = run(study, typed)
    if words == ("",):  # odd, and allowed
        assert done.code == 0, done.lines
        summary = json.loads((study / "summary.json").read_text())
        note_case(
            "4. numbers", given, f"runs; fvu {summary['sae']['fvu']:.3f}, l0 {summary['sae']['l0']:.1f}"
        )
        return
    said = error_of(done)
    assert done.code == 1 and all(word in said for word in words), done.lines
    if where == "finished":
        assert snapshot(study) == before, "nothing may be lost or changed"
    note_case("6. command line", f"{given}: `{typed}`", said.replace(str(study), "W"))


def snapshot(workdir) -> dict:
    """Bytes of all files but the log and the lock."""
    names = {"log.txt", ".lock"}
    files = (path for path in workdir.rglob("*") if path.is_file() and path.name not in names)
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


@pytest.mark.parametrize(
    "given, settings, words",
    [
        (
            "a config that is not there",
            ["--config=configs/none.py"],
            ["no config file configs/none.py", "demo.py"],
        ),
        ("no config", [], ["--config=configs/demo.py"]),
        (
            "a form that is none",
            ["--config=configs/demo.py:huge"],
            ["configs/demo.py:huge", "full and small"],
        ),
    ],
)
def test_a_config_that_cannot_be_read_is_named(run, tmp_path, note_case, given, settings, words):
    done = run(tmp_path / "w", *settings, base=())
    said = " ".join(done.lines)
    assert done.code != 0 and all(word in said for word in words), done.lines
    assert not (tmp_path / "w").exists()
    note_case("6. command line", given, error_of(done))


def test_a_workdir_that_cannot_be_made_is_named(run, tmp_path, note_case):
    (tmp_path / "file").write_text("")
    done = run(tmp_path / "file" / "w")
    assert done.code == 1 and done.says("error:", "is not writable", str(tmp_path / "file" / "w"))
    note_case(
        "6. command line", "a workdir that is not writable", error_of(done).replace(str(tmp_path), "TMP")
    )


def test_started_again_it_is_up_to_date_whatever_the_clock_says(run, study, note_case):
    for path in study.rglob("*"):
        os.utime(path, (time.time() + 10**8, time.time() + 10**8))
    done = run(study)
    assert done.code == 0
    assert all(done.says(f"{stage}: up to date") for stage in ("activations", "sae", "analysis")), done.lines
    note_case("5. runs", "the clock goes back three years", "up to date: no result depends on the clock")


def test_another_config_is_refused_and_nothing_is_changed(run, study, note_case):
    before = snapshot(study)
    done = run(study, "--config.sae.n_epochs=9")
    assert done.code == 1 and done.says("config.sae.n_epochs: 6.0 there, 9.0 now"), done.lines
    assert snapshot(study) == before, "config.json is still that of the artifacts"
    note_case("5. runs", "a changed config", error_of(done) + " config.sae.n_epochs: 6.0 there, 9.0 now")


def test_the_same_study_goes_on_on_other_devices(run, study, clean_environment, note_case):
    done = run(study, "--restart=sae", fail="kill@save/8")
    assert done.code == -9
    done = runs.run(
        study,
        [*SMALL, f"--config.data.dir={json.loads((study / 'config.json').read_text())['data']['dir']}"],
        environment=clean_environment | {"JAX_NUM_CPU_DEVICES": "4"},
    )
    assert done.code == 0 and done.says("4 x cpu, mesh data=4 x model=1"), done.lines
    assert done.says("sae: going on from step"), done.lines
    note_case("5. runs", "killed with 1 device, started again with 4", "goes on from the last checkpoint")


def test_two_runs_on_one_workdir(run, study, note_case):
    held = workdirs.lock(study)
    done = run(study)
    held.close()
    assert done.code == 1 and done.says("another run works in", f"process {os.getpid()} on"), done.lines
    note_case("5. runs", "two runs on one workdir", "the second ends: another run works in W: process N on H")
    assert run(study).code == 0, "the lock went with its holder"


@pytest.mark.parametrize(
    "given, fail, code, words",
    [
        ("kill -9 while training", "kill@save/12", -9, ["failpoint save/12: kill"]),
        ("SIGTERM while extracting", "term@rename/train/shard-00000.npy", 75, ["SIGTERM: stopping"]),
        ("SIGTERM while compiling", "term@begin/sae", 75, ["SIGTERM: stopping"]),
        ("SIGTERM while evaluating", "term@saved/*", 75, ["SIGTERM: stopping"]),
        ("SIGTERM while training", "term@progress/sae#2", 75, ["SIGTERM: stopping at the next consistent"]),
        ("SIGINT while analysing", "int@progress/analysis of test", 75, ["SIGINT: stopping"]),
        (
            "the disk is full while training",
            "full@save/4",
            1,
            [
                "error:",
                "the disk of",
                "takes no more (a checkpoint takes",
                "Nothing that was finished is lost",
            ],
        ),
        (
            "the disk is full at a table",
            "full@write/analysis/features.parquet",
            1,
            ["cannot write", "features.parq"],
        ),
    ],
)
def test_what_machines_do(run, study, finished, note_case, given, fail, code, words):
    restart = "activations" if "shard" in fail else "sae"
    done = run(study, f"--restart={restart}", fail=fail)
    assert done.struck_s is not None, "the run never came to that place"
    assert done.code == code and done.says(*words), done.lines
    again = run(study)
    assert again.code == 0, again.lines
    table = "analysis/features.parquet"
    numbers = [stages.manifest_in(w / "sae")["results"]["fvu"] for w in (study, finished)]
    assert numbers[0] == numbers[1] and (study / table).exists()
    said = next(line for line in done.lines if all(word in line for word in words))
    note_case(
        "5. runs", given, f"exit code {code}: {said.replace(str(study), 'W')}; started again: the same fvu"
    )


def test_a_half_written_newest_checkpoint(run, study, finished, note_case):
    assert run(study, "--restart=sae", fail="kill@save/12").code == -9
    index = "sae/checkpoints/*/default/d/*"  # of files with arrays as small as these not all are read
    path = plan.damage(study, plan.Fault("truncate", "sae", "save/12", index))
    done = run(study, orbax_prints=True)
    assert done.code == 0 and done.says("checkpoint", "cannot be read", "damaged, going on from step"), path
    fvu = [stages.manifest_in(w / "sae")["results"]["fvu"] for w in (study, finished)]
    assert fvu[0] == fvu[1]
    said = next(line for line in done.lines if "cannot be read" in line)
    given = "the newest checkpoint is half written"
    note_case("5. runs", given, said.replace(str(study), "W") + "; the same fvu")
