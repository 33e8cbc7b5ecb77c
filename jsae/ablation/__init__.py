"""What a feature does: edits of activations, splice metrics, feature-space and input-space ablation.

`edit` holds the interventions as pytrees that people patch into a forward pass; `splice` measures the SAE
as a whole; `feature_space` and `input_space` measure single features beside controls matched per image
(`controls`), with intervals and tests (`statistics`); `agreement` compares the two; `tables` is the
layout of the Parquet files; `run` is the stage. The measuring functions take plain callables, so they
work on any classifier and any site.
"""

import importlib

_MODULES = (
    "edit",
    "splice",
    "pairs",
    "controls",
    "feature_space",
    "input_space",
    "agreement",
    "statistics",
    "choice",
    "tables",
    "stage",
)
__all__ = [*_MODULES, "run"]


def __getattr__(name):
    if name == "run":
        return importlib.import_module("jsae.ablation.stage").run
    if name in _MODULES:
        return importlib.import_module(f"jsae.ablation.{name}")
    raise AttributeError(f"module 'jsae.ablation' has no attribute {name!r}; it has {', '.join(__all__)}")
