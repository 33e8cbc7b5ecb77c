"""Several SAEs on one extraction, one table and two plots.

    python -m launch.sweep --config=configs/demo.py --workdir=W --config.sweep.k="(8, 16, 32)"

`config.sweep` lists what varies: variant, n_features, k, l1, l0, learning_rate, seed. The workdir needs its
activations (launch.pipeline or launch.extract). Started again it goes on with what is missing, and with other
lists it adds to the table (`study.table("sweep")`), which is printed at the end.
"""

import importlib

from launch import start


def _sweep(config, workdir, context):
    sweep = importlib.import_module("jsae.experiments.sweep")
    sweep.run(config, workdir, context)
    importlib.import_module("jsae.report.figures.pareto").run(workdir)
    if start.mesh.is_writer():
        print(sweep.markdown(sweep.load(workdir)))


if __name__ == "__main__":
    start.run(_sweep)
