"""Single features in the image: where to blur, whether that lowers the feature, and what it does then."""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
