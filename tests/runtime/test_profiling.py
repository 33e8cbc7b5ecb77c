"""A profile on demand: which steps are recorded, where it goes, what is refused; compiled programs."""

import jax
import pytest

from jsae.runtime import compilation, mesh
from jsae.runtime.context import RunContext
from jsae.runtime.profiling import Profiler


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the profiler was told, in order."""
    told = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: told.append(("start", folder)))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: told.append(("stop",)))
    return told


def test_the_steps_asked_for_are_recorded_once_for_each_stage(calls, tmp_path):
    context = RunContext(profiler=Profiler("10..20", tmp_path))
    assert context.profile_bounds() == (10, 20)
    seen = {}
    for stage in ("classifier", "sae"):
        for step in range(0, 40, 4):  # dispatches of four steps
            context.profile(stage, step)
            seen[stage, step] = len(calls)
        context.end_profile(stage)
    assert calls == [
        ("start", str(tmp_path / "profile" / "classifier")),
        ("stop",),
        ("start", str(tmp_path / "profile" / "sae")),
        ("stop",),
    ]
    assert [seen["sae", step] for step in (8, 12, 16, 20)] == [2, 3, 3, 4]


def test_a_stage_that_ends_early_ends_its_profile(calls, tmp_path):
    profiler = Profiler("2..50", tmp_path)
    profiler.at("sae", 3)
    profiler.end("sae")
    profiler.end("sae")
    assert [call[0] for call in calls] == ["start", "stop"]


def test_nothing_is_recorded_where_nobody_asked(calls):
    context = RunContext()
    context.profile("sae", 12)
    context.end_profile("sae")
    assert calls == [] and context.profile_bounds() == ()


@pytest.mark.parametrize("steps", ["10", "20..10", "10-20", "a..b", "5..5"])
def test_other_forms_are_refused(tmp_path, steps):
    with pytest.raises(ValueError, match=r"expected FIRST\.\.LAST"):
        Profiler(steps, tmp_path)


def test_only_the_first_process_writes_the_compilation_cache(monkeypatch, tmp_path):
    settings = {}
    monkeypatch.setattr(jax.config, "update", lambda name, value: settings.update({name: value}))
    compilation.cache("")
    assert settings == {}
    least = "jax_persistent_cache_min_compile_time_secs"
    compilation.cache(str(tmp_path))
    assert settings["jax_compilation_cache_dir"] == str(tmp_path) and settings[least] < 10
    monkeypatch.setattr(mesh, "is_writer", lambda: False)
    compilation.cache(str(tmp_path))
    assert settings[least] == float("inf")


def test_what_compiling_costs_is_counted_from_when_a_run_listens(monkeypatch):
    heard = []
    monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", heard.append)
    seconds = compilation.Seconds()
    seconds.start()
    for event in ("/jax/core/compile/backend_compile_duration", "/jax/other"):
        heard[0](event, 1.5, fun_name="f")
    assert seconds.total_s == 1.5
