"""jsae: sparse autoencoders on the feature maps of image classifiers, and what their features do.

The package is lazy: `import jsae` loads neither jax nor anything heavy, so that a launch script can
install its signal handlers first and a notebook starts at once. `jsae.load(workdir)` opens a finished
study; `jsae.sae`, `jsae.classifier`, `jsae.ablation` hold the pure functions underneath.
"""

import importlib

_ROOMS = (
    "metrics",
    "runtime",
    "data",
    "classifier",
    "activations",
    "sae",
    "analysis",
    "ablation",
    "report",
    "study",
)
__all__ = [*_ROOMS, "load"]


def __getattr__(name):
    if name == "load":
        return importlib.import_module("jsae.study").load
    if name in _ROOMS:
        return importlib.import_module(f"jsae.{name}")
    raise AttributeError(f"module 'jsae' has no attribute {name!r}; it has {', '.join(__all__)}")
