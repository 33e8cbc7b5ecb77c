"""Whole studies and dictionaries compared: sweeps, baselines, stability, known dictionaries."""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
