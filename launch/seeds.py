"""The counterfactual pairs of a drawn study over several classifiers and SAEs, as a table with its spread.

    python -m launch.seeds --config=configs/demo.py --workdir=runs/demo --classifiers=5 --saes=2

Trains the classifiers and SAEs in WORKDIR/seeds, measures each beside frozen decoder, rotation, channels, PCA
and supervised directions, and prints means over classifiers with t intervals. Started again it goes on with
what is missing, and with higher numbers it adds to what is there. The next launch.report shows it.
"""

import importlib

from absl import flags

from launch import start

_CLASSIFIERS = flags.DEFINE_integer("classifiers", 5, "Classifiers, of seeds config.seed and up.")
_SAES = flags.DEFINE_integer("saes", 2, "SAEs of each classifier.")


def _seeds(config, workdir, context):
    seeds = importlib.import_module("jsae.experiments.seeds")
    seeds.run(config, workdir, _CLASSIFIERS.value, _SAES.value, context)
    if start.mesh.is_writer():
        print(seeds.markdown(seeds.load(workdir)))


if __name__ == "__main__":
    start.run(_seeds)
