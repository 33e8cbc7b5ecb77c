"""Nothing is unpickled or evaluated, nothing listens, and what comes from outside stays in its folder."""

import ast
import pathlib

import numpy as np
import pytest

from jsae.data import npy_files
from jsae.runtime import artifacts

ROOT = pathlib.Path(__file__).parents[1]
FILES = sorted(path for room in ("jsae", "launch", "configs") for path in (ROOT / room).rglob("*.py"))
FORBIDDEN_IMPORTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
LISTENING = {"listen", "create_server", "serve_forever", "HTTPServer", "TCPServer", "start_server"}


def called(node):
    return node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_pickle_no_eval_no_port_no_shell(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert not FORBIDDEN_IMPORTS & {name.split(".")[0] for name in names}, f"{path}: {names}"
        if isinstance(node, ast.Call):
            is_name = isinstance(node.func, ast.Name)
            assert not (is_name and called(node) in FORBIDDEN_CALLS), f"{path}:{node.lineno} {called(node)}"
            assert called(node) not in LISTENING, f"{path}:{node.lineno} listens"
            if called(node) == "bind":  # to keep a port free for another is not to listen
                assert ast.unparse(node.args[0]).startswith("('127.0.0.1',"), f"{path}:{node.lineno} binds"
            keywords = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            assert keywords.get("allow_pickle") is not True, f"{path}:{node.lineno} unpickles"
            assert keywords.get("shell") is not True, f"{path}:{node.lineno} starts a shell"
            if called(node) == "load" and "np" in ast.unparse(node.func):
                assert keywords.get("allow_pickle") is False or "mmap_mode" in keywords, (
                    f"{path}:{node.lineno}"
                )


def test_templates_escape_markup():
    environments = []
    for path in (ROOT / "jsae" / "report").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and called(node) == "Environment":
                environments.append(path)
                escapes = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
                assert escapes.get("autoescape") is True, f"{path}:{node.lineno}"
    assert environments, "the report is made by jinja2"
    for path in (ROOT / "jsae" / "report" / "templates").glob("*.html"):
        assert "autoescape false" not in path.read_text(), path


def test_arrays_of_objects_are_refused(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], object), allow_pickle=True)
    for read in (artifacts.read_array, lambda p: artifacts.read_array(p, mmap=True)):
        with pytest.raises(ValueError, match=r"allow_pickle|[Pp]ickle|object"):
            read(path)
    assert "pickle" not in dir(npy_files)
