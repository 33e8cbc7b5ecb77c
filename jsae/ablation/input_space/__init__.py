"""Single features in the image: patches blurred under their peaks, control patches, the table."""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
