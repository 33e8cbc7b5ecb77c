"""What features carry of a change that is known: the same drawing without and with one part."""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
