"""Single features removed from stored activations: pairs and interventions, controls, the table."""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
