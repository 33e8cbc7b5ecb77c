"""The SAE of a finished study beside other dictionaries, as a table.

    python -m launch.baselines --config=configs/demo.py --workdir=runs/demo

Channels, PCA, k-means, NMF, a random rotation, random directions, class means, SAEs with a frozen matrix and
the SAE of an untrained classifier, all scored by the same code (ablation/baselines.parquet). Started again
it goes on with what is missing.
"""

import importlib

from launch import start


def _baselines(config, workdir, context):
    baselines = importlib.import_module("jsae.experiments.baselines")
    baselines.run(config, workdir, context)
    if start.mesh.is_writer():
        print(baselines.markdown(baselines.load(config, workdir)))


if __name__ == "__main__":
    start.run(_baselines)
