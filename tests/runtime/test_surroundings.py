"""Terminals that close, locales that are not UTF-8, settings of jax around a run, limits of containers."""

import json
import os
import resource
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jsae.runtime import checkpoints, environment, memory

HERE = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
GIB = 1 << 30


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """An .npz whose class names are not ASCII."""
    path = tmp_path_factory.mktemp("größe") / "x.npz"
    rng, names = np.random.default_rng(0), np.array(["Köln–Bonn", "Łódź"])
    acts = rng.normal(size=(40, 2, 2, 4)).astype(np.float32)
    np.savez(path, activations=acts, labels=np.arange(40) % 2, class_names=names)
    return path


@pytest.fixture
def start(arrays, tmp_path, users_environment):
    """start(**of Popen) extracts `arrays` into tmp_path/w, from there; `behind` is shell for its streams."""

    def start(more=(), behind="", **how):
        root = users_environment["PYTHONPATH"]
        command = [sys.executable, "-m", "launch.extract", f"--config={root}/configs/arrays.py"]
        command += [f"--config.data.dir={os.path.relpath(arrays, tmp_path)}", "--workdir=w"]
        command, env = ["sh", "-c", f'exec "$@" {behind}', "sh", *command], users_environment | dict(more)
        return subprocess.Popen(command, cwd=tmp_path, env=env, **how)

    return start


def log_of(tmp_path) -> str:
    return (tmp_path / "w/log.txt").read_text("utf-8")


def test_with_closed_streams_a_run_goes_on_and_its_log_is_whole(start, tmp_path):
    assert start(behind="<&- >&- 2>&-").wait(120) == 0
    log = log_of(tmp_path)
    assert "activations: done" in log and "results:" in log and "mesh data=1" in log


def test_a_broken_pipe_and_a_locale_of_ascii_lose_no_line_of_the_log(start, tmp_path):
    ascii_locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    process = start(ascii_locale, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    first = process.stdout.readline()
    process.stdout.close()
    assert process.wait(120) == 0, first
    assert "results:" in log_of(tmp_path) and "größe" in log_of(tmp_path)
    manifest = json.loads((tmp_path / "w/activations/train/manifest.json").read_text("utf-8"))
    assert manifest["class_names"] == ["Köln–Bonn", "Łódź"]


def test_a_stream_that_breaks_goes_nowhere_for_everyone():
    program = (
        "import os, sys\n"
        "from jsae.runtime import environment\n"
        "environment.keep_streams()\n"
        "print('one', flush=True)\n"
        "sys.stdin.readline()\n"  # until the reader is gone
        "print('two', flush=True); os.write(1, b'three'); print('–')\n"
        "sys.stderr.write('lived')\n"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", program], env=dict(os.environ), text=True, **pipes)
    assert process.stdout.readline() == "one\n"
    process.stdout.close()
    _, said = process.communicate("\n", timeout=60)
    assert process.returncode == 0 and said == "lived"


def test_settings_of_jax_that_change_numbers_are_set_back_and_named():
    before = {name: getattr(jax.config, name) for name in environment._JAX}
    try:
        environment.settle_jax()
        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_default_prng_impl", "rbg")
        assert environment.settle_jax() == ["jax_enable_x64=True", "jax_default_prng_impl=rbg"]
        assert jnp.zeros(3).dtype == jnp.float32 and environment.settle_jax() == []
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def test_a_checkpoint_is_read_as_it_was_saved_where_x64_is_on(tmp_path):
    saved = checkpoints.Checkpoints(tmp_path)
    saved.save(1, {"w": jnp.arange(3, dtype=jnp.float32)})
    saved.close()
    jax.config.update("jax_enable_x64", True)
    try:
        again = checkpoints.Checkpoints(tmp_path)
        step, state = again.restore(checkpoints.abstract({"w": jnp.zeros(3)}, HERE))
        again.close()
    finally:
        jax.config.update("jax_enable_x64", False)
    assert step == 1 and state["w"].dtype == jnp.float32


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize\nmore"), AssertionError()])
def test_a_platform_that_is_not_there_is_named(monkeypatch, error):
    def refuse():
        raise error

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(RuntimeError, match=r"JAX_PLATFORMS='cuda'.*Set JAX_PLATFORMS=cpu") as caught:
        environment.check_platform()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "limits, expected",
    [
        ({}, 100),
        ({"sys/fs/cgroup": ("memory.max", "max", "memory.current", 3)}, 100),
        ({"sys/fs/cgroup": ("memory.max", 8, "memory.current", 3)}, 6),
        ({"sys/fs/cgroup/memory": ("memory.limit_in_bytes", 8, "memory.usage_in_bytes", 5)}, 4),
        ({"sys/fs/cgroup/memory": ("memory.limit_in_bytes", 1 << 33, "memory.usage_in_bytes", 5)}, 100),
    ],
)
def test_a_container_has_what_its_group_may_take(tmp_path, limits, expected):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 1 kB\nMemAvailable: {100 * GIB >> 10} kB\n")
    for folder, (limit, most, used, taken) in limits.items():
        (tmp_path / folder).mkdir(parents=True)
        for name, value in ((limit, most), (used, taken)):
            (tmp_path / folder / name).write_text(f"{value if isinstance(value, str) else value * GIB}\n")
        (tmp_path / folder / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert memory.available_bytes(str(tmp_path)) == expected * GIB


def test_a_limit_of_the_shell_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (5 * GIB, resource.RLIM_INFINITY))
    assert memory.available_bytes(str(tmp_path)) == 5 * GIB
