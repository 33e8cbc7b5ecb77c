"""Strict settings for all tests, and the only place that knows where local data may lie."""

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUM_CPU_DEVICES"] = "8"
# Compiling is most of the time. A program that other tests, other workers or runs they start need too is
# compiled once, and LLVM spends no time on code that runs for milliseconds (XLA's own passes are the same).
if "PYTEST_XDIST_WORKER" not in os.environ:
    _COMPILED = tempfile.TemporaryDirectory(prefix="jsae-tests-compiled-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "0"
_XLA_FLAGS = ["--xla_backend_optimization_level=0", "--xla_llvm_disable_expensive_passes=true"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # half of compiling; later ones lack them
    _XLA_FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ["XLA_FLAGS"] = " ".join(_XLA_FLAGS)

import hypothesis
import jax
import pytest
from absl import flags

from jsae.data import locks

jax.config.update("jax_numpy_rank_promotion", "raise")
hypothesis.settings.register_profile("jsae", deadline=None)  # a busy machine is no fault
hypothesis.settings.load_profile("jsae")
if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()

ROOT = pathlib.Path(__file__).parents[1]
_SHARED = ROOT.parent / "shared"


def pytest_addoption(parser):
    parser.addoption(
        "--cases-table", metavar="FILE", help="write what the tests of bad input have seen, as markdown"
    )


def pytest_configure(config):
    if config.getoption("--cases-table") and "PYTEST_XDIST_WORKER" in os.environ:
        raise pytest.UsageError("--cases-table is written by one process: add --numprocesses=0")


def pytest_collection_modifyitems(items):
    """Whole runs first, so that no worker is left with them; of those that share the study one begins.

    The other files that need it come last: by then it is there, and no worker waits for it.
    """
    needing = list(dict.fromkeys(item.path for item in items if "study_dir" in item.fixturenames))
    last = {path: 100 + i for i, path in enumerate(reversed(needing[1:]))}  # test_study.py is the longest
    place = dict.fromkeys(needing[:1], -1) | last
    items.sort(key=lambda item: place.get(item.path, len(item.path.parts)))


@pytest.fixture(scope="session")
def note_case(request):
    """note_case(section, input, what happened): a row of the table that --cases-table asks for."""
    rows: dict[str, list[str]] = {}
    path = request.config.getoption("--cases-table")

    def note(section: str, given: str, happened: str) -> None:
        text = happened.replace("|", "\\|").replace("\n", " ")
        rows.setdefault(section, []).append(f"| {given} | {text} |")
        if path:
            head = ["", "| input | what happens |", "|---|---|"]
            lines = [line for name in sorted(rows) for line in (f"\n## {name}", *head, *rows[name])]
            pathlib.Path(path).write_text("\n".join(lines) + "\n")

    return note


def _shared(relative: str) -> pathlib.Path:
    path = _SHARED / relative
    if not path.exists():
        pytest.skip(f"local data are absent: {relative}")
    return path


@pytest.fixture(scope="session")
def photos_dir():
    """Real photos in FGVC layout (30 types, 224 px, no banner, no boxes)."""
    return _shared("data/aircraft-photos")


@pytest.fixture(scope="session")
def annotations_dir():
    """The official FGVC-Aircraft lists, without images."""
    return _shared("data/fgvc-annotations")


@pytest.fixture(scope="session")
def samples_dir():
    """Five FGVC-Aircraft photos with their banner."""
    return _shared("data/fgvc-samples")


@pytest.fixture(scope="session")
def weights_path():
    """A small pretrained ConvNeXt-atto, timm's names."""
    return _shared("weights/convnext_atto_64px_200.safetensors")


@pytest.fixture(scope="session")
def session_dir(tmp_path_factory):
    """One folder for this run of pytest, whichever of its workers asks."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def clean_environment(session_dir):
    """Environment of the subprocesses that tests start: one CPU device, caches of this session only."""
    environment = {k: v for k, v in os.environ.items() if k != "JAX_NUM_CPU_DEVICES"}
    return environment | {"JSAE_CACHE": str(session_dir / "cache"), "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def users_environment(clean_environment):
    """The same with programs compiled as users' are, for what computes long or depends on it."""
    return {name: value for name, value in clean_environment.items() if name != "XLA_FLAGS"}


@pytest.fixture(scope="session")
def study_dir(users_environment, clean_environment, session_dir):
    """The small form of the demo, run once and shared by all end-to-end tests."""
    workdir = session_dir / "small study"
    arguments = ["--config=configs/demo.py:small", f"--workdir={workdir}"]
    with locks.locked(session_dir / "study.lock"):  # another worker waits, then finds all stages done
        # Training computes long, the other stages compile long
        for script, environment in (("train_classifier", users_environment), ("pipeline", clean_environment)):
            command = [sys.executable, "-m", f"launch.{script}", *arguments]
            done = subprocess.run(
                command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600
            )
            assert done.returncode == 0, done.stderr[-5000:]
    os.environ["JSAE_CACHE"] = users_environment["JSAE_CACHE"]
    return workdir
