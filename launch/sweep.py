"""Several SAEs on one extraction, one table and two plots.

    python -m launch.sweep --config=configs/demo.py --workdir=W --config.sweep.k="(8, 16, 32)"

`config.sweep` lists what varies: variant, n_features, k, l1, l0, learning_rate, seed. The workdir needs its
activations (launch.pipeline or launch.extract). Started again it goes on with what is missing.
"""

import importlib

from launch import start


def _sweep(config, workdir):
    importlib.import_module("jsae.ablation.sweep").run(config, workdir)
    importlib.import_module("jsae.report.pareto").run(workdir)


if __name__ == "__main__":
    start.run(_sweep)
