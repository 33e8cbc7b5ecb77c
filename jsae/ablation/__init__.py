"""What a feature does: splice metrics, and removals in feature space, in input space and of all features.

Interventions as pytrees are `jsae.edits`; `splice` measures the SAE as a whole. `feature_space` and
`input_space` measure single features beside controls matched per image, with intervals and tests
(`statistics`); `all_features` removes every feature from every image: in closed form where only pooling and a
linear head follow on the site, by forward passes elsewhere. `counterfactual` asks what features carry of a
change that is known, a part drawn and not drawn; `mediation` says how much of the effect of a changed image
goes by way of a few features. The stage itself is
`jsae.ablation.run.run(config, workdir)`. What is measured takes plain callables, so it works on any
classifier and any site, and a dictionary dealt over a mesh stays dealt (`dealt`).
"""

from jsae import lazy_modules

__getattr__, __dir__ = lazy_modules(__name__, __path__)
