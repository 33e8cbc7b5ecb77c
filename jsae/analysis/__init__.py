"""What a feature sees: its strongest patches, its strength, how far it follows the classes, where it fires.

`run.run(config, workdir)` is the stage; `run.analyze` the same on a study in hand. `strength` and
`top_patches` hold the reducers of its passes (`jsae.activations.run_pass`), `features` the table of all
features; `localisation` and `parts` compare features with masks and boxes (`cells`), `directions` has what
an SAE is held against.
"""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
