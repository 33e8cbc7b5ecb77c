"""The classifier: a network whose sites can be read and edited, its training, and how to load it."""

from jsae import lazy_modules
from jsae.classifier.families import make_model
from jsae.classifier.head_only import load as load_head
from jsae.classifier.model import Head, HeadNorm, Model, Params, apply, head_logits, init
from jsae.classifier.restore import load, load_model

__all__ = [
    "Head",
    "HeadNorm",
    "Model",
    "Params",
    "apply",
    "head_logits",
    "init",
    "load",
    "load_head",
    "load_model",
    "make_model",
]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
