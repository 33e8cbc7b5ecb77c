"""The classifier: a ConvNeXt whose sites can be read and edited, its training, and how to load it."""

from jsae import lazy_modules
from jsae.classifier.convnext import FINAL_SITE, Arch, Params, apply, init, make_arch
from jsae.classifier.restore import load, load_arch

__all__ = ["FINAL_SITE", "Arch", "Params", "apply", "init", "load", "load_arch", "make_arch"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
