"""What a feature sees: its strongest patches, its strength, how far it follows the classes, where it fires.

`run.run(config, workdir)` is the stage; `run.analyze(train_store, test_store, sae, ...)` the same on
activation stores in hand. `load_features(folder)` and `load_top_patches(folder)` read the tables of a
finished stage, `documentation(table)` says what each column means. `localisation` and `parts` compare
features with masks and boxes (`cells`), `directions` are what an SAE is held against.
"""

import pyarrow as pa

from jsae import lazy_modules
from jsae.analysis import features, top_patches
from jsae.analysis.tables import documentation
from jsae.runtime import artifacts, paths

__all__ = ["documentation", "load_features", "load_top_patches"]


def load_features(folder) -> pa.Table:
    """features.parquet of the stage's folder: one row a feature, all F of them."""
    return artifacts.read_table(paths.resolve(folder) / features.FILE)


def load_top_patches(folder) -> pa.Table:
    """top_patches.parquet of the stage's folder: one row a (feature, rank)."""
    return artifacts.read_table(paths.resolve(folder) / top_patches.FILE)


__getattr__, __dir__ = lazy_modules(__name__, __path__)
