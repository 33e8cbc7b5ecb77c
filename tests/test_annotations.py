"""What the package shows its users says its types: mypy checks no function without annotations."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
# The text of these two is part of what is drawn, so it stays.
DRAWN = {ROOT / f"jsae/data/synthetic_aircraft/{name}.py" for name in ("builder", "shapes")}


def public_functions(body: list[ast.stmt], prefix: str = ""):
    """(name, node) of every public function and of every public class's public methods."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{prefix}{node.name}.")
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif not node.name.startswith("_") or (prefix and node.name == "__call__"):
            yield prefix + node.name, node


def unannotated(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """The parameters without a type, and "return" where the function does not say what it returns."""
    a = node.args
    parameters = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])]
    missing = [p.arg for p in parameters if p.annotation is None and p.arg not in ("self", "cls")]
    return missing + ["return"] * (node.returns is None)


def in_source(source: str, path: str) -> list[str]:
    """path:line name (what lacks a type), for every public function of a module that lacks one."""
    return [
        f"{path}:{node.lineno} {name} ({', '.join(missing)})"
        for name, node in public_functions(ast.parse(source).body)
        if (missing := unannotated(node))
    ]


def test_every_public_function_says_its_types():
    found = [
        line
        for path in sorted({*(ROOT / "jsae").rglob("*.py")} - DRAWN)
        for line in in_source(path.read_text("utf-8"), str(path.relative_to(ROOT)))
    ]
    assert not found, "\n" + "\n".join(found)


def test_what_counts_as_public():
    source = """
def shown(a, *b: int, c=1, **d): ...
def typed(a: int) -> None:
    def inner(x): ...
def _hidden(a): ...
class Shown:
    def __init__(self, a): ...
    def __call__(self, a): ...
    @classmethod
    async def made(cls, a: int): ...
    def _hidden(self, a): ...
class _Hidden:
    def shown(self, a): ...
"""
    assert in_source(source, "m.py") == [
        "m.py:2 shown (a, c, d, return)",
        "m.py:8 Shown.__call__ (a, return)",
        "m.py:10 Shown.made (return)",
    ]
