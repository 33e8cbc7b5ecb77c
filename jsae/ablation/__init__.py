"""What a feature does: edits of activations, splice metrics, feature-space and input-space ablation.

`edit` holds the interventions as pytrees that people patch into a forward pass; `splice` measures the SAE
as a whole; `feature_space` and `input_space` measure single features beside controls matched per image
(`controls`), with intervals and tests (`statistics`); `agreement` compares the two; `tables` is the
layout of the Parquet files. The stage itself is `jsae.ablation.run.run(config, workdir)`. The measuring
functions take plain callables, so they work on any classifier and any site.
"""

from jsae.ablation import agreement, controls, edit, feature_space, input_space, splice, statistics, tables

__all__ = [
    "agreement",
    "controls",
    "edit",
    "feature_space",
    "input_space",
    "splice",
    "statistics",
    "tables",
]
