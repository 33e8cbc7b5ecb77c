"""jsae: sparse autoencoders on the feature maps of image classifiers, and what their features do.

The package is lazy: `import jsae` loads neither jax nor anything heavy, so that a launch script can
install its signal handlers first and a notebook starts at once. Rooms and the modules in them are imported
when they are first named: `jsae.sae.export.load` needs no other import. `jsae.load(workdir)` opens a finished
study; `jsae.sae`, `jsae.classifier`, `jsae.edits` hold the pure functions underneath; `@jsae.pytree` makes a
class an argument of jitted functions.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any

_ROOMS = (
    "metrics",
    "runtime",
    "data",
    "classifier",
    "activations",
    "sae",
    "edits",
    "tables",
    "study",
    "analysis",
    "ablation",
    "experiments",
    "report",
)
_FROM = {"load": "jsae.study", "pytree": "jsae.runtime.pytrees"}
__all__ = [*_ROOMS, *_FROM]


def lazy_modules(package: str, path: Iterable[str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """(__getattr__, __dir__) of a package: the modules in it are imported when they are first asked for."""
    import pkgutil

    inside = sorted(module.name for module in pkgutil.iter_modules(path))

    def find(name: str) -> Any:
        if name in inside:
            return importlib.import_module(f"{package}.{name}")
        raise AttributeError(
            f"module {package!r} has no attribute {name!r}; its modules are {', '.join(inside)}"
        )

    def names() -> list[str]:
        return sorted({*vars(importlib.import_module(package)), *inside})

    return find, names


def __getattr__(name: str) -> Any:
    if name in _FROM:
        return getattr(importlib.import_module(_FROM[name]), name)
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("jsae")
    if name in _ROOMS:
        return importlib.import_module(f"jsae.{name}")
    raise AttributeError(f"module 'jsae' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
