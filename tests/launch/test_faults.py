"""The short form of the fault runner, and that it would see what it looks for."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from jsae.runtime import stages
from launch.faults import compare_runs, plan, runs, survivor

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def attacked(clean_environment, tmp_path_factory):
    """(folder, what was said) of one fault in each stage; the long form is by hand."""
    folder = tmp_path_factory.mktemp("faults")
    command = [sys.executable, "-m", "launch.faults", f"--folder={folder}"]
    command += ["--a_stage=1", "--damages=0", "--moments=0"]
    done = subprocess.run(
        command, env=clean_environment, cwd=ROOT, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return folder, done.stdout


def test_a_study_survives_and_is_the_same(attacked):
    folder, said = attacked
    assert "failures 0, differences 0" in said
    for stage in stages.STAGES:
        assert f"| {stage} |" in said
    summary = json.loads((folder / "faults" / "summary.json").read_text())
    assert sum(summary["attempts"].values()) > len(stages.STAGES), "stages were begun again"
    assert all(summary["lost_work_seconds"][stage] is not None for stage in stages.STAGES)


def other(path, change):
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "name, change",
    [
        ("activations/test/labels.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("analysis/features.parquet", lambda data: data[: len(data) // 2]),
        ("sae/metrics.jsonl", lambda data: data + data.splitlines()[-1] + b"\n"),
        ("classifier/manifest.json", lambda data: data.replace(b'"n_steps": 20', b'"n_steps": 21')),
        ("sae/export/sae_weights.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
    ],
)
def test_a_difference_is_seen(attacked, tmp_path, name, change):
    calm = attacked[0] / "calm"
    same, differs = tmp_path / "one", tmp_path / "other"
    for stage in {name.split("/")[0]}:
        for to in (same, differs):
            shutil.copytree(calm / stage, to / stage, ignore=shutil.ignore_patterns("checkpoints"))
    assert compare_runs.compare(same, differs) == []
    other(differs / name, change)
    found = compare_runs.compare(same, differs)
    assert found and name in found[0]


def test_a_changed_array_of_a_checkpoint_is_seen(attacked, tmp_path):
    calm, disturbed = attacked[0] / "calm", tmp_path / "other"
    shutil.copytree(calm / "sae", disturbed / "sae")
    newest = max((disturbed / "sae/checkpoints").iterdir(), key=lambda path: int(path.name))
    shutil.rmtree(newest)
    assert any("holds steps" in line for line in compare_runs.compare(calm, disturbed))


TRACE = ["begin/sae", *["poll", "progress/sae"] * 20, "save/8", "write/sae/manifest.json", "finish/sae"]


def test_a_plan_names_places_that_a_resumed_run_comes_to():
    assert plan._places(TRACE) == [
        "begin/sae#1",
        "poll#1",
        "progress/sae#1",
        "poll#2",
        "progress/sae#2",
        "poll#3",
        "progress/sae#3",
        "save/8#1",
        "write/sae/manifest.json#1",
        "finish/sae#1",
    ]
    drawn = plan.draw(TRACE, 4, seed=0)
    assert [fault.kind for fault in drawn].count("kill") == 1 and len(drawn) == 4
    order = [plan._places(TRACE).index(fault.point) for fault in drawn]
    assert order == sorted(order) and drawn == plan.draw(TRACE, 4, seed=0)


def test_no_signal_before_a_place_that_the_stopping_run_comes_to():
    visits = ["begin/sae", "poll", "save/8", "poll", "write/sae/a", "write/sae/b", "finish/sae"]
    places = ["begin/sae#1", "save/8#1", "write/sae/a#1", "write/sae/b#1", "finish/sae#1"]
    kinds = plan._that_leave_the_next(visits, places, ["term", "int", "int", "full", "term"])
    assert kinds == ["term", "int", "kill", "full", "term"]


def test_so_many_faults_are_drawn_of_two_processes():
    alone, two = [plan.draw_all([TRACE] * n, 40, seed=0) for n in (1, 2)]
    for n, found in ((1, alone), (2, two)):
        assert sum(map(len, found.values())) == 40
        of = [fault.process for faults in found.values() for fault in faults]
        assert [of.count(i) for i in range(n)] == [40 // n] * n
        assert all(len({fault.process for fault in faults}) == 1 for faults in found.values())
    assert not any(fault.kind == "full" for faults in two.values() for fault in faults if fault.process)
    alone, together = (plan.damage_of(n, 9) for n in (1, 2))
    assert alone == list(plan.DAMAGE[:9])
    assert all("ocdbt.process" not in fault.target for fault in together)
    points = [fault.point for fault in two["faults-1-0"]]
    assert "poll#2" not in points, "the first process may have kept the pass meanwhile"


@pytest.mark.parametrize(
    "kind, of, codes, seconds, said",
    [
        ("kill", 1, (1, -9), 2, []),
        ("kill", 0, (-9, -6), 2, []),
        ("term", 1, (75, 75), 2, []),
        ("term", 1, (0, 75), 2, ["process 0 ended with 0"]),
        ("kill", 1, (0, -9), 2, ["process 0 ended with 0"]),
        ("kill", 1, (1, -9), 500, ["process 0 took 499 s"]),
        ("int", 0, (1, 75), 2, ["exit code 1"]),
    ],
)
def test_what_must_come_of_the_other_process(monkeypatch, tmp_path, kind, of, codes, seconds, said):
    def together(*_, n, of, **__):
        ended = [runs.Outcome(code, [], [], seconds, None) for code in codes]
        ended[of] = dataclasses.replace(ended[of], struck_s=1.0)
        return ended

    monkeypatch.setattr(runs, "run_together", together)
    work = survivor.Survivor(tmp_path / "w", 2)
    work.suffer(plan.Fault(kind, "sae", "save/8#1", process=of))
    what = f"w: {kind} at save/8#1" + (" of process 1: " if of else ": ")
    assert [line.removeprefix(what).split(" (")[0] for line in work.failures] == said


def test_a_missed_window_is_a_failure(monkeypatch, tmp_path):
    ended = runs.Outcome(0, ["failpoint installed: trace"], [0.1], 0.2, None)
    monkeypatch.setattr(runs, "run", lambda *_, **__: ended)
    work = survivor.Survivor(tmp_path / "w")
    work.suffer(plan.Fault("kill", "sae", "save/8#1"))
    work.strike("term", 1.0)
    assert [line.split(" (")[0] for line in work.failures] == [
        "w: kill at save/8#1: missed, the run ended with 0",
        "w: term after 0.1 s: missed, the run ended with 0",
    ]
