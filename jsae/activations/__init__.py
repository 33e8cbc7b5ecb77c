"""Activations of one site for whole splits, on disk with where each vector comes from."""

from jsae import lazy_modules
from jsae.activations.store import ActivationStore

__all__ = ["ActivationStore"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
