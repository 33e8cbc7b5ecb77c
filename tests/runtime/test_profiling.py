"""A profile on demand: which steps are recorded, where it goes, what is refused; the compilation cache."""

import jax
import pytest

from jsae.runtime import mesh as meshes
from jsae.runtime import profiling


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the profiler was told, in order."""
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: told.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append(("stop",)))
    for name, value in (("_wanted", None), ("_recording", None), ("_done", set())):
        monkeypatch.setattr(profiling, name, value)
    return told


def test_the_steps_asked_for_are_recorded_once_for_each_stage(calls, tmp_path):
    assert profiling.bounds() == ()
    profiling.request("10..20", tmp_path)
    assert profiling.bounds() == (10, 20)
    seen = {}
    for stage in ("classifier", "sae"):
        for step in range(0, 40, 4):  # dispatches of four steps
            profiling.at(stage, step)
            seen[stage, step] = len(calls)
        profiling.end(stage)
    assert calls == [
        ("start", str(tmp_path / "profile" / "classifier")),
        ("stop",),
        ("start", str(tmp_path / "profile" / "sae")),
        ("stop",),
    ]
    assert [seen["sae", step] for step in (8, 12, 16, 20)] == [2, 3, 3, 4]


def test_a_stage_that_ends_early_ends_its_profile(calls, tmp_path):
    profiling.request("2..50", tmp_path)
    profiling.at("sae", 3)
    profiling.end("sae")
    profiling.end("sae")
    assert [call[0] for call in calls] == ["start", "stop"]


def test_nothing_is_recorded_where_nobody_asked(calls):
    profiling.at("sae", 12)
    profiling.end("sae")
    assert calls == []


@pytest.mark.parametrize("steps", ["10", "20..10", "10-20", "a..b", "5..5"])
def test_other_forms_are_refused(calls, tmp_path, steps):
    with pytest.raises(ValueError, match=r"expected FIRST\.\.LAST"):
        profiling.request(steps, tmp_path)


def test_only_the_first_process_writes_the_compilation_cache(monkeypatch, tmp_path):
    settings = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: settings.update({name: value}))
    meshes.cache_compilations("")
    assert settings == {}
    least = "jax_persistent_cache_min_compile_time_secs"
    meshes.cache_compilations(str(tmp_path))
    assert settings["jax_compilation_cache_dir"] == str(tmp_path) and settings[least] < 10
    monkeypatch.setattr(meshes, "is_writer", lambda: False)
    meshes.cache_compilations(str(tmp_path))
    assert settings[least] == float("inf")
