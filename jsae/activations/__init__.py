"""Activations of one site for whole splits, on disk with where each vector comes from."""

from jsae.activations.store import ActivationStore

__all__ = ["ActivationStore"]
