"""What a feature does: edits of activations, splice metrics, feature-space and input-space ablation.

Interventions as pytrees are `jsae.edits`; `splice` measures the SAE
as a whole; `feature_space` and `input_space` measure single features beside controls matched per image
(`controls`), with intervals and tests (`statistics`); `agreement` compares the two; `tables` is the
layout of the Parquet files. At the final site `atlas` removes every feature from every image in closed form;
`atlas_survey` is its pass over a split, `atlas_tables` its files, `cumulative` many features at once;
`site_atlas` does the same at other sites by forward passes. `known_answer` removes what finds a part,
`fill_sweep` varies what takes a patch's place (`fills`), `baselines` holds the SAE against other
dictionaries. The stage itself is `jsae.ablation.run.run(config, workdir)`. The measuring functions of all but
the closed form take plain callables, so they work on any classifier and any site.
"""

from jsae import lazy_modules
from jsae.ablation import (
    agreement,
    atlas,
    atlas_survey,
    atlas_tables,
    controls,
    cumulative,
    feature_space,
    input_space,
    splice,
    statistics,
    tables,
)

__all__ = [
    "agreement",
    "atlas",
    "atlas_survey",
    "atlas_tables",
    "controls",
    "cumulative",
    "feature_space",
    "input_space",
    "splice",
    "statistics",
    "tables",
]

__getattr__, __dir__ = lazy_modules(__name__, __path__)
