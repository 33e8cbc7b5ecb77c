"""Directions planted into a drawn study's activations: does measuring by counterfactual pairs find them?

    nice python -m launch.planted --config=configs/demo.py --workdir=runs/demo [--variants=topk,gated]

An oracle that holds the directions, an SAE of every variant and SAEs with a frozen matrix, at every dose of
config.planted.doses (planted/planted.parquet). Started again it goes on with what is missing.
"""

import importlib

from absl import flags

from launch import start


def _planted(config, workdir, context):
    planted = importlib.import_module("jsae.experiments.planted")
    table = importlib.import_module("jsae.experiments.planted_table")
    planted.run(config, workdir, context, flags.FLAGS.variants or table.NAMES)
    if start.mesh.is_writer():
        print(table.markdown(table.load(workdir)))


if __name__ == "__main__":
    flags.DEFINE_list(
        "variants", [], "Which: oracle, variants of the SAE, frozen_decoder, frozen_encoder; none: all."
    )
    start.run(_planted)
