"""What every stage stands on: preemption, mesh and shardings, stages and manifests, checkpoints, logs."""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
