"""launch/venv.sh and the pins: what it finds missing in .venv, and that the pins cover the project.

Nothing is installed and no network is used: packages are the few files by which pip's work is known.
"""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PIN_FILES = {
    name: ROOT / "launch" / f"requirements{suffix}.txt"
    for name, suffix in [("base", ""), *((s, f"-{s}") for s in ("test", "gcs", "cuda12", "cuda13", "tpu"))]
}


def write_program(checkout: Path, name: str, text: str) -> None:
    """A program that `venv` finds before the machine's own."""
    path = checkout.parent / "bin" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def venv(checkout: Path, *words: str, **env: str | None) -> subprocess.CompletedProcess:
    """Runs the copy of launch/venv.sh; a variable that is None is not set."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHON"} | env
    env["PATH"] = f"{checkout.parent / 'bin'}:{env['PATH']}"
    env = {name: value for name, value in env.items() if value is not None}
    script = str(checkout / "launch" / "venv.sh")
    return subprocess.run([script, *words], env=env, capture_output=True, text=True, timeout=60)


@pytest.fixture
def checkout(tmp_path):
    """A checkout whose pins are two packages, and its .venv without pip and without packages."""
    checkout = tmp_path / "a checkout"
    (checkout / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "venv.sh", checkout / "launch")
    (checkout / "launch" / "requirements.txt").write_text(
        '# pins\nOne.Pkg==1.0\ntwo==1 ; python_version < "3.11"\ntwo==2 ; python_version >= "3.11"\n'
    )
    (checkout / "pyproject.toml").write_text("")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(checkout / ".venv")], check=True)
    return checkout


def install(checkout: Path, name: str, version: str, url: str | None = None) -> Path:
    """Leaves what pip leaves of a package of one module."""
    site = next((checkout / ".venv" / "lib").glob("python3.*")) / "site-packages"
    info = site / f"{name}-{version}.dist-info"
    info.mkdir()
    (site / f"{name}.py").write_text("")
    (info / "RECORD").write_text(f"{name}.py,,\n{info.name}/RECORD,,\n../../../bin/{name},,\n")
    if url:
        (info / "direct_url.json").write_text(f'{{"url": "{url}", "dir_info": {{"editable": true}}}}')
    return info


def lacking(checkout: Path, *words: str) -> list[str]:
    done = venv(checkout, "--check", *words)
    assert done.returncode == (1 if done.stderr else 0)
    return [line.removeprefix("jsae: ") for line in done.stderr.splitlines()[1:]]


def test_venv_sees_what_is_missing(checkout):
    assert lacking(checkout) == ["One.Pkg==1.0", "two==2", "-e"]
    one = install(checkout, "one_pkg", "1.0")
    install(checkout, "two", "1")
    install(checkout, "jsae", "0.1.0", "file:///elsewhere")
    assert lacking(checkout) == ["two==2", "-e"]  # an old version; the project of another checkout
    shutil.rmtree(one.parent / "two-1.dist-info")
    shutil.rmtree(one.parent / "jsae-0.1.0.dist-info")
    install(checkout, "two", "2")
    install(checkout, "jsae", "0.1.0", checkout.as_uri())
    before = os.times()
    assert lacking(checkout) == []
    after = os.times()  # processor time: the machine may be busy with other work
    assert sum(after[2:4]) - sum(before[2:4]) < 1
    assert venv(checkout).stderr == ""
    (one.parent / "two.py").unlink()
    (one / "RECORD").unlink()  # pip writes it last: an interrupted install has none
    assert lacking(checkout) == ["One.Pkg==1.0", "two==2"]


def test_venv_that_is_no_environment(checkout):
    (checkout / ".venv" / "pyvenv.cfg").unlink()  # its python would now install into the system
    assert lacking(checkout) == ["everything"]
    shutil.rmtree(checkout / ".venv")
    assert lacking(checkout) == ["everything"]


def test_no_python_is_named(checkout):
    shutil.rmtree(checkout / ".venv")
    old = "#!/bin/bash\nif [[ $2 == *platform* ]]; then echo 3.9.2; else exit 1; fi\n"
    for name in ("python3.13", "python3.12", "python3.11", "python"):
        write_program(checkout, name, "#!/bin/bash\nexit 127\n")
    write_program(checkout, "python3", old)
    done = venv(checkout)
    assert done.returncode == 1
    assert "Python >= 3.11 is needed. python3 is 3.9.2; set PYTHON=" in done.stderr
    bare = "#!/bin/bash\nif [[ $2 == *ensurepip* ]]; then exit 1; fi\necho 3.11.2\n"
    write_program(checkout, "python3", bare)
    done = venv(checkout)
    assert done.returncode == 1 and "apt install python3-venv" in done.stderr
    assert not (checkout / ".venv").exists()


def pins(name: str, python: str) -> dict[str, str]:
    """Canonical name -> exact version of one file, for a Python version such as "3.12"."""
    found = {}
    for line in PIN_FILES[name].read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"{line} is not an exact pin"
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert canonicalize_name(pin.name) not in found, f"{pin.name} is pinned twice for Python {python}"
            found[canonicalize_name(pin.name)] = str(pin.specifier)[2:]
    return found


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_pins_cover_the_project(python):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    base = pins("base", python)
    wanted = [(line, base) for line in project["dependencies"]]
    for extra in ("test", "gcs"):
        wanted += [(line, base | pins(extra, python)) for line in project["optional-dependencies"][extra]]
    for line, have in wanted:
        need = Requirement(line)
        version = have.get(canonicalize_name(need.name))
        assert version and need.specifier.contains(version), (
            f"{line}: the pin for Python {python} is {version}"
        )
    for cuda in ("cuda12", "cuda13"):
        plugin = pins(cuda, python)
        assert base["jax"] == base["jaxlib"] == plugin[f"jax-{cuda}-plugin"] == plugin[f"jax-{cuda}-pjrt"]
    assert "libtpu" in pins("tpu", python)


def test_pins_are_complete():
    """What the pinned packages need is pinned too: they are installed with --no-deps."""
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    have = pins("base", here) | pins("test", here) | pins("gcs", here)
    for name in sorted(have.keys() - {"setuptools"}):
        for line in metadata.requires(name) or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                assert canonicalize_name(need.name) in have, f"{name} needs {line}, which has no pin"


def test_nothing_is_tied_to_a_machine():
    for path in [*(ROOT / "launch").glob("*.*"), ROOT / ".ci" / "run"]:
        for line in path.read_text().splitlines():
            assert not re.search(
                r"https?://|--(extra-)?index-url|--find-links|/(home|opt|root|mnt)/", line
            ), path


@pytest.mark.parametrize(
    "says, word, words",
    [
        ("echo 580.65.06; echo 580.65.06", "cuda13", ""),
        ("echo 579.99", "cuda12", "driver 579.99 is older than 580"),
        ("echo 535.104.05", "cuda12", "cuda12 is taken"),
        ("echo 470.82.01", "", "older than 525"),
        ("echo NVML mismatch; exit 18", "", "nvidia-smi failed: NVML mismatch"),
    ],
)
def test_auto_takes_the_cuda_of_the_driver(checkout, says, word, words):
    write_program(checkout, "nvidia-smi", f"#!/bin/bash\n{says}\n")
    for name in ("cuda12", "cuda13", "tpu"):
        (checkout / "launch" / f"requirements-{name}.txt").write_text(f"plugin-{name}==1\n")
    if os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/accel0"):
        pytest.skip("there is an accelerator here")
    done = venv(checkout, "--check", "auto", JAX_PLATFORMS="")
    plugins = [line for line in done.stderr.splitlines() if line.startswith("plugin-")]
    assert plugins == ([f"plugin-{word}==1"] if word else []) and words in done.stderr
    assert "plugin-" not in venv(checkout, "--check", "auto", JAX_PLATFORMS="cpu").stderr


def test_the_plugin_of_the_other_cuda_is_too_much(checkout):
    """jax loads every plugin it finds, and two for CUDA clash."""
    for name in ("cuda12", "cuda13"):
        (checkout / "launch" / f"requirements-{name}.txt").write_text(f"jax-{name}-plugin==1\n")
    install(checkout, "jsae", "0.1.0", checkout.as_uri())
    install(checkout, "jax_cuda13_plugin", "1")
    surplus = ["jax-cuda13-plugin is too much", "jax-cuda13-pjrt is too much"]
    assert lacking(checkout, "cuda12")[-3:] == ["jax-cuda12-plugin==1", *surplus]
    assert "too much" not in "".join(lacking(checkout, "cuda13"))
    assert "too much" not in "".join(lacking(checkout))


def write_pip(checkout):
    """A pip that prints what it is given and installs nothing, in an environment that lacks one package."""
    install(checkout, "two", "2")
    info = install(checkout, "jsae", "0.1.0", checkout.as_uri())
    package = info.parent / "pip" / "_internal" / "cli"
    package.mkdir(parents=True)
    (package / "main.py").write_text("")
    (info.parent / "pip" / "__main__.py").write_text(
        "import os, sys\nprint('pip', *sorted(n for n in os.environ if n.startswith(('PIP_', 'PYTHON'))))\n"
    )


def test_pip_gets_only_what_says_where_packages_come_from(checkout):
    write_pip(checkout)
    given = dict(
        PIP_CONSTRAINT="/lab/constraints.txt",
        PIP_TARGET="/lab",
        PIP_REQUIRE_HASHES="1",
        PIP_NO_BINARY=":all:",
    )
    given |= dict(PIP_INDEX_URL="file:///lab", PYTHONPATH="/lab", PYTHONHOME="/lab", PIP_USER="1")
    done = venv(checkout, **given)
    got = set(done.stdout.split())
    assert "PIP_INDEX_URL" in got and not got & (given.keys() - {"PIP_INDEX_URL", "PIP_USER"}), done.stdout
    assert "still lacks One.Pkg==1.0" in done.stderr


@pytest.mark.parametrize(
    "code, words", [(1, "another start is installing"), (71, "has no locks (flock: 9: No locks")]
)
def test_a_disk_without_locks_is_told_and_not_waited_for(checkout, code, words):
    write_pip(checkout)
    write_program(
        checkout,
        "flock",
        f"#!/bin/bash\nif [[ $1 == -n ]]; then echo 'flock: 9: No locks available' >&2; exit {code}; fi\n",
    )
    done = venv(checkout)
    assert words in done.stderr and "still lacks One.Pkg==1.0" in done.stderr
    assert ("another start" in done.stderr) == (code == 1)


@pytest.mark.parametrize("home", [None, "/nowhere/home", "/proc"])
def test_no_home_folder_is_needed(checkout, home):
    write_pip(checkout)
    (checkout.parent / "elsewhere" / "a checkout").mkdir(parents=True)
    done = venv(checkout, HOME=home, CDPATH=str(checkout.parent / "elsewhere"), TMPDIR="/nowhere")
    assert "still lacks One.Pkg==1.0" in done.stderr and "HOME" not in done.stderr
