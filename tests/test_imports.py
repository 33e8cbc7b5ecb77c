"""Import directions: rooms only import rooms above them in the README's list, nothing heavy sneaks in."""

import ast
import pathlib
import subprocess
import sys
import tomllib

import pytest
import setuptools

import jsae

ROOT = pathlib.Path(__file__).parents[1]
ROOMS = [
    "metrics",
    "runtime",
    "tables",
    "data",
    "classifier",
    "activations",
    "sae",
    "edits",
    "study",
    "analysis",
    "ablation",
    "experiments",
    "report",
]
# what conveniences of Study import when they are called
BELOW_STUDY = {"report.card", "analysis.pixel_maps.attribution"}
FILES = sorted((ROOT / "jsae").rglob("*.py"))


def imported(path):
    """Dotted names of all modules that a file imports, inside functions too."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def room(path):
    return path.relative_to(ROOT / "jsae").parts[0].removesuffix(".py")


def is_below_study(name):
    """Whether a name is one of BELOW_STUDY, something in it, or a package that it lies in."""
    return any(
        f"{name}.".startswith(f"jsae.{m}.") or f"jsae.{m}.".startswith(f"{name}.") for m in BELOW_STUDY
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path):
    if path == ROOT / "jsae" / "__init__.py":
        assert all(name.split(".")[0] in sys.stdlib_module_names for name in imported(path))
        return
    position = ROOMS.index(room(path))
    for name in imported(path):
        parts = name.split(".")
        foreign = ("tensorflow", "torch", "ml_collections", "launch", "configs")
        assert parts[0] not in foreign, f"{path} imports {name}"
        if parts[0] == "jsae" and len(parts) > 1 and parts[1] in ROOMS:
            if room(path) == "study" and is_below_study(name):
                continue
            allowed = ROOMS[: position + 1]
            assert parts[1] in allowed, (
                f"{path}: {room(path)} may import {', '.join(allowed)}, not {parts[1]}"
            )
            assert {room(path), parts[1]} != {"classifier", "sae"}, (
                f"{path}: classifier and sae do not know each other"
            )


def test_a_family_of_networks_is_named_inside_the_folder_of_the_families_only():
    folder = ROOT / "jsae" / "classifier" / "families"
    families = [path.name for path in folder.iterdir() if (path / "__init__.py").exists()]
    assert "convnext" in families
    for path in FILES:
        if folder not in path.parents:
            assert not any(name.split(".")[0] == "flax" for name in imported(path)), path
            assert not any(family in path.read_text() for family in families), path


def test_importing_jsae_loads_no_jax():
    code = "import sys, jsae; from jsae.runtime import preemption; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "False"


def test_process_count_is_asked_in_runtime_only():
    for path in FILES:
        if room(path) != "runtime":
            text = path.read_text()
            assert "process_count" not in text and "process_index" not in text, path


def test_the_wheel_holds_the_package_and_nothing_of_the_checkout():
    """A user's own folders `launch` and `configs` are then never taken for ours."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = setuptools.find_packages(str(ROOT), **project["tool"]["setuptools"]["packages"]["find"])
    assert {name.split(".")[0] for name in found} == {"jsae"}
    assert {"jsae.sae.variants", "jsae.report"} <= set(found)
    assert "py.typed" in project["tool"]["setuptools"]["package-data"]["jsae"]
    assert (ROOT / "jsae" / "py.typed").exists()
    assert jsae.__version__ == project["project"]["version"]


def test_a_module_that_is_none_is_told_which_there_are():
    with pytest.raises(
        AttributeError, match=r"no attribute 'exprot'; its modules are auxk, batches, .* export, loop"
    ):
        jsae.sae.exprot  # noqa: B018
    assert "evaluate" in dir(jsae.sae) and "__version__" in dir(jsae)
