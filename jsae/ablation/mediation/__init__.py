"""Mediation: what part of the effect of a changed image goes by way of a few features of the SAE."""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
