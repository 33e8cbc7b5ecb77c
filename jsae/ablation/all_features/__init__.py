"""Every feature removed from every image: in closed form or by forward passes, jointly, the tables."""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
