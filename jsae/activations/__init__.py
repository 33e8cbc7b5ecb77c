"""Activations of one site for whole splits, on disk with where each vector comes from, and passes over
them."""

from jsae import lazy_modules
from jsae.activations.reducers import Encoded, Reducer, run_pass
from jsae.activations.store import ActivationBatch, ActivationStore

__all__ = ["ActivationBatch", "ActivationStore", "Encoded", "Reducer", "run_pass"]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
