"""Measure what features do: `python -m launch.ablate --config=configs/demo.py --workdir=runs/demo`.

A chosen set instead of the strongest class-selective ones: --config.ablation.features=[12,407].
"""

from launch import start

if __name__ == "__main__":
    start.run_stages(["ablation"])
