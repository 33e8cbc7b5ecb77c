"""Paths with a scheme, such as gs://: what they need, said before anything is made."""

import importlib
import os
from typing import Any

from etils import epath

from jsae.runtime import paths

_NEEDED = {  # scheme -> modules, and what brings them
    "gs": (("google.cloud.storage", "gcsfs"), "'jsae[gcs]' (launch/venv.sh gcs)"),
    "s3": (("s3fs",), "s3fs"),
    "az": (("adlfs",), "adlfs"),
    "hf": (("huggingface_hub",), "huggingface_hub"),
}


def check(*places: paths.PathLike) -> None:
    """Return if every remote path among `places` can be asked for; local ones pass.

    Raises RuntimeError, in one line: a scheme that is unknown, a package that is missing (and what to
    install), or a place that refuses (what it says).
    """
    for path in (os.fspath(place) for place in places):
        if not paths.is_remote(path):
            continue
        scheme = path.partition("://")[0]
        if scheme not in _NEEDED:
            valid = ", ".join(f"{name}://" for name in _NEEDED)
            raise RuntimeError(f"{path}: there is no {scheme}://; a folder is local, or on {valid}")
        modules, brought_by = _NEEDED[scheme]
        for module in modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise RuntimeError(
                    f"{path}: {scheme}:// needs {module} ({error}): pip install {brought_by}"
                ) from error
        try:
            epath.Path(path).exists()
        except Exception as error:  # each client has other types for a refusal
            said = " ".join(str(error).split()) or "no reason was given"
            raise RuntimeError(f"{path} cannot be reached: {type(error).__name__}: {said[:300]}") from error


def strings_in(config: Any) -> list[str]:
    """All strings of a nested dict, at any depth."""
    values = config.values() if isinstance(config, dict) else config
    found = []
    for value in values:
        if isinstance(value, dict | list | tuple):
            found += strings_in(value)
        elif isinstance(value, str):
            found.append(value)
    return found
