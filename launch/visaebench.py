"""Numbers of a finished SAE to hold beside ViSAEBench's, as a table.

    python -m launch.visaebench --config=configs/demo.py --workdir=runs/demo

Sparse probing, Moran's I, absorption and a probe on reconstructions, in the benchmark's own form and with all
choices made on train, beside the channels and a random rotation (sae/visaebench.parquet).
"""

import importlib

from launch import start


def _visaebench(config, workdir, context):
    visaebench = importlib.import_module("jsae.experiments.visaebench")
    visaebench.run(config, workdir, context)
    if start.mesh.is_writer():
        print(visaebench.markdown(visaebench.load(config, workdir)))


if __name__ == "__main__":
    start.run(_visaebench)
