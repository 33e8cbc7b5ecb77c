"""A shortcut planted into the drawings' skies: found among an SAE's features, removed, and what that helps.

    nice python -m launch.shortcut --config=configs/shortcut.py --workdir=runs/shortcut

Trains the tied study and a reference without the tie where they are missing, then suppresses the features
that lie off the foreground (shortcut/shortcut.parquet). Started again it goes on where it was.
"""

import importlib

from launch import start


def _shortcut(config, workdir, context):
    shortcut = importlib.import_module("jsae.experiments.shortcut")
    shortcut.run(config, workdir, context)
    if start.mesh.is_writer():
        print(shortcut.markdown(shortcut.load(workdir)))


if __name__ == "__main__":
    start.run(_shortcut)
