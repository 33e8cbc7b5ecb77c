"""What a mistyped command line is told: the file, key or value that is wrong, and what it can be."""

import os
import pathlib
import runpy
from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict


def _boolean(text: str) -> None:
    if text.lower() not in ("true", "t", "1", "false", "f", "0"):
        raise ValueError(text)


# type of a config's value -> what it is called, and what reads it from a command line
_TYPES = {bool: ("true or false", _boolean), int: ("a whole number", int), float: ("a number", float)}


def explain(argv: Sequence[str]) -> str | None:
    """What is wrong with --config and its overrides; None where nothing is, as far as this can tell."""
    files = [a.removeprefix("--config=") for a in argv if a.startswith("--config=")]
    if not any(a.split("=")[0].lstrip("-") == "config" for a in argv):
        return "--config=FILE is missing, for example --config=configs/demo.py"
    if not files:
        return None
    path, *form = files[-1].split(":", 1)
    if not os.path.exists(path):
        there = sorted(map(str, pathlib.Path(path).parent.glob("[!_]*.py")))
        return f"there is no config file {path}; " + (
            f"beside it are {', '.join(there)}" if there else f"the folder is {os.getcwd()}"
        )
    try:
        config = runpy.run_path(path)["get_config"](*form)
    except Exception as error:  # it is a program, and may raise anything
        return f"--config={files[-1]} cannot be read: {type(error).__name__}: {error}"
    overrides = [a for a in argv if a.startswith("--config.")]
    return next(filter(None, (_wrong(argument, config) for argument in overrides)), None)


def _wrong(argument: str, config: Any) -> str | None:
    """What is wrong with --config.KEY or --config.KEY=VALUE."""
    name, has_value, value = argument.removeprefix("--config.").partition("=")
    node, path = config, "config"
    for key in name.split("."):
        if not hasattr(node, "keys"):
            return f"{argument}: {path} has no {key!r}; it is a value"
        if key not in node:
            inside = [
                f"{path}.{name}.{key}"
                for name in sorted(node)
                if hasattr(node[name], "keys") and key in node[name]
            ]
            hint = f"; there is {', '.join(inside)}" if inside else ""
            return f"{argument}: {path} has no {key!r}{hint}; its keys are {', '.join(sorted(node.keys()))}"
        node, path = node[key], f"{path}.{key}"
    if not has_value or type(node) not in _TYPES:
        return None
    what, read = _TYPES[type(node)]
    try:
        read(value)
    except ValueError:
        return f"{argument}: {path} is {what} (in the file {node}), not {value!r}"
    return None


def unused(argv: list[str], config: ConfigDict) -> str | None:
    """Which setting of an SAE variant is given that is not trained; None where there is none.

    A sweep trains the variants of config.sweep.variant.
    """
    trained = {config.sae.variant, *config.sweep.variant}
    if not trained <= set(config.sae.keys()):
        return None  # a variant that is none is named where it is looked up
    for argument in argv:
        section, _, name = argument.split("=")[0].removeprefix("--config.sae.").partition(".")
        if argument.startswith("--config.sae.") and name and section not in trained:
            chosen = config.sae.variant
            valid = ", ".join(f"config.sae.{chosen}.{key}" for key in config.sae.get(chosen, {}))
            return (
                f"{argument}: it is of variant {section!r}, and config.sae.variant is {chosen!r} with {valid}"
            )
    return None
